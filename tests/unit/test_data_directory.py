"""What each process says of a data directory that it cannot use: it ends with 2 and with what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processor.log.data_directory import ADVICE, make_data_directory
from processor.log.embedded.log import Log
from processor.log.errors import LogError
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import environment

STARTS = [
    ["-m", "processor"],
    ["-m", "processor.event_store"],
    ["-m", "server", "serve"],
    ["-m", "server", "api"],
    ["-m", "server", "query"],
    ["-m", "server", "import", "-"],
]


@pytest.mark.parametrize("arguments", STARTS, ids=[each[-1] for each in STARTS[:-1]] + ["import"])
def test_a_data_directory_that_is_a_file_ends_a_process_with_what_to_do(arguments: list[str], tmp_path: Path) -> None:
    """The worker, the store and an import ended with a traceback, the others with the number of the error."""
    path = tmp_path / "file"
    path.touch()
    settings = {"http_bind": "127.0.0.1:0", "grpc_bind": "127.0.0.1:0", "event_store": "on"}
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(path, settings),
        text=True,
        timeout=PROCESS_PATIENCE,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith(f": the data directory {path} is a file: {ADVICE}")


def test_a_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    for _ in range(2):
        make_data_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_where_no_data_directory_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=f"cannot make the data directory {tmp_path}/file/x: Not a directory; name"):
        make_data_directory(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # of another user, or on a file system that is read-only
    with pytest.raises(LogError, match=f"the data directory {tmp_path} cannot be written to: name"):
        make_data_directory(tmp_path)


def test_a_log_beside_which_nobody_may_write_says_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands ended with a traceback."""
    Log(tmp_path).close()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("processor.log.embedded.log.FileLock", refuse)
    with pytest.raises(LogError, match=r"cannot open the log .*Permission denied: .*be the user that the server runs"):
        Log(tmp_path, create=False)
