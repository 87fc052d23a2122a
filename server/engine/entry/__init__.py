"""The ways to run the engine's loop: in a process of its own, in a thread, or for `--tune`."""
