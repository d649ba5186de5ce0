"""A transport that drops one message on its way to a role of the product, once: as a fault of it would.

`dropping` puts a module `sitecustomize` into a directory that Python looks into as it starts. It takes a server that
is started as it is shipped (`Server(as_shipped=True)`).
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PLACE: Final = "DROPPING_PLACE"
"""The variable with the directory in which each role notes what was dropped."""
ROLES: Final = {"processor": "worker", "processor.event_store": "store"}
"""What `python -m` runs -> the role."""
OFFSET: Final = 3
"""The message of partition 0 that is dropped."""


@contextmanager
def dropping(place: Path) -> Iterator[None]:
    """Processes that are started inside of the block drop a message, once a role."""
    from tests.support.server import variables

    place.mkdir()
    (place / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nfrom tests.support import dropping\ndropping.begin()\n"
    )
    with variables({PLACE: place, "PYTHONPATH": place}):
        yield


def dropped(place: Path) -> set[str]:
    """The roles that have dropped a message."""
    return {path.stem for path in place.glob("*.dropped")}


def begin() -> None:
    """In a process that starts: drop the message, if it is a role that has not."""
    role = ROLES.get(sys.orig_argv[-1])
    mark = Path(os.environ[PLACE]) / f"{role}.dropped"
    if role is None or mark.exists():
        return
    from processor.log.embedded import transport as embedded
    from processor.log.kafka import transport as kafka

    for module in (embedded, kafka):
        _wrap(module.Consumer, mark)


def _wrap(consumer: Any, mark: Path) -> None:
    fetch = consumer._getmany  # noqa: SLF001 - what Faust asks a transport for

    async def fetch_less(self: Any, **arguments: Any) -> Mapping[Any, list[Any]]:
        return _without(await fetch(self, **arguments), mark)

    consumer._getmany = fetch_less  # noqa: SLF001


def _without(found: Mapping[Any, list[Any]], mark: Path) -> Mapping[Any, list[Any]]:
    kept = {}
    for tp, records in found.items():
        kept[tp] = [each for each in records if (tp.partition, each.offset) != (0, OFFSET) or mark.exists()]
        if len(kept[tp]) < len(records):
            mark.touch()
    return {tp: records for tp, records in kept.items() if records}
