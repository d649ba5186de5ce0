"""All rows in columns: one view, fed by the changelog, asked by everybody who reads. May import the log and the
core."""
