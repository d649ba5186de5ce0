"""The log: the embedded one (a SQLite file) and the Faust transport over it."""
