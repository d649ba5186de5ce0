"""The model of a disk that loses power: what may be there after a cut follows from what was made durable."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.disk.model import (
    CREATE,
    MKDIR,
    RENAME,
    SYNC,
    SYNC_DIRECTORY,
    SYNC_FAILED,
    TRUNCATE,
    UNLINK,
    WRITE,
    Disk,
    Op,
)


def op(code: int, inode: int = 1, offset: int = 0, paths: Sequence[str] = (), data: bytes = b"") -> Op:
    return Op(code, inode, offset, tuple(paths), data, 0)


def after(
    tmp_path: Path, keep: str, *ops: Op, before: dict[str, bytes] | None = None, seed: int = 0
) -> dict[str, bytes]:
    root, image = tmp_path / "root", tmp_path / "image"
    shutil.rmtree(image, ignore_errors=True)
    root.mkdir(exist_ok=True)
    for name, content in (before or {}).items():
        (root / name).write_bytes(content)
    disk = Disk(root)
    for each in ops:
        disk.feed(each)
    disk.cut(image, random.Random(seed), keep)
    return {str(path.relative_to(image)): path.read_bytes() for path in image.rglob("*") if path.is_file()}


MADE = (op(CREATE, paths=["/a"]), op(WRITE, data=b"12345"))


def test_a_file_is_there_when_it_and_its_name_were_synced(tmp_path: Path) -> None:
    assert after(tmp_path, "nothing", *MADE) == {}
    assert after(tmp_path, "nothing", *MADE, op(SYNC)) == {}, "its name was not"
    named = op(SYNC_DIRECTORY, paths=["/"])
    assert after(tmp_path, "nothing", *MADE, named) == {"a": b""}
    assert after(tmp_path, "nothing", *MADE, op(SYNC), named) == {"a": b"12345"}
    assert after(tmp_path, "all", *MADE) == {"a": b"12345"}


def test_what_was_written_after_the_sync_may_be_there_in_part(tmp_path: Path) -> None:
    ops = (*MADE, op(SYNC), op(SYNC_DIRECTORY, paths=["/"]), op(WRITE, offset=512, data=b"x" * 1024))
    seen = {after(tmp_path, "some", *ops, seed=seed)["a"] for seed in range(40)}
    assert all(content.startswith(b"12345") for content in seen)
    assert {content[512:1024] for content in seen} == {b"", b"x" * 512, bytes(512)}
    assert {content[1024:] for content in seen} == {b"", b"x" * 512}


def test_a_rename_is_whole_or_not_at_all(tmp_path: Path) -> None:
    before = {"a": b"new", "b": b"old"}
    for keep in ("nothing", "all", "some", "first"):
        for seed in range(4):
            found = after(tmp_path, keep, op(RENAME, paths=["/a", "/b"]), before=before, seed=seed)
            assert found in (before, {"b": b"new"})


def test_a_truncation_and_a_removal_wait_for_their_sync(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").write_bytes(b"12345")
    inode = (tmp_path / "root" / "a").stat().st_ino
    assert after(tmp_path, "nothing", op(TRUNCATE, inode, 2)) == {"a": b"12345"}
    assert after(tmp_path, "nothing", op(TRUNCATE, inode, 2), op(SYNC, inode)) == {"a": b"12"}
    gone = op(UNLINK, paths=["/a"])
    assert after(tmp_path, "nothing", gone) == {"a": b"12345"}
    assert after(tmp_path, "nothing", gone, op(SYNC_DIRECTORY, paths=["/"])) == {}


def test_nothing_is_in_a_directory_whose_name_was_never_synced(tmp_path: Path) -> None:
    ops = (
        op(MKDIR, paths=["/d"]),
        op(CREATE, paths=["/d/a"]),
        op(WRITE, data=b"1"),
        op(SYNC),
        op(SYNC_DIRECTORY, paths=["/d"]),
    )
    assert after(tmp_path, "nothing", *ops) == {}
    assert after(tmp_path, "nothing", *ops, op(SYNC_DIRECTORY, paths=["/"])) == {"d/a": b"1"}


@pytest.mark.parametrize("keep", ["nothing", "all"])
def test_what_a_failed_sync_should_have_written_is_gone_until_its_page_is_written_again(
    tmp_path: Path, keep: str
) -> None:
    base = (*MADE, op(SYNC), op(SYNC_DIRECTORY, paths=["/"]))
    failed = (*base, op(WRITE, offset=0, data=b"lost!"), op(SYNC_FAILED))
    assert after(tmp_path, keep, *failed, op(SYNC)) == {"a": b"12345"}
    again = (*failed, op(WRITE, offset=4, data=b"?"), op(SYNC))
    assert after(tmp_path, keep, *again) == {"a": b"lost?"}, "the kernel writes whole pages"
