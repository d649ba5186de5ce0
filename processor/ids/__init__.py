"""The id index: every claim of a partition, for ever, on disk. A storage engine. May import the core only."""
