"""Durable names of files: a new or renamed file may be gone after a power cut until its directory is synced."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk. Blocks. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
