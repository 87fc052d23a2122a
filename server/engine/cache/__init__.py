"""What is kept of the KV cache: in slots, in memory, on disk."""
