"""Downloads and removes models for requests with an admin key. Only with --manage-models."""
