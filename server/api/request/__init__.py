"""What the body of a request says: its fields, prompt, messages, files and constraints. See docs/architecture.md."""
