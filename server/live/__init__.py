"""The stream of changed users: snapshots, frames, resume tokens. May import `reads`, `alerts` and below."""
