"""An event store made of rows: segments on the disk, and the catalog that names them, without a log or a role."""

import random
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import EPOCH
from processor.core.money import PLACES
from processor.event_store import manifest as manifests
from processor.event_store.catalog import Catalog
from processor.event_store.id_index import U32, SoughtHashes, text_hashes
from processor.event_store.manifest import Kind, Manifest, ProjectSums, Segment
from processor.event_store.schema import SCHEMA
from processor.event_store.user_counts import Tally
from server.explore.engine import Engine
from server.explore.segment_files import SegmentFiles
from server.explore.snapshot import Snapshot

NOON: Final = 1_776_700_800_000_000
"""2026-04-20T16:00:00Z: event times of the tests lie around it."""

UNCOUNTED: Final = "u3"
"""The user of whom no index says how many events there are."""

Row = dict[str, Any]
"""One event by the names of the schema. Times are microseconds, `cost_usd` picodollars or None, `extra` JSON text."""


def make_row(rng: random.Random | None = None, **overrides: Any) -> Row:
    """Return one event with an id of its own; `log_*` are set when it is stored."""
    rng = rng or random.Random()
    digits = f"{rng.getrandbits(128):032x}"
    found: Row = dict.fromkeys(SCHEMA.names)
    found |= {
        "event_id": f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}",
        "trace_id": f"trace-{digits[:6]}",
        "span_id": digits[16:],
        "timestamp": NOON,
        "provider": "openai",
        "model": "gpt-4o",
        "operation": "chat",
        "latency_ms": 843.0,
        "input_tokens": 512,
        "output_tokens": 128,
        "cost_usd": 3_400_000_000,
        "status": "success",
        "stream": False,
        "environment": "production",
        "sdk_version": "1.4.2",
        "kind": "call",
        "received_at": NOON + 1_000_000,
        "cost_source": "client",
        "project": "default",
    }
    return {**found, **overrides}


def random_row(rng: random.Random, **overrides: Any) -> Row:
    """Return an event in which every field takes one of few values, absent ones included."""
    kind = rng.choice(["call", "call", "span"])
    priced = kind == "call" and rng.random() < 0.8
    found: Row = {
        "trace_id": f"trace-{rng.randrange(6)}",
        "parent_span_id": rng.choice([None, "p1", "p2"]),
        "timestamp": NOON + rng.choice([0, 0, 1, 1000, 250_000, 60_000_000, 3_600_000_000]) * rng.randrange(-3, 4),
        "provider": rng.choice(["openai", "anthropic", "custom"]),
        "model": rng.choice(["gpt-4o", "claude", "' OR 1=1 --", "ünï"]),
        "operation": rng.choice(["chat", "embed"]),
        "latency_ms": rng.choice([0.0, 1.5, 843.0, 1e6]),
        "ttft_ms": rng.choice([None, 12.5]),
        "cached_tokens": rng.choice([None, 0, 7]),
        "cost_usd": rng.choice([0, 1, 3_400_000_000, 10**18]) if priced else None,
        "cost_source": "client" if priced else None,
        "status": rng.choice(["success", "error", "timeout"]),
        "error_code": rng.choice([None, "E1", "e;DROP TABLE x"]),
        "error_message": rng.choice([None, "it failed\n"]),
        "finish_reason": rng.choice([None, "stop", "length"]),
        "environment": rng.choice(["production", "staging"]),
        "user_id": rng.choice([None, "u1", "u2", UNCOUNTED]),
        "session_id": rng.choice([None, "s1", "s2"]),
        "tags": rng.choice([None, {"team": "search"}, {"team": "ads", "a:b": "c\\d"}, {"x": ""}]),
        "tools_used": rng.choice([None, ["grep"], ["grep", "ls"], ["ls", "ls"]]),
        "eval_scores": rng.choice([None, {"good": 0.25}, {"good": 1.0, "bad": -3.5}]),
        "prompt_hash": rng.choice([None, "h1", "h2"]),
        "kind": kind,
        "name": rng.choice([None, "step", "tool"]) if kind == "call" else rng.choice(["step", "tool"]),
        "reasoning_tokens": rng.choice([None, 3]),
        "received_at": NOON + rng.randrange(10**9),
        "extra": rng.choice([None, '{"n":1.50,"o":{"p":[1,2]}}']),
        "project": rng.choice(["default", "default", "other"]),
    }
    return make_row(rng, **{**found, **overrides})


