"""What the program does when its first word is a command: models, show, pull, rm, ps, run, verify, replay. No server
imports it."""
