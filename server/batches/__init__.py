"""Batches: files with a request in each line, the threads that run them, and the files with their answers."""
