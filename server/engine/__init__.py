"""The engine: one thread that owns the llama.cpp context, and the messages between it and the web process.

`seam` has the messages, `client` is the web process's half, `loop` the engine's. Only `llama` and `client.vocab` call
the C library.
"""
