"""The engine's loop, and the parts of its steps."""
