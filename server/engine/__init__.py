"""The engine: one thread that owns the llama.cpp context, and the plain-data seam in front of it.

`task` holds what crosses the seam, `client` is the web side of it, `scheduler` the engine side. Only `backend`
and `vocab` know the C library, so that everything else is tested without one.
"""
