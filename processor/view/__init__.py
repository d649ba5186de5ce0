"""The view: all rows in columns, fed by the changelog, read by all queries. May import the log and the core."""
