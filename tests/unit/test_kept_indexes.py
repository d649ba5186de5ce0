"""Files of segments that are kept open are a part of those that the process may have open, not all of them."""

import gc
import os
import resource
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import Refused
from server.explore.dispatch import answer
from server.explore.engine import Engine
from server.explore.event_export import open_export
from server.explore.questions import EventsQuestion, ExportQuestion, Filters, Question, SessionsQuestion, Times
from server.explore.segment_files import INDEX_FILES, SegmentFiles
from tests.support.event_store import NOON, StoreDirectory, make_row

FILES = 100
"""Those that may be opened beside those that are open."""
SEGMENTS = 200


class OpenIndex:
    """An index that holds a file."""

    def __init__(self, path: Path, segment: object) -> None:
        del segment
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def row_groups(self, kind: str, text: str) -> Sequence[int]:
        return [len(os.pread(self._file, 1, 0))]


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    are_open = len([*Path("/dev/fd").iterdir()])
    if (are_open + FILES) * INDEX_FILES > FILES:
        pytest.fail(f"tests that ran before have left {are_open} files open: kept indexes would take all the others")
    resource.setrlimit(resource.RLIMIT_NOFILE, (are_open + FILES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_more_segments_than_files_that_may_be_open_can_be_asked(tmp_path: Path) -> None:
    made: Any = OpenIndex
    files = SegmentFiles(tmp_path, made)
    segments: list[Any] = [SimpleNamespace(id=f"{number:032x}") for number in range(SEGMENTS)]
    for each in segments:
        files.path(each.id, ".idx").write_bytes(b"x")
    for _ in range(2):
        assert [files.groups_with(each, "trace", ["t"]) for each in segments] == [{1}] * SEGMENTS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """One with more segments than files that may be opened, each with an event of the same user."""
    found = StoreDirectory(tmp_path_factory.mktemp("data") / "events")
    for number in range(SEGMENTS):
        found.append([make_row(user_id="u1", session_id="s1", timestamp=NOON + number)], messages=1)
    return found


QUESTIONS: list[Question] = [
    EventsQuestion(project="default", filters=Filters(equal={"user_id": ("u1",)}), times=Times(), limit=200),
    EventsQuestion(project="default", filters=Filters(equal={"status": ("success",)}), times=Times(), limit=200),
    SessionsQuestion(project="default", filters=Filters(kinds="all"), times=Times(), sort="cost_usd"),
]


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS, ids=["events of a user", "events", "sessions"])
def test_a_question_of_more_segments_than_files_that_may_be_open_is_answered(
    store: StoreDirectory, question: Question, request: pytest.FixtureRequest
) -> None:
    """It held all of its files open, and said that one was damaged."""
    with closing(store.engine()) as engine:
        before = _answer(store, engine, question)
        request.getfixturevalue("few_files")
        assert _answer(store, engine, question) == before


@pytest.mark.usefixtures("few_files")
def test_an_export_that_cannot_open_all_of_its_files_says_so(store: StoreDirectory) -> None:
    """They stay open, so that all are readable when they are deleted."""
    question = ExportQuestion(project="default", filters=Filters(), times=Times())
    with closing(store.engine()) as engine, pytest.raises(Refused, match="files open") as refused:
        open_export(store.snapshot(engine), question)
    assert refused.value.reason == "queries_busy"


def _answer(store: StoreDirectory, engine: Engine, question: Question) -> bytes:
    engine.start()
    return answer(engine, store.snapshot(engine), question)
