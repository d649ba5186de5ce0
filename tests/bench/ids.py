"""Row `ids`: new ids and duplicates at up to a hundred million, and what else could keep them, at fewer."""

from pathlib import Path
from typing import Final

import msgspec

from tests.bench.context import Bench
from tests.bench.id_filling import Order
from tests.bench.id_stores import INSTALL, PACKAGES, STORES, missing
from tests.bench.programs import running
from tests.bench.results import Figures

MARKS: Final = (1_000_000, 10_000_000, 100_000_000)


def ids(bench: Bench) -> Figures:
    """`IdIndex.claim` in batches of 500, from empty, checkpoints every 5 s beside it as in the worker.

    A worker claims a tenth of what is claimed here in a second: there is that much more time for the thread behind it.
    """
    marks = [mark for mark in MARKS if mark < bench.ids] + [bench.ids]
    found = _fill(bench, "index", bench.ids, marks, thorough=True)
    for name in STORES:
        if missing(name):
            bench.rows["ids"].note = f"{' and '.join(PACKAGES.values())} are not installed: {INSTALL}"
            continue
        few = _fill(bench, name, bench.store_ids, [bench.store_ids], thorough=False)
        found |= {f"{name}: {figure}": value for figure, value in few.items()}
    return found


def _fill(bench: Bench, store: str, count: int, marks: list[int], *, thorough: bool) -> Figures:
    with bench.fresh() as directory:
        place = Path(directory) / "store"
        place.mkdir()
        order = Order(store, str(place), count, marks, thorough=thorough)
        with running(["-m", "tests.bench.id_filling", msgspec.json.encode(order).decode()], directory) as program:
            return {name: float(value) for name, value in program.line().items()}
