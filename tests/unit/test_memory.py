"""The memory limit of a container, as both versions of control groups have it."""

import sys
from pathlib import Path

import pytest

from processor import memory


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "104857600\n"}, 100 << 20),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),  # the root of a machine has no such file
        ("0::/a.slice/b.service\n", {"a.slice/memory.max": "2097152", "a.slice/b.service/memory.max": "max"}, 2 << 20),
        ("0::/a/b\n", {"a/memory.max": "4194304", "a/b/memory.max": "1048576"}, 1 << 20),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "3145728"}, 3 << 20),
        ("4:cpu,memory:/docker/1f\n", {"memory/memory.limit_in_bytes": "3145728"}, 3 << 20),  # the host's path
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "3145728"}, None),
    ],
)
def test_the_lowest_limit_counts(tmp_path: Path, own: str, files: dict[str, str], limit: int | None) -> None:
    (tmp_path / "own").write_text(own)
    assert memory.cgroup_limit(tree(tmp_path / "cgroups", files), tmp_path / "own") == limit


def test_elsewhere_there_is_no_limit(tmp_path: Path) -> None:
    assert memory.cgroup_limit(tmp_path, tmp_path / "nothing") is None


def test_what_is_too_low_is_told_with_what_is_needed() -> None:
    told = memory.too_low("serve", limit=100 << 20)
    assert told is not None
    assert "100 MiB" in told
    assert "serve needs 256 MiB" in told
    assert memory.too_low("serve", limit=512 << 20) is None, "a container of 512 MiB is a normal place to run"
    with_store = memory.too_low("serve", limit=512 << 20, has_store=True)
    assert with_store is not None
    assert "serve needs 640 MiB" in with_store
    assert "SPENDSTREAM_EVENT_STORE=off" in with_store
    assert memory.too_low("serve", limit=1 << 30, has_store=True) is None
    assert memory.too_low("serve", 3, limit=300 << 20) is not None
    assert memory.too_low("worker", limit=256 << 20) is None


def test_memory_is_given_back_when_a_burst_is_over() -> None:
    at, given = 100.0, []
    trimming = memory.Trimming(lambda: given.append(at), lambda: at)
    for size in (1, memory.BURST - 2):
        trimming.worked(size)
        at += 60
        trimming.rested()
    assert not given  # not worth it

    trimming.worked(1)
    at += 0.9 * memory.QUIET
    trimming.rested()
    trimming.worked(1)  # it goes on
    at += 0.9 * memory.QUIET
    trimming.rested()
    assert not given
    at += 0.2 * memory.QUIET
    for _ in range(3):
        trimming.rested()
    assert given == [at]


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of another system may have nothing like it")
def test_memory_that_is_free_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    small = [bytes(1000) for _ in range(100_000)]  # 24,000 pages
    kept = small[::100]  # the rest of their pages is free, but within the heap
    del small
    before = resident()
    memory.trim()
    assert len(kept) == 1000
    assert before - resident() > 10_000
