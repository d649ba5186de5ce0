"""The rows, what a message does to them, and how they are written. May import `core.events` and the core."""
