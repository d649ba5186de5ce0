"""Where and under what conditions it was measured: the machine, the versions, the disk, and what processes use."""

import math
import os
import platform
import statistics
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

import apsw
from msgspec import Struct

from processor.core.kernel.loaded import RUNNING

LIBRARIES: Final = ("aiohttp", "apsw", "faust-streaming", "grpcio", "isal", "msgspec", "numpy", "protobuf", "uvloop")
FSYNCS: Final = 200
TICKS: Final = os.sysconf("SC_CLK_TCK")
PROC: Final = Path("/proc")
MIB: Final = 1 << 20


# --- conditions ------------------------------------------------------------------------------------------------------


def conditions(directory: Path) -> dict[str, str]:
    """What a reader must know to compare figures; `directory` is where the logs of the runs lie."""
    p50, p99 = fsync_latency(directory)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD")
        + (" and changes" if _git("status", "--porcelain", "-uno") else ""),
        "CPU": f"{_first('/proc/cpuinfo', 'model name') or platform.processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "compiled kernel": "yes" if RUNNING == "compiled" else "no: pure Python",
        "SQLite": apsw.sqlite_lib_version(),
        "fsync of 8 KiB": f"{_filesystem(directory)}, p50 {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms",
        "load before": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
    }


def _filesystem(directory: Path) -> str:
    """The kind of file system `directory` lies on."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "?"
    over = [(len(point), kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    return max(over)[1] if over else "?"


def fsync_latency(directory: Path) -> tuple[float, float]:
    """Seconds (p50, p99) that an append of a page and its fsync take."""
    path = directory / "fsync.probe"
    page = os.urandom(8192)
    took = []
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(page)
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(took), percentile(took, 99)


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "?"


def _first(path: str, name: str) -> str | None:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return None


# --- processes (Linux; elsewhere the figures are left out) -----------------------------------------------------------


def cpu_seconds(pid: int) -> float | None:
    """CPU time of all threads of a process since its start."""
    fields = _stat(pid)
    return None if fields is None else (int(fields[11]) + int(fields[12])) / TICKS


def waited(pid: int) -> float:
    """Seconds for which threads of a process were ready to run and had no core; 0 where the system does not say."""
    found = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            found += int(path.read_text().split()[1])
    return found / 1e9


def resident(pid: int) -> float | None:
    """MiB of memory a process occupies."""
    found = _first(f"/proc/{pid}/status", "VmRSS")
    return None if found is None else int(found.split()[0]) * 1024 / MIB


class Memory(Struct):
    """What a process occupies, MiB."""

    rss: float
    anon: float
    """Of it, what the system could take only by swapping it out."""
    file: float
    """Of it, pages of files, which the system may take back."""


def memory(pid: int) -> Memory | None:
    """What a process occupies; None if it is not there."""
    found = [_first(f"/proc/{pid}/status", name) for name in ("VmRSS", "RssAnon", "RssFile")]
    sizes = [int(each.split()[0]) * 1024 / MIB for each in found if each]
    return Memory(*sizes) if len(sizes) == len(found) else None


def peak(pid: int) -> float | None:
    """MiB of memory a process has occupied at most."""
    found = _first(f"/proc/{pid}/status", "VmHWM")
    return None if found is None else int(found.split()[0]) * 1024 / MIB


def children(pid: int) -> list[int]:
    """The process's children."""
    found = []
    for entry in PROC.glob("[0-9]*") if PROC.exists() else ():
        fields = _stat(int(entry.name))
        if fields is not None and int(fields[1]) == pid:
            found.append(int(entry.name))
    return found


def command_line(pid: int) -> list[str]:
    """Program and arguments of a process."""
    return (PROC / str(pid) / "cmdline").read_bytes().decode().split("\0")


def busy_seconds() -> float | None:
    """CPU time that the whole machine has spent on anything."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _stat(pid: int) -> list[str] | None:
    """The fields after the name: state, parent, ..."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
