"""Benchmarks: workloads, the client that runs them on servers, and reports.

Servers are child processes, measured over HTTP. `llama_srv.py --bench` measures the user's model,
`build_scripts/bench.py` compares servers. Imports the standard library and `server.program`.
"""
