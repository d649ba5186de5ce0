"""Fills the id index as a worker does, and looks at the clock: `python -m tests.bench.id_filling ORDER`.

The program behind the row `ids`, in a process of its own for the sake of its memory. It prints one line of JSON.
"""

import ctypes
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from processor.core.partitioning import U64
from processor.ids.index import IdIndex
from processor.ids.index_checkpoint import Covered
from tests.bench.results import Figures

SYNC_INTERVAL: Final = 5.0
"""As the worker does."""
MADE: Final = 100_000
"""Ids that are made at a time, while the clock stands."""
SAMPLE: Final = 50_000
"""Duplicates, or new ids in batches of another size, that are measured."""
OTHER_BATCHES: Final = (1000, 4000)
MADV_PAGEOUT: Final = 21
WITHOUT: Final = ", without waiting for a CPU"
"""What the thread itself took, whoever else is at work on the machine."""


class Order(Struct):
    """What to do."""

    directory: str
    ids: int
    marks: list[int]
    """Numbers of ids at which the times of a new id and of a duplicate are told."""
    batch: int = 500


def ids(numbers: U64) -> U64:
    """The 128 random bits of these ids (SplitMix64 of a counter): any of them can be made again."""
    mixed = (numbers[:, None] * np.uint64(2) + np.array([1, 2], np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Store:
    """The product's index on a claims log of which every record looks the same."""

    def __init__(self, directory: Path) -> None:
        self._index = IdIndex(directory / "index", "bench", lambda _: "record")
        self.claim = self._index.claim

    def sync(self, claims_offset: int) -> None:
        self._index.sync(Covered(claims_offset, "record", len(self._index)))

    def close(self) -> None:
        self._index.sync(Covered(self._index.checkpointed + 1, "record", len(self._index)), final=True)
        self._index.close()


class Filling:
    """The index and how long its calls took."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.count = 0
        self.offset = 0
        self.longest = self.longest_own = 0.0
        """Seconds of the longest call; without the time that the thread waited for a CPU."""
        self._took = self._own = 0.0
        """The same of all calls."""
        self._delays = os.open("/proc/thread-self/schedstat", os.O_RDONLY) if sys.platform == "linux" else None

    def fill(self, name: str, count: int, batch: int) -> Figures:
        """Claim so many new ids; µs for each."""
        self._took = self._own = 0.0
        for numbers in _ranges(self.count, count):
            self._claim(numbers, batch, True)
        return self._figures(name, count)

    def again(self, name: str, numbers: U64, batch: int) -> Figures:
        """Claim ids that are there; µs for each."""
        self._took = self._own = 0.0
        self._claim(numbers, batch, False)
        return self._figures(name, len(numbers))

    def _figures(self, name: str, count: int) -> Figures:
        return {f"{name}, µs": 1e6 * self._took / count, f"{name}{WITHOUT}, µs": 1e6 * self._own / count}

    def _claim(self, numbers: U64, batch: int, new: bool) -> None:
        made = ids(numbers)
        digests = made[:, 0].copy()
        for start in range(0, len(made), batch):
            some, theirs = made[start : start + batch], digests[start : start + batch]
            waited = self._waited()
            began = time.perf_counter()
            held, kept = self.store.claim(some, theirs, self.offset)
            seconds = time.perf_counter() - began
            own = seconds - (self._waited() - waited)
            self._took += seconds
            self._own += own
            self.longest = max(self.longest, seconds)
            self.longest_own = max(self.longest_own, own)
            if ((held == self.offset) != new).any() or (kept != theirs).any():
                raise SystemExit(f"wrong answer of the index at {self.count} ids")
            self.offset += 1
        self.count += len(made) if new else 0

    def _waited(self) -> float:
        return 0.0 if self._delays is None else int(os.pread(self._delays, 99, 0).split()[1]) / 1e9


def _ranges(start: int, count: int) -> list[U64]:
    stop = start + count
    return [np.arange(at, min(at + MADE, stop), dtype=np.uint64) for at in range(start, stop, MADE)]


def run(order: Order) -> Figures:
    """All that the order asks for. The new ids before a mark are its last tenth."""
    directory = Path(order.directory)
    before = _memory()
    store = Store(directory)
    filling = Filling(store)
    done = threading.Event()
    syncing = threading.Thread(target=_sync, args=(store, filling, done))
    syncing.start()
    found: Figures = {}
    for mark in order.marks:
        filling.fill("", mark - mark // 10 - filling.count, order.batch)
        found |= filling.fill(f"new id at {mark:,}", mark - filling.count, order.batch)
        found |= _duplicates(filling, f"at {mark:,}", order.batch)
    found["longest call, ms"] = 1e3 * filling.longest
    found[f"longest call{WITHOUT}, ms"] = 1e3 * filling.longest_own
    now = _memory()
    found |= {f"{name}, MiB": now[name] - before[name] for name in now}
    for batch in OTHER_BATCHES:
        found |= filling.fill(f"new id, batches of {batch}", 4 * SAMPLE, batch)
        found |= _duplicates(filling, f"batches of {batch}", batch)
    done.set()
    syncing.join()
    store.sync(filling.offset)
    found["disk, bytes an id"] = _disk(directory) / filling.count
    _take_back(directory)
    found["RssFile that is left when the system takes it back, MiB"] = _memory()["RssFile"] - before["RssFile"]
    found |= filling.fill("new id right after that", SAMPLE, order.batch)
    began = time.perf_counter()
    store.close()
    found["closing, ms"] = 1e3 * (time.perf_counter() - began)
    began = time.perf_counter()
    store = Store(directory)
    found["opening again, ms"] = 1e3 * (time.perf_counter() - began)
    store.close()
    return found


def _duplicates(filling: Filling, when: str, batch: int) -> Figures:
    """Of any that there are, and of the newest."""
    rng = np.random.default_rng(filling.count)
    any_of_them = np.unique(rng.integers(0, filling.count, SAMPLE, dtype=np.uint64))
    rng.shuffle(any_of_them)
    newest = np.arange(max(0, filling.count - SAMPLE), filling.count, dtype=np.uint64)
    return filling.again(f"duplicate of any, {when}", any_of_them, batch) | filling.again(
        f"duplicate of the newest, {when}", newest, batch
    )


def _sync(store: Store, filling: Filling, done: threading.Event) -> None:
    while not done.wait(SYNC_INTERVAL):
        store.sync(filling.offset)


def _disk(directory: Path) -> int:
    """Bytes that the files occupy."""
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


def _memory() -> Figures:
    """MiB that this process occupies: its own, and of files, which the system may take back."""
    text = Path("/proc/self/status").read_text() if sys.platform == "linux" else ""
    return {name: int(kib) / 1024 for name, kib in re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", text)}


def _take_back(directory: Path) -> None:
    """Have the system take the memory of all mapped files of a directory, as it does when it needs some."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name.startswith(str(directory.resolve())):
            start, stop = (int(each, 16) for each in addresses.split("-"))
            madvise(start, stop - start, MADV_PAGEOUT)


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    print(json.dumps(run(order)), flush=True)


if __name__ == "__main__":
    main()
