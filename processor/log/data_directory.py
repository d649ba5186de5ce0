"""The data directory, made by whatever is the first to need it."""

import os
from pathlib import Path
from typing import Final

from processor.log.errors import LogError

ADVICE: Final = "name another one (--data-dir, SPENDSTREAM_DATA_DIR), or make it one that this user may write to"


def make_data_directory(path: Path) -> None:
    """Make the data directory if there is none. Raises `LogError` where there can be none, or none to write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise LogError(f"the data directory {path} is a file: {ADVICE}") from None
    except OSError as error:
        raise LogError(f"cannot make the data directory {path}: {error.strerror}; {ADVICE}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise LogError(f"the data directory {path} cannot be written to: {ADVICE}")
