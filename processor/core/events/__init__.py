"""An event: its fields, checks, codec, columns and message in the log. May import the core beside it."""
