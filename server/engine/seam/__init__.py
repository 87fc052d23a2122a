"""The messages between the web process and the engine, and how they travel."""
