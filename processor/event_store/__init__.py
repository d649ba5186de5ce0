"""The event store: segments of events, their catalog, and the role that writes them. May import `ids` and below."""
