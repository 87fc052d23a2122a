"""The web process's half of the engine: client, supervision, vocabulary."""
