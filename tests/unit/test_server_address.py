"""Where a server is that runs on a data directory: noted, found, and not believed when it is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processor.log.errors import Locked
from processor.log.file_lock import LOOK, FileLock, holder_of
from server.processes.server_address import FILE, LOCK, find, note


def locked(data_dir: Path) -> FileLock:
    lock = FileLock(data_dir / LOCK)
    lock.acquire("taken")
    return lock


@pytest.mark.parametrize(
    ("scheme", "bind", "url"),
    [
        ("http", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https", "example.org:443", "https://example.org:443"),
        ("http", "0.0.0.0:80", "http://127.0.0.1:80"),
        ("http", "[::]:80", "http://[::1]:80"),
    ],
)
def test_a_server_is_found_while_it_holds_the_lock(tmp_path: Path, scheme: str, bind: str, url: str) -> None:
    assert find(tmp_path) is None
    lock = locked(tmp_path)
    assert find(tmp_path) is None, "it is not ready yet"
    note(tmp_path, scheme, bind)
    assert find(tmp_path) == url
    assert find(tmp_path) == url, "a look takes nothing"
    lock.close()
    assert find(tmp_path) is None


def test_the_note_of_a_predecessor_is_not_believed(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    (tmp_path / FILE).write_text(f'{{"pid": {os.getpid() + 1}, "url": "http://127.0.0.1:1"}}')
    assert find(tmp_path) is None
    lock.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\x00"])
def test_a_broken_note_is_none(tmp_path: Path, text: str) -> None:
    lock = locked(tmp_path)
    (tmp_path / FILE).write_text(text)
    assert find(tmp_path) is None
    lock.close()


def test_a_note_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    note(tmp_path / "nowhere", "http", "127.0.0.1:1")
    assert find(tmp_path / "nowhere") is None


def test_the_holder_of_a_lock_is_known_from_another_process(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    assert holder_of(path) is None
    lock = locked(tmp_path)
    code = "from pathlib import Path; from processor.log.file_lock import holder_of; print(holder_of(Path(%r)))"
    said = subprocess.run([sys.executable, "-c", code % str(path)], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(os.getpid())
    with pytest.raises(Locked):
        FileLock(path).acquire("taken", LOOK)
    lock.close()
    assert holder_of(path) is None
