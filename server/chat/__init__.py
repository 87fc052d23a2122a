"""Chat as pure text: chat templates, and parsers for the text that models generate.

Runs on HTTP handler threads. No I/O, no threads of its own, no ctypes; may import the standard library and the leaves
of `server`. Not taken: doing this on the engine's thread, where it would delay all other requests.
"""
