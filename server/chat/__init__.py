"""Chat as pure text: chat templates, and parsers for the text that models generate.

Runs on connection threads. No threads of its own, no ctypes; `choose` reads a file, the rest does no I/O. May import
the standard library and what any module may import. Not taken: doing this on the engine's thread, where it would delay
all other requests.
"""
