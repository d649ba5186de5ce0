"""What every row gets: the traffic, a key, directories of its own, and a load generator that is ready to start."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec

from processor.core.events.codec import PayloadFormat
from tests.bench.corpus import Corpus
from tests.bench.load_fresh import Fresh, Stretch
from tests.bench.loading import Order, Outcome
from tests.bench.machine import percentile
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Program, running
from tests.bench.results import Figures, Row
from tests.support.traffic import Wide

DATA: Final = "data"
KEY: Final = "lqt_" + "be" * 32
LOADERS: Final[dict[PayloadFormat, str]] = {"json": "tests.bench.load_http", "protobuf": "tests.bench.load_grpc"}
FRESH_LOADER: Final = "tests.bench.load_fresh"
DOORS: Final[dict[PayloadFormat, str]] = {"json": "http", "protobuf": "grpc"}
LANES: Final[dict[PayloadFormat, tuple[int, int]]] = {"json": (16, 1), "protobuf": (4, 8)}
"""Connections or streams, and the requests on their way in each."""


class FreshLoad:
    """One of `load_fresh`, ready for a stretch."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def tell(self, stretch: Stretch) -> None:
        """Start a stretch; one that is to be prepared is prepared when this returns, and `go` starts it."""
        self.program.tell(msgspec.json.encode(stretch).decode())
        if stretch.prepared:
            self.program.line()

    def go(self) -> None:
        self.program.tell("go")

    def outcome(self) -> Outcome:
        """What came of it; waits for its end."""
        return msgspec.convert(self.program.line(), Outcome)


class Bench:
    """One call of `python -m tests.bench`."""

    def __init__(self, directory: Path, corpus: Corpus, *, ids: int = 100_000_000) -> None:
        self.directory = directory
        self.corpus = corpus
        self.overload_seconds = 60.0
        """How long the row `overload` lasts."""
        self.ids = ids
        """With how many the id index is filled."""
        self.event_store: Path | None = None
        """A data directory of `tools.make_segments`, for the row `event-reads`; None: it makes one of a million."""
        self.question_seconds = 60.0
        """After how long row `event-reads` gives a question up."""
        self.say: Callable[[str], object] = lambda what: None
        """Told what a long row does now."""
        self.rows: dict[str, Row] = {}
        """What has been measured so far."""

    @cached_property
    def wide(self) -> Corpus:
        """As many events of another kind (`traffic.Wide`): nearly each has a row and an hour of its own."""
        return Corpus(self.directory, self.corpus.count, Wide)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty directory for one run; afterwards it is gone."""
        path = Path(tempfile.mkdtemp(dir=self.directory))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def server(
        self, *role: str, cpu: int | None = None, settings: Mapping[str, object] | None = None
    ) -> Iterator[tuple[Program, dict[str, Any]]]:
        """`spendstream ROLE` on an empty data directory (`DATA` below the program's), ready; and its ready line.

        `settings`: by their variables' names without the prefix, in lower case.
        """
        with self.fresh() as directory:
            environment = {
                "SPENDSTREAM_DATA_DIR": str(directory / DATA),
                "SPENDSTREAM_HTTP_BIND": "127.0.0.1:0",
                "SPENDSTREAM_GRPC_BIND": "127.0.0.1:0",
                "SPENDSTREAM_BOOTSTRAP_KEY": KEY,
                "SPENDSTREAM_LOG_LEVEL": "warning",
                "SPENDSTREAM_EVENT_STORE": "off",
                **{f"SPENDSTREAM_{name.upper()}": str(value) for name, value in (settings or {}).items()},
            }
            with running(["-m", "server", *role], directory, environment, cpu) as program:
                yield program, program.line()

    @contextmanager
    def load(
        self,
        payload: PayloadFormat,
        said: dict[str, Any],
        *,
        cpu: int | None = None,
        limit: int | None = None,
        corpus: Corpus | None = None,
        **order: Any,
    ) -> Iterator[Program]:
        """A load generator with all its requests made, that starts at a line on its standard input."""
        lanes, depth = LANES[payload]
        encoding = "gzip" if payload == "json" else "identity"
        settings = {"lanes": lanes, "depth": depth, "encoding": encoding, "key": KEY, **order}
        bodies = settings.pop("bodies", None) or (corpus or self.corpus).bodies(payload, limit)
        made = Order(port=port_of(said, payload), bodies=str(bodies), **settings)
        with (
            self.fresh() as directory,
            running(["-m", LOADERS[payload], msgspec.json.encode(made).decode()], directory, cpu=cpu) as program,
        ):
            program.line()
            yield program

    @contextmanager
    def fresh_loads(self, said: dict[str, Any], made: Pass, count: int = 1) -> Iterator[list[FreshLoad]]:
        """Load generators that make the events of a pass anew as often as they are told to (`load_fresh`)."""
        path = self.directory / "pass"
        made.write(path)
        with ExitStack() as stack:
            loads = []
            for seed in range(count):
                order = msgspec.json.encode(Fresh(port_of(said, "json"), KEY, str(path), seed)).decode()
                directory = stack.enter_context(self.fresh())
                loads.append(FreshLoad(stack.enter_context(running(["-m", FRESH_LOADER, order], directory))))
            for load in loads:
                load.program.line()
            yield loads


def port_of(said: dict[str, Any], payload: PayloadFormat) -> int:
    """The port of a door, from a ready line."""
    return int(said[DOORS[payload]].rpartition(":")[2])


def outcome_of(load: Program, expected: int) -> Outcome:
    """Wait for the end of a load that was started; raises `Failed` if anything was refused."""
    outcome = msgspec.convert(load.line(), Outcome)
    if outcome.refused or outcome.accepted != expected:
        raise Failed(f"{outcome.accepted} of {expected} events were accepted, {outcome.refused} requests refused")
    return outcome


def quantiles(name: str, seconds: list[float]) -> Figures:
    """p50 and p99 of latencies, in milliseconds."""
    return {f"{name} {percent}, ms": 1e3 * percentile(seconds, int(percent[1:])) for percent in ("p50", "p99")}
