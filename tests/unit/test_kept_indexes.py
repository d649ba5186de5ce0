"""Indexes of segments that are kept open take a part of the files that the process may have open, not all of them."""

import os
import resource
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.explore.segment_files import SegmentFiles

FILES = 200
"""Those that may be opened beside those that are open."""
SEGMENTS = 300


class OpenIndex:
    """An index that holds a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def row_groups(self, kind: str, text: str) -> Sequence[int]:
        return [len(os.pread(self._file, 1, 0))]


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/dev/fd").iterdir()]) + FILES, before[1]))
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
