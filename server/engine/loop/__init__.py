"""The engine's loop: one step after another, and its helpers."""
