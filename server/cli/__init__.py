"""The command line. May import all of `server`."""
