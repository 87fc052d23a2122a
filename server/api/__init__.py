"""Turns JSON requests into tasks for the engine, and the engine's events into JSON answers. Runs on connection threads.

There is one module per family of routes. What handlers share is in the `Context` that their constructors get. The
tables in `server/api/request` (`schema`, `fields`) define the fields of requests.
"""
