"""Makes engines and loaded models of options and files."""
