"""Slots and what they need: planning, sampling, text, media, and the Backend protocol."""
