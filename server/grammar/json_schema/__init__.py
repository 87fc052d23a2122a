"""JSON schema to GBNF."""
