"""Guesses of the next tokens, and what they cost."""
