"""The ways to run the loop: a process, a thread, --tune."""
