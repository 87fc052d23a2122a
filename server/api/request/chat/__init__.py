"""Reads the parts of a body that only chats have: messages, tools, reasoning."""
