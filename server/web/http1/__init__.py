"""HTTP/1.1 on the wire: request heads, bodies, chunks, forms, and the socket."""
