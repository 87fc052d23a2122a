"""Everything between the command line and the C library.

A request passes through `web` (bytes and HTTP), `api` (JSON), `chat` (text) and `engine` (tokens). `app` and `serving`
connect these parts. docs/architecture.md follows one request through them.
"""
