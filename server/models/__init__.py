"""A model as handlers see it, and all of them by name."""
