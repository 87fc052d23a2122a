"""Turns JSON requests into tasks for the engine, and the engine's events into JSON answers.

Runs on connection threads and those of `generation`. Each family of routes has a module. What handlers share is in
the `Context` that their constructors get. Tables in `server/api/request` (`schema`, `fields`) define requests' fields.
"""
