"""Routes about the server itself: status, slots, adapters, metrics."""
