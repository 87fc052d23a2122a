"""Grammars: GBNF, regular expressions and JSON schemas. Pure text: no thread, no I/O."""
