"""Reads the bodies of requests: fields, prompts, messages, files and constraints. See docs/architecture.md."""
