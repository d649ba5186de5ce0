"""All rows in columns: one view, fed by the changelog, asked by everybody. May import the log and the core."""
