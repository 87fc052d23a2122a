"""A model as handlers use it, and all models by name."""
