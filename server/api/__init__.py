"""JSON in, tasks out; events in, JSON out. One module per family of routes, on the connection's thread.

Handlers hold no state: what they need is in the `Context` they are made with. `schema` is the table of request
fields; nothing else here validates.
"""
