"""Version 1 of the wire format: `ingest.proto` and `usage.proto`."""
