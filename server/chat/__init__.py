"""Chat as pure text: templates, JSON schema to grammar, and parsers of what the model answers.

Runs on HTTP handler threads. No I/O, no threads of its own, no ctypes; may import the standard library and
the leaves of `server`. Way not taken: letting the engine thread do any of this, which would stall every other
request.
"""
