"""Makes engines and loaded models from options and files."""
