"""What the hot path costs, counted and not timed: bytecodes and objects per event are the same on any machine.

It is a report: `pytest -s tests/unit/test_hot_path.py` prints what each stage costs beside what was written down. The
gate is wide: it is there for mistakes (a loop over rows, an object for each event), not for decisions. Who makes a
stage cheaper or dearer writes the new figure down. The times are those of `make bench` (row `stages`).
"""

import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import pytest

from processor.core.events import codec
from processor.view.view import View
from server.limits.cardinality import Cardinality
from tests.bench import stages
from tests.bench.context import Bench
from tests.bench.corpus import Corpus
from tests.support.tables import Usage, Worker, columns

pytestmark = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecodes are those of CPython 3.11")

P = ParamSpec("P")
T = TypeVar("T")

USUAL = {
    "http: inflate gzip": (2.0, 0.1),
    "http: split lines": (2.6, 0.1),
    "http: decode": (137.0, 2.0),
    "both: bounds of a project": (6.8, 0.1),
    "both: build_blocks": (1.0, 0.1),
    "grpc: split events": (110.0, 1.3),
    "grpc: decode": (80.0, 2.2),
    "both: message encode": (4.0, 0.1),
    "both: append of a message, fsync": (1.5, 0.1),
    "worker: message decode": (2.0, 2.1),
    "worker: claim": (1.8, 0.1),
    "worker: apply": (74.0, 1.1),
    "worker: drain a flush": (0.8, 0.1),
    "worker: encode the claims of a flush": (0.1, 0.1),
    "worker: append of a flush, fsync": (0.5, 0.1),
    "worker: note what was written": (0.5, 0.1),
    "view: read of a flush": (0.5, 0.1),
    "view: apply": (125.0, 0.1),
}
"""Stage -> bytecodes and objects that stay, an event, with CPython 3.11; a quarter more than what was counted."""

GATE = 3.0
"""So many times as much, and one more, is a mistake."""


class Counter:
    """A `Watch` that counts."""

    def __init__(self) -> None:
        self.bytecodes: dict[str, list[float]] = {}
        self.objects: dict[str, list[float]] = {}
        self._count = 0

    def time(self, stage: str, events: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._count = 0
        before, tracer = sys.getallocatedblocks(), sys.gettrace()
        sys.settrace(self._trace)
        try:
            result = work(*args, **kwargs)
        finally:
            sys.settrace(tracer)
        self.objects.setdefault(stage, []).append((sys.getallocatedblocks() - before) / events)
        self.bytecodes.setdefault(stage, []).append(self._count / events)
        return result

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode":
            self._count += 1
        return self._trace


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counter:
    directory: Path = tmp_path_factory.mktemp("hot-path")
    bench = Bench(directory, Corpus(directory, 8_000))
    counter = Counter()
    gc.collect()
    gc.disable()
    try:
        stages.run(bench, counter)
    finally:
        gc.enable()
    return counter


@pytest.mark.slow
def test_no_stage_costs_many_times_the_usual(counted: Counter) -> None:
    assert counted.bytecodes.keys() == USUAL.keys()
    dear = []
    for stage, usual in USUAL.items():
        found = statistics.median(counted.bytecodes[stage]), statistics.median(counted.objects[stage])
        print(f"{stage:36} {found[0]:8.2f} bytecodes ({usual[0]:5.1f}) {found[1]:6.2f} objects ({usual[1]:3.1f})")  # noqa: T201 - the report
        if any(each > GATE * most + 1 for each, most in zip(found, usual, strict=True)):
            dear.append((stage, found))
    assert dear == []


HOSTILE = {
    "empty strings": (b'{"a":[', b'"",', b'""],"b":NaN}'),
    "objects": (b'{"a":[', b"{},", b'0],"b":NaN}'),
    "objects before what is no UTF-8": (b'{"a":[', b"{},", b'0],"b":"\xff"}'),
    "fields": (b"{", b'"":[],', b'"b":NaN}'),
    "constants": (b'{"a":[', b"NaN,", b"0]}"),
}
"""The head, the middle, again and again, and the tail of lines that are no JSON, and dear to tell why."""


@pytest.mark.parametrize("size", [16_000, 4_000, 1_000, 100])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_request_of_hostile_lines_costs_little(kind: str, size: int) -> None:
    """Whatever they hold and however long they are: this is done on the event loop."""
    head, middle, tail = HOSTILE[kind]
    line = head + middle * ((size - len(head) - len(tail)) // len(middle)) + tail
    counter = Counter()
    decoded = counter.time("decode", 1, codec.decode, "json", [line] * 100, "partial", 0)
    assert len(decoded.faults) == 100
    assert counter.bytecodes["decode"][0] < 1_500_000


@pytest.mark.parametrize("partitions", [1, 16, 64])
def test_a_project_at_its_bound_of_rows_costs_little_whatever_the_partitions(partitions: int) -> None:
    worker, view = Worker(partitions), View()
    usages = [Usage(number, user=f"u{number % 100}") for number in range(4_000)]
    usages += [Usage(4_000 + number, user=f"rare{number}") for number in range(100)]
    worker.send(usages)
    for partition, records in enumerate(worker.work_all()):
        view.apply(partition, records)
    bounds = Cardinality(view, rows=view.rows_of_all_kinds("default"))
    counter = Counter()
    for kind, model, beyond in (("u", "gpt-4o", 0), ("new", "gpt-4o", 100), ("u", "new", 100), ("rare", "gpt-4o", 0)):
        batch = columns(Usage(number, user=f"{kind}{number}", model=model) for number in range(100))
        bounds.beyond("default", batch)  # the rare ones may be in any partition, until it is known
        assert len(counter.time(kind, 1, bounds.beyond, "default", batch)) == beyond
        assert counter.bytecodes[kind][-1] < 25_000
