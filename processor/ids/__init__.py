"""The id index: every claim of a partition, for ever, on disk. A storage engine that may import the core only."""
