"""Turns JSON requests into tasks for the engine, and its events into JSON answers. Runs on connection threads.

There is one module per family of routes. Handlers hold no state of their own: all they need is in the `Context` that
their constructor gets. Request fields are validated by the tables in `server/api/request/schema.py`, nowhere else.
"""
