"""Loaded models out of options and files: engines, and how one of several is started."""
