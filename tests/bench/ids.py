"""Row `ids`: new ids and duplicates of the id index at up to a hundred million.

What else could keep the ids was measured beside it, and is settled: decision 5.
"""

from pathlib import Path
from typing import Final

import msgspec

from tests.bench.context import Bench
from tests.bench.id_filling import Order
from tests.bench.programs import running
from tests.bench.results import Figures

MARKS: Final = (1_000_000, 10_000_000, 100_000_000)


def ids(bench: Bench) -> Figures:
    """`IdIndex.claim` in batches of 500, from empty, checkpoints every 5 s beside it as in the worker.

    A worker claims a tenth of what is claimed here in a second: there is that much more time for the thread behind it.
    """
    marks = [mark for mark in MARKS if mark < bench.ids] + [bench.ids]
    with bench.fresh() as directory:
        place = Path(directory) / "ids"
        place.mkdir()
        order = msgspec.json.encode(Order(str(place), bench.ids, marks)).decode()
        with running(["-m", "tests.bench.id_filling", order], directory) as program:
            return {name: float(value) for name, value in program.line().items()}
