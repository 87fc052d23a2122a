"""The HTTP server: sockets, request heads and bodies, routes, static files, API keys. It knows nothing about models."""
