"""Events out of the log and back in. May import the log and the core."""
