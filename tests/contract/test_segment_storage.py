"""One suite for all storages of segments: what is put is there as a whole or not at all, wherever it breaks off."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from processor.event_store import directory_storage
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.segment_storage import DRAFT, SegmentStorage
from tests.support.memory_storage import MemoryStorage

PAIR = ["0000-0-9-aa.idx", "0000-0-9-aa.parquet"]
OLD = [b"old index", b"old rows"]
NEW = [b"a new index", b"new rows " * 20_000]


_REPLACE = Path.replace


class Fault(OSError):
    pass


Make = Callable[[int | None], SegmentStorage]
"""A storage of the same files; with a number, one that fails when so many of a put have their names."""


@pytest.fixture(params=["directory", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    memory = MemoryStorage()

    def of_memory(fail_after: int | None = None) -> SegmentStorage:
        memory.fail_after = fail_after
        return memory

    def of_directory(fail_after: int | None = None) -> SegmentStorage:
        left = [fail_after]

        def breaks(path: Path, target: Path) -> Path:
            if left[0] == 0:
                raise Fault
            left[0] = None if left[0] is None else left[0] - 1
            return _REPLACE(path, target)

        monkeypatch.setattr(Path, "replace", breaks)
        return DirectoryStorage(tmp_path / "events")

    return of_memory if request.param == "memory" else of_directory


def put(storage: SegmentStorage, contents: list[bytes]) -> None:
    made = storage.put(PAIR)
    try:
        for file, content in zip(made.files, contents, strict=True):
            file.write(content)
        made.commit()
    finally:
        made.discard()


def read(storage: SegmentStorage, name: str) -> bytes | None:
    try:
        with storage.get(name) as file:
            return file.read()
    except FileNotFoundError:
        return None


def names(storage: SegmentStorage) -> list[str]:
    return sorted(each.name for each in storage.list())


def test_nothing_is_there_at_first(make: Make) -> None:
    storage = make(None)
    assert names(storage) == []
    with pytest.raises(FileNotFoundError):
        storage.get(PAIR[0])
    storage.delete(PAIR[0])


def test_what_was_put_is_read_listed_and_deleted(make: Make) -> None:
    storage = make(None)
    put(storage, NEW)
    assert [read(storage, name) for name in PAIR] == NEW
    assert sorted((each.name, each.size) for each in storage.list()) == list(zip(PAIR, map(len, NEW), strict=True))
    with storage.get(PAIR[1]) as file:
        storage.delete(PAIR[1])
        assert file.read() == NEW[1]
    assert names(storage) == PAIR[:1]
    assert read(storage, PAIR[1]) is None


def test_it_is_not_there_before_it_is_committed(make: Make) -> None:
    storage = make(None)
    made = storage.put(PAIR)
    made.files[0].write(NEW[0])
    assert [read(storage, name) for name in PAIR] == [None, None]
    assert all(name.endswith(DRAFT) for name in names(storage))
    made.discard()
    made.discard()
    assert names(storage) == []


def test_what_a_killed_put_has_left_can_be_deleted(make: Make) -> None:
    storage = make(None)
    killed = storage.put(PAIR)
    killed.files[0].write(NEW[0])
    for file in killed.files:
        file.close()
    left = names(storage)
    assert left
    assert all(name.startswith(tuple(PAIR)) for name in left)
    for name in left:
        storage.delete(name)
    put(storage, NEW)
    assert names(storage) == PAIR


def test_who_reads_what_is_replaced_goes_on_with_it(make: Make) -> None:
    storage = make(None)
    put(storage, OLD)
    with storage.get(PAIR[1]) as file:
        put(storage, NEW)
        assert file.read() == OLD[1]
    assert [read(storage, name) for name in PAIR] == NEW


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_a_put_that_breaks_off_has_put_the_first_whole_and_the_others_not(
    make: Make, step: int, is_replaced: bool
) -> None:
    if is_replaced:
        put(make(None), OLD)
    with suppress(OSError):
        put(make(step), NEW)
    storage = make(None)
    before = OLD if is_replaced else [None, None]
    assert [read(storage, name) for name in PAIR] == [*NEW[:step], *before[step:]]
    assert all(name in PAIR for name in names(storage))
    put(storage, NEW)
    assert [read(storage, name) for name in PAIR] == NEW


@pytest.mark.parametrize("name", ["", "../log.db", "a/b", ".hidden", "a\0b", "A", "a.", "x" * 200, PAIR[0] + "/"])
def test_what_is_no_name_is_refused(make: Make, name: str) -> None:
    storage = make(None)
    for call in (storage.get, storage.delete, lambda name: storage.put([name])):
        with pytest.raises(ValueError, match="not the name of a file"):
            call(name)


def test_in_a_directory_files_are_durable_before_their_names_and_these_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync = os.fsync

    def synced(fd: int) -> None:
        done.append("content")
        fsync(fd)

    def named(path: Path, target: Path) -> Path:
        done.append(target.suffix)
        return _REPLACE(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    monkeypatch.setattr(directory_storage, "sync_directory", lambda path: done.append("names"))
    storage = DirectoryStorage(tmp_path)
    put(storage, NEW)
    assert done == ["content", "content", ".idx", ".parquet", "names"]
