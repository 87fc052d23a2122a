"""Measuring servers: what they are asked, what is noted, and how it is told.

A program of its own as far as the rest of the server goes: it starts servers as child processes and speaks HTTP to
them. `llama_srv.py --bench` measures the user's model with it, `build_scripts/bench.py` several servers against each
other. Imports the standard library only.
"""
