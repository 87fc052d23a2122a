"""Stores data of a key between its requests: responses, conversations, files, streams."""
