"""A container with too little memory: the kernel kills the processes, and the first line has said why."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import environment, wait_until

LIMIT = 100 << 20


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 100 MiB, where this user may make one."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    made = (root / "memory" if old else root) / f"test-{uuid.uuid4().hex[:8]}"
    try:
        made.mkdir()
        (made / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        if made.is_dir():
            made.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    yield made
    wait_until(lambda: not (made / "cgroup.procs").read_text())
    made.rmdir()


@pytest.mark.parametrize("role", ["serve", "api", "worker"])
def test_too_little_memory_is_told_first(group: Path, tmp_path: Path, role: str) -> None:
    program = (
        "import os, sys; open(sys.argv[1], 'w').write('0'); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    settings = {"http_bind": "127.0.0.1:0", "grpc_bind": "127.0.0.1:0"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(group / "cgroup.procs"), "-m", "server", role],
        env=environment(tmp_path / "data", settings),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
    finally:
        os.killpg(process.pid, 9)
        process.wait(PROCESS_PATIENCE)
        process.stderr.close()  # type: ignore[union-attr]
    assert line.startswith("spendstream: the memory limit of this container or service is 100 MiB, and")
    assert f"{role} needs" in line
