"""Turns JSON requests into tasks for the engine, and its events into JSON answers. Runs on connection threads.

There is one module per family of routes. What its handlers share with others is in the `Context` that their
constructors get. The tables in `server/api/request` (`schema`, `fields`) define all request fields.
"""
