"""The id index: a storage engine for every claim of a partition, on disk for ever. May import the core only."""
