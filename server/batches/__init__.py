"""Many requests as the lines of one file: what is in it, who has been answered, and the threads that ask."""
