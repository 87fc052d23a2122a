"""Speculative decoding: drafts of the next tokens, and what they cost."""
