"""What the program does when its first word is a command, such as `models`, `pull` or `run`."""
