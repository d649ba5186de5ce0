"""Durable names of files: one that was made or renamed may be gone after a power cut until its directory was synced."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
