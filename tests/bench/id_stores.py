"""What keeps the ids of a partition: the product's index and what else could, all behind the same two calls."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from processor.core.partitioning import U64
from processor.ids.index import IdIndex
from processor.ids.manifest import Covered
from tests.support.dict_index import DictIndex

PACKAGES: Final = {"rocksdb": "rocksdict", "lmdb": "lmdb"}
INSTALL: Final = ".venv/bin/uv pip install --python .venv/bin/python --group stores"
VALUE: Final = np.dtype([("offset", "<i8"), ("digest", "<u8")])
Answer = tuple[NDArray[np.int64], U64]


class Store(Protocol):
    """A `ClaimIndex` that reaches the disk: by itself, and all of it at `sync`."""

    def claim(self, keys: U64, digests: U64, offset: int) -> Answer: ...
    def sync(self, claims_offset: int) -> None: ...
    def close(self) -> None: ...


class Memory(DictIndex):
    """A dict, which keeps nothing."""

    def __init__(self, directory: Path) -> None:
        super().__init__()

    def sync(self, claims_offset: int) -> None:
        pass

    def close(self) -> None:
        pass


class Rocks:
    """RocksDB without a log of its own (the claims log is one), a filter of ten bits an id in memory, universal
    compaction on two threads, a cache of 256 MiB."""

    def __init__(self, directory: Path) -> None:
        rocks: Any = importlib.import_module("rocksdict")
        options = rocks.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compaction_style(rocks.DBCompactionStyle.universal())
        options.set_compression_type(rocks.DBCompressionType.none())
        options.set_write_buffer_size(64 << 20)
        options.set_max_write_buffer_number(4)
        options.set_max_background_jobs(2)
        options.set_max_open_files(-1)
        table = rocks.BlockBasedOptions()
        table.set_bloom_filter(10, False)
        table.set_block_cache(rocks.Cache(256 << 20))
        table.set_block_size(4096)
        options.set_block_based_table_factory(table)
        self._db: Any = rocks.Rdict(str(directory / "rocks"), options)
        write = rocks.WriteOptions()
        write.disable_wal = True
        self._db.set_write_options(write)
        self._batch: Callable[..., Any] = lambda: rocks.WriteBatch(raw_mode=True)

    def claim(self, keys: U64, digests: U64, offset: int) -> Answer:
        texts = _texts(keys)
        found = self._db.get(texts)
        batch = self._batch()
        put = batch.put
        values = _values(digests, offset)
        for text, value, there in zip(texts, values, found, strict=True):
            if there is None:
                put(text, value)
        self._db.write(batch)
        return _answer(found, values)

    def sync(self, claims_offset: int) -> None:
        self._db.flush()

    def close(self) -> None:
        self._db.close()


class Lmdb:
    """LMDB in a writable map, flushed at `sync` only; keys of a batch in order, which saves it half of the work."""

    def __init__(self, directory: Path) -> None:
        lmdb: Any = importlib.import_module("lmdb")
        self._env: Any = lmdb.open(
            str(directory / "lmdb"), map_size=1 << 38, writemap=True, sync=False, metasync=False, map_async=True
        )

    def claim(self, keys: U64, digests: U64, offset: int) -> Answer:
        texts = _texts(keys)
        values = _values(digests, offset)
        found: list[bytes | None] = [None] * len(texts)
        with self._env.begin(write=True, buffers=False) as transaction:
            get, put = transaction.get, transaction.put
            for number in sorted(range(len(texts)), key=texts.__getitem__):
                there = found[number] = get(texts[number])
                if there is None:
                    put(texts[number], values[number])
        return _answer(found, values)

    def sync(self, claims_offset: int) -> None:
        self._env.sync(True)

    def close(self) -> None:
        self._env.close()


class Sorted:
    """Sorted arrays in mapped files, never changed but merged eight by eight, and a dict for the newest ids."""

    NEWEST: Final = 1 << 17
    FAN: Final = 8
    ROW: Final = np.dtype([("first", "<u8"), ("second", "<u8"), ("offset", "<i8"), ("digest", "<u8")])

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._newest = DictIndex()
        self._levels: list[list[NDArray[Any]]] = [[]]
        self._made = 0

    def claim(self, keys: U64, digests: U64, offset: int) -> Answer:
        held = np.full(len(keys), -1, np.int64)
        kept = np.zeros(len(keys), np.uint64)
        for level in self._levels:
            for run in level:
                at = np.searchsorted(run["first"], keys[:, 0])  # equal first halves: once in 10^9 ids, not handled
                at[at == len(run)] = 0
                row = run[at]
                hit = np.flatnonzero((row["first"] == keys[:, 0]) & (row["second"] == keys[:, 1]))
                held[hit], kept[hit] = row["offset"][hit], row["digest"][hit]
        missing = np.flatnonzero(held < 0)
        held[missing], kept[missing] = self._newest.claim(keys[missing], digests[missing], offset)
        if len(self._newest) >= self.NEWEST:
            self._freeze()
        return held, kept

    def _freeze(self) -> None:
        claims = self._newest._claims  # noqa: SLF001 - all of them at once
        rows = np.array([(*key, *value) for key, value in claims.items()], self.ROW)
        self._newest = DictIndex()
        level = 0
        self._levels[0].append(self._write(rows))
        while len(self._levels[level]) == self.FAN:
            merged = self._write(np.concatenate(self._levels[level]))
            self._levels[level] = []
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(merged)

    def _write(self, rows: NDArray[Any]) -> NDArray[Any]:
        self._made += 1
        path = self._directory / f"{self._made}.run"
        rows = rows[np.argsort(rows["first"])]
        mapped = np.memmap(path, self.ROW, "w+", shape=len(rows))
        mapped[:] = rows
        return mapped

    def sync(self, claims_offset: int) -> None:
        for level in self._levels:
            for run in level:
                assert isinstance(run, np.memmap)
                run.flush()

    def close(self) -> None:
        self._levels = []


def _texts(keys: U64) -> list[bytes]:
    return np.ascontiguousarray(keys).view("V16")[:, 0].tolist()  # type: ignore[no-any-return]


def _values(digests: U64, offset: int) -> list[bytes]:
    values = np.empty(len(digests), VALUE)
    values["offset"], values["digest"] = offset, digests
    return values.view("V16").tolist()


def _answer(found: list[bytes | None], values: list[bytes]) -> Answer:
    rows = np.frombuffer(
        b"".join(value if there is None else there for there, value in zip(found, values, strict=True)), VALUE
    )
    return np.ascontiguousarray(rows["offset"]), np.ascontiguousarray(rows["digest"])


class Index:
    """The product's index on a claims log of which every record looks the same."""

    def __init__(self, directory: Path) -> None:
        self._index = IdIndex(directory / "index", "bench", lambda _: "record")
        self.claim = self._index.claim

    def sync(self, claims_offset: int) -> None:
        self._index.sync(Covered(claims_offset, "record", len(self._index)))

    def close(self) -> None:
        self._index.sync(Covered(self._index.checkpointed + 1, "record", len(self._index)), final=True)
        self._index.close()


STORES: Final[dict[str, Callable[[Path], Store]]] = {
    "index": Index,
    "sorted": Sorted,
    "rocksdb": Rocks,
    "lmdb": Lmdb,
    "dict": Memory,
}


def missing(name: str) -> bool:
    """Whether a store's package has to be installed first."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
