"""Reads a model's files before it is loaded: headers, checks, identity, and the plan of memory."""
