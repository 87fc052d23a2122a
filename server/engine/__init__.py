"""The engine, whose loop owns the llama.cpp context on one thread, and its client in the web process.

`seam` has the messages, `client` is the web process's half, `loop` the engine's. Only `llama` and `client.vocab` call
the C library.
"""
