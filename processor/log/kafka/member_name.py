"""The name of a process in its consumer group."""

import secrets
from pathlib import Path


def instance(directory: Path, role: str) -> str:
    """Return the name of a role in its group: with the same directory it is the same member after a restart."""
    path = directory / f"{role}.id"
    if not path.exists():
        path.write_text(f"{role}-{secrets.token_hex(8)}\n")
    return path.read_text().strip()
