"""What the program does instead of serving, by option: bundles, completion scripts, --tune, --verify."""
