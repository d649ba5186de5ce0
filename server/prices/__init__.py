"""Price lists: the built-in one, and own ones from a file. May import the core's events only."""
