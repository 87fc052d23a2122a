"""Routes about the server itself: status, slots, models, adapters, metrics, debugging."""
