"""The API dialects: how a request is read and how its answer is written.

A dialect knows its own JSON and the typed events of `server.chat.output`.
"""
