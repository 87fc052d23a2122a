"""Everything between the command line and the C library, in the order a request travels.

`web` (bytes and HTTP) -> `api` (JSON) -> `chat` (text) -> `engine` (tokens); `app` wires them together.
docs/architecture.md follows one request through all of them.
"""
