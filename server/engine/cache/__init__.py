"""The KV cache and what is saved from it: in slots, in memory, on disk."""
