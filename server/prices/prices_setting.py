"""`SPENDSTREAM_PRICES`: what it may be, and the copy of a file of own prices that all processes read."""

import os
from pathlib import Path
from typing import Final

from processor.settings import in_full
from server.prices import own_prices

BUILTIN: Final = "builtin"
OFF: Final = "off"
FOLDER: Final = "prices"
"""Below the data directory: copies of the files of own prices that have been in use, each in a folder named like its
version."""


def check(setting: str) -> str:
    """The setting, a file's name in full. Raises `ValueError` where it names no list, or a file that is not sound."""
    if setting in {BUILTIN, OFF}:
        return setting
    if not setting.endswith(".toml"):
        raise ValueError(f"must be builtin, off, or a TOML file of own prices (FILE.toml), not {setting!r}")
    path = in_full(setting).absolute()
    own_prices.read(path)
    return str(path)


def keep(setting: str, data_dir: Path) -> str:
    """The setting with a copy of the file in the data directory, which no later edit changes: so all API processes of
    one supervisor have the same prices, whenever each starts. Raises `OSError`, and `own_prices.PricesError`."""
    if setting in {BUILTIN, OFF}:
        return setting
    data = Path(setting).read_bytes()
    version = own_prices.parse(Path(setting).stem, data).version
    copy = data_dir / FOLDER / version / Path(setting).name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        draft = copy.with_suffix(".draft")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(copy)
    return str(copy)
