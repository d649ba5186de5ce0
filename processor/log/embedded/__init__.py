"""The embedded log: a SQLite file in the data directory. May import `processor.log`, not the Kafka adapter."""