class ListIndex:
    """An id index for tests: which row groups have an id, and how many events some users have, in a JSON file."""

    def __init__(self, path: Path, segment: Segment | None = None) -> None:
        del segment  # whose digest is not that of this form
        found = dict[str, dict[str, list[int]]]
        self._groups, self._tallies = msgspec.json.decode(path.read_bytes(), type=tuple[found, found])

    def row_groups(self, kind: str, text: str) -> list[int]:
        """See `server.explore.segment_files.IdIndex`."""
        return self._groups[kind].get(text, [])

    def entries(self, kind: str, wanted: SoughtHashes) -> tuple[U32, NDArray[np.uint16]]:
        """See `server.explore.segment_files.IdIndex`."""
        hashes = dict(zip(self._groups[kind], text_hashes(self._groups[kind]).tolist(), strict=True))
        pairs = [(hashes[text], group) for text, groups in self._groups[kind].items() for group in groups]
        found = [pair for pair in pairs if pair[0] in set(wanted.hashes.tolist())]
        return np.array([pair[0] for pair in found], np.uint32), np.array([pair[1] for pair in found], np.uint16)

    def tally(self, project: str, user: str) -> Tally | None:
        """See `server.explore.segment_files.IdIndex`."""
        return None if user == UNCOUNTED else Tally(*self._tallies.get(project, {}).get(user, (0, 0)))

    def groups_of(self, kind: str, texts: Sequence[str]) -> NDArray[np.uint16]:
        """See `server.explore.segment_files.IdIndex`."""
        found = {group for text in texts for group in self._groups[kind].get(text, [])}
        return np.array(sorted(found), np.uint16)

    @staticmethod
    def write(path: Path, rows: Sequence[Row], size: int) -> None:
        """Write the index of a segment whose row groups have `size` rows."""
        groups: dict[str, dict[str, list[int]]] = {}
        for kind in ("event", "trace", "session", "user"):
            found: dict[str, set[int]] = {}
            for number, row in enumerate(rows):
                if row[f"{kind}_id"] is not None:
                    found.setdefault(row[f"{kind}_id"], set()).add(number // size)
            groups[kind] = {text: sorted(each) for text, each in found.items()}
        tallies: dict[str, dict[str, list[int]]] = {}
        for row in rows:
            user = row["user_id"]
            if user not in {None, UNCOUNTED}:
                tally = tallies.setdefault(row["project"], {}).setdefault(user, [0, 0])
                tally[0] += 1
                tally[1] += row["kind"] == "call"
        path.write_bytes(msgspec.json.encode([groups, tallies]))


def table_of(rows: Sequence[Row]) -> Any:
    """Return rows as a `pyarrow.Table` of the schema."""
    columns = [pa.array([_cell(name, row[name]) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def _cell(name: str, value: Any) -> Any:
    if name == "cost_usd" and value is not None:
        return Decimal(value).scaleb(-PLACES)
    return list(value.items()) if isinstance(value, dict) else value


def write_segment(
    rows: Sequence[Row], directory: Path, partition: int, start: int, end: int, *, level: int = 0, group_rows: int = 8
) -> Segment:
    """Write the files of one segment, and return what its manifest says."""
    name = manifests.segment_id(partition, start, end)
    ordered = sorted(rows, key=lambda row: (row["project"], row["timestamp"], row["log_offset"], row["log_index"]))
    if ordered:
        pq.write_table(table_of(ordered), directory / f"{name}.parquet", row_group_size=group_rows, compression="zstd")
        ListIndex.write(directory / f"{name}.idx", ordered, group_rows)
    times = [row["timestamp"] for row in rows] or [0]
    arrivals = [row["received_at"] for row in rows] or [0]
    return Segment(
        id=name,
        partition=partition,
        start=start,
        end=end,
        level=level,
        rows=len(rows),
        calls=sum(row["kind"] == "call" for row in rows),
        time_min=min(times),
        time_max=max(times),
        arrival_min=min(arrivals),
        arrival_max=max(arrivals),
        projects=tuple(_sums(ordered)),
    )


def _sums(ordered: Sequence[Row]) -> Iterable[ProjectSums]:
    for project in dict.fromkeys(row["project"] for row in ordered):
        rows = [row for row in ordered if row["project"] == project]
        calls = [row for row in rows if row["kind"] == "call"]
        yield ProjectSums(
            project=project,
            rows=len(rows),
            calls=len(calls),
            errors=sum(row["status"] in {"error", "timeout", "rate_limited"} for row in calls),
            input_tokens=sum(row["input_tokens"] or 0 for row in calls),
            output_tokens=sum(row["output_tokens"] or 0 for row in calls),
            cached_tokens=sum(row["cached_tokens"] or 0 for row in calls),
            cost=sum(row["cost_usd"] or 0 for row in calls),
            unpriced=sum(row["cost_usd"] is None for row in calls),
            time_min=min(row["timestamp"] for row in rows),
            time_max=max(row["timestamp"] for row in rows),
            first_row=next(number for number, row in enumerate(ordered) if row["project"] == project),
        )


class Stored(Struct):
    """A segment, and its rows for the oracle."""

    segment: Segment
    rows: list[Row]


class StoreDirectory:
    """A store that grows as tests say. Its rows in `rows` are what an oracle goes by."""

    def __init__(self, directory: Path, *, group_rows: int = 8) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog()
        self.files = SegmentFiles(directory, ListIndex)
        self._group_rows = group_rows
        self._live: dict[int, list[Stored]] = {}
        self._offset = 0

    @property
    def rows(self) -> list[Row]:
        """All rows that are stored."""
        return [row for stored in self._live.values() for each in stored for row in each.rows]

    def append(self, rows: Sequence[Row], *, partition: int = 0, messages: int = 3) -> Segment:
        """Store rows behind the last ones of a partition, as of several messages; set their `log_*`."""
        start = self.catalog.reached.get(partition, 0)
        for number, row in enumerate(rows):
            at = start + number * messages // max(len(rows), 1)
            row.update(log_partition=partition, log_offset=at, log_index=number)
        segment = self._write(rows, partition, start, start + messages)
        self._commit("fresh", segment)
        self._live.setdefault(partition, []).append(Stored(segment, [*rows]))
        return segment

    def merge(self, partition: int, first: int = 0, last: int | None = None) -> Segment:
        """Replace the live segments `first` to `last` (exclusive) of a partition by one; delete their files."""
        live = self._live[partition]
        parts = live[first:last]
        rows = [row for each in parts for row in each.rows]
        segment = self._write(rows, partition, parts[0].segment.start, parts[-1].segment.end, level=1)
        self._commit("merged", segment, [each.segment.id for each in parts])
        live[first:last] = [Stored(segment, rows)]
        self._delete(parts)
        return segment

    def expire(self, partition: int, count: int = 1) -> None:
        """Remove the rows of the first `count` live segments of a partition, as retention does."""
        live = self._live[partition]
        parts = live[:count]
        segment = self._write([], partition, parts[0].segment.start, parts[-1].segment.end)
        segment = msgspec.structs.replace(segment, is_absent=True)
        self._commit("expired", segment, [each.segment.id for each in parts])
        live[:count] = [Stored(segment, [])]
        self._delete(parts)

    def snapshot(self, engine: Engine, *, as_of: int = NOON + 10**9) -> Snapshot:
        """Return what a question sees now."""
        return Snapshot(engine, self.files, self.catalog.live(), self.catalog.reached, as_of=as_of, lag=10**6)

    def engine(self, **settings: Any) -> Engine:
        """Return an engine that reads this directory."""
        return Engine(self.directory, self.directory.parent / "spill", **settings)

    def _write(self, rows: Sequence[Row], partition: int, start: int, end: int, level: int = 0) -> Segment:
        return write_segment(rows, self.directory, partition, start, end, level=level, group_rows=self._group_rows)

    def _commit(self, kind: Kind, segment: Segment, replaces: Sequence[str] = ()) -> None:
        record = Manifest(kind=kind, segment=segment, replaces=tuple(replaces))
        self.catalog.apply(self._offset, segment.id.encode(), manifests.encode(record))
        self._offset += 1

    def _delete(self, parts: Sequence[Stored]) -> None:
        for each in parts:
            for suffix in (".parquet", ".idx"):
                (self.directory / f"{each.segment.id}{suffix}").unlink(missing_ok=True)


def plain(row: Mapping[str, Any]) -> Row:
    """Return a row as DuckDB or pyarrow gives it in the form of this module."""
    found = dict(row)
    for name in ("timestamp", "received_at"):
        if not isinstance(found[name], int):
            delta = found[name] - EPOCH
            found[name] = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    if found["cost_usd"] is not None:
        found["cost_usd"] = int(Decimal(found["cost_usd"]).scaleb(PLACES))
    for name in ("tags", "eval_scores"):
        found[name] = dict(found[name]) if found[name] else None
    return found
