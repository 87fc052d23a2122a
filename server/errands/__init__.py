"""What the program does instead of serving: bundles, completion scripts, --tune."""
