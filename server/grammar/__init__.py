"""Grammars: GBNF, regular expressions and JSON schemas. Pure functions on text: no threads, no I/O."""
