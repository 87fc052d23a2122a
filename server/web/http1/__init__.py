"""HTTP/1.1 as bytes: heads, bodies, chunks, and the socket they go through."""
