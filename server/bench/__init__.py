"""Benchmarks: workloads, the client that runs them on servers, and reports.

Independent of the server: it starts servers as child processes and talks HTTP to them. `llama_srv.py --bench` measures
the user's model, `build_scripts/bench.py` compares servers. Imports the standard library only.
"""
