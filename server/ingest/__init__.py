"""Ingest, from bytes to receipt: sans-I/O parsers, the publisher port, group commit. May import `limits` and below."""
