"""Bytes and HTTP: sockets, request heads and bodies, routes, files, keys. No word about models in here."""
