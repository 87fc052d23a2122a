"""The options of the command line: their table, and how they are read."""
