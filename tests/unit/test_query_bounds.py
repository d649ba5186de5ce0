"""What keeps the query process within its bounds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import Refused
from server.explore.engine import Engine
from server.explore.query_bounds import EXIT_HUNG, HUNG, QueryBounds, QueryGuard, anonymous_memory, trim

BOUND = 1000
MOMENT = 50.0


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path, tmp_path / "spill", timeout=0.001)
    yield made
    made.close()


class Watched:
    """A guard, and what it has done."""

    def __init__(self, engines: list[Engine], spill: Path, *, min_free: int = 0) -> None:
        self.taken = 0
        self.ended: list[int] = []
        bounds = QueryBounds(BOUND, 1, 1.0, min_free)
        self.guard = QueryGuard(bounds, engines, spill, taken=lambda: self.taken, end=self.ended.append)


def refusal(engine: Engine) -> str | None:
    try:
        engine.check()
    except Refused as refused:
        return refused.reason
    return None


def test_one_question_that_takes_too_much_memory_is_too_heavy(engine: Engine, tmp_path: Path) -> None:
    found = Watched([engine], tmp_path / "spill")
    found.taken = BOUND
    found.guard.look(MOMENT)
    assert refusal(engine) is None
    found.taken = BOUND + 1
    found.guard.look(MOMENT)
    assert refusal(engine) == "query_too_heavy"
    assert found.ended == []


def test_of_several_nobody_knows_which_it_is(engine: Engine, tmp_path: Path) -> None:
    other = engine.fork(None)
    found = Watched([engine, other], tmp_path / "spill")
    found.taken = BOUND + 1
    found.guard.look(MOMENT)
    assert (refusal(engine), refusal(other)) == ("queries_busy", "queries_busy")
    other.close()


def test_memory_that_is_not_given_back_ends_the_process(engine: Engine, tmp_path: Path) -> None:
    found = Watched([engine], tmp_path / "spill")
    found.taken = BOUND + 1
    found.guard.look(MOMENT)
    found.guard.look(MOMENT + HUNG)
    assert found.ended == []
    found.guard.look(MOMENT + HUNG + 1)
    assert found.ended == [EXIT_HUNG]
    found = Watched([], tmp_path / "spill")
    found.taken = 2 * BOUND
    found.guard.look(MOMENT)
    assert found.ended == [EXIT_HUNG]


def test_a_question_that_cannot_be_interrupted_ends_the_process(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Watched([engine], tmp_path / "spill")
    engine.start()
    found.guard.look(MOMENT)
    assert found.ended == []
    monkeypatch.setattr("server.explore.query_bounds.HUNG", -1.0)
    found.guard.look(MOMENT)
    assert found.ended == [EXIT_HUNG]


def test_a_disk_without_room_ends_questions_that_spill(engine: Engine, tmp_path: Path) -> None:
    found = Watched([engine], tmp_path / "spill", min_free=1 << 60)
    found.guard.look(MOMENT)
    assert refusal(engine) is None  # nothing of it is on the disk
    (tmp_path / "spill" / "x.tmp").write_bytes(b"x")
    found.guard.look(MOMENT)
    assert refusal(engine) == "disk_full"


def test_the_guard_goes_on_without_the_spill_folder(engine: Engine, tmp_path: Path) -> None:
    found = Watched([engine], tmp_path / "spill", min_free=1 << 60)
    (tmp_path / "spill").rmdir()
    found.guard.look(MOMENT)
    found.taken = BOUND + 1
    found.guard.look(MOMENT)
    assert refusal(engine) == "query_too_heavy"
    assert found.ended == []


def test_memory_of_this_process_is_known(tmp_path: Path) -> None:
    before = anonymous_memory()
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert 60 << 20 < anonymous_memory() - before < 80 << 20
    del held
    trim()
