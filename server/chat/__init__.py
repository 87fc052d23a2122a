"""Chat as pure text: chat templates, and parsers for the text that models generate.

Runs on connection threads, parsers also on `engine-reader`. No threads of its own, no ctypes; only `choose` does I/O
(it reads a file). May import the standard library and `server`'s leaves (`errors`, `log`, `records`); `output` also
`server.grammar` and the seam. Not taken: doing this on the engine's thread, where it would delay all other requests.
"""
