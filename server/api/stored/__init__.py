"""Stores data of a key between its requests: responses, conversations, files, streams. Runs on connection threads."""
