"""Questions about events, and the process that answers them from the event store. May import `ingest` and below."""
