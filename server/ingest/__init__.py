"""Bytes in, receipt out: sans-I/O parts, the publisher port, the group commit. May import `limits` and below."""
