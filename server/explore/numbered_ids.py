"""Texts as numbers, for what is added up by id in numpy: each is compared once for each row group that it comes in."""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from hashlib import md5
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from processor.event_store.segment_sums import picodollars
from server.explore.column_codes import column_codes
from server.explore.questions import Times
from server.explore.ranked import LONG, Ranked, RankedPlace
from server.explore.row_scan import RowScan, RowSpan, is_inside, kept_of_span
from server.explore.snapshot import EVERYTHING, Snapshot

Numbers = NDArray[np.int64]
Places = NDArray[np.int32]
Truths = NDArray[np.bool_]
"""Of each id whether it is chosen."""

MOST_ROWS: Final = 6_000_000
"""Of a range: 30 bytes each."""
MOST_BYTES: Final = 160 << 20
"""Of the ids of its row groups, each once in a row group."""

_LOW: Final = 0xFFFFFFFF


class RangeRows(NamedTuple):
    """All rows of a range."""

    ids: list[tuple["Ids", Places]]
    """Of each column of ids the different ones, and which of them each row has; -1: none."""
    values: Numbers


def read_range(
    snapshot: Snapshot,
    project: str,
    times: Times,
    ids: Iterable[str],
    columns: Iterable[str],
    value: Callable[[Any], Numbers],
) -> RangeRows | None:
    """Return the rows of a range: their ids, and what `value` makes of tables of their other columns, in one chunk.

    None: they are more than `MOST_ROWS`, of which nothing is read, or have too many ids. Raises `Refused`, `Stopped`,
    `SegmentGone`.
    """
    none = pa.array([], pa.string()).dictionary_encode()
    texts, values, size = {name: [none] for name in ids}, [np.empty(0, np.int64)], 0
    with RowScan(snapshot, project, EVERYTHING, times) as scan:
        spans = [span for piece in scan.pieces for span in scan.spans(piece)]
        if sum(span.end - span.begin for span in spans) > MOST_ROWS:
            return None
        for span in spans:
            snapshot.engine.check()
            table = _read(scan, span, times, {*texts, *columns})
            if not len(table):
                continue
            for name, chunks in texts.items():
                chunks.append(table[name].chunk(0).dictionary_encode())
                size += chunks[-1].dictionary.nbytes
            if size > MOST_BYTES:
                return None
            values.append(value(table))
    return RangeRows([numbered(chunks) for chunks in texts.values()], np.concatenate(values))


def _read(scan: RowScan, span: RowSpan, times: Times, columns: set[str]) -> Any:
    """Return the rows of a range that are in a row group, in one chunk, if there are any."""
    wanted = columns | (set() if is_inside(span, times) else {"timestamp"})
    if not span.is_below:
        wanted.add("log_offset")
    is_known = "kind" in wanted and span.is_whole and span.calls in {0, span.end - span.begin}
    table = scan.coded(span, sorted(wanted - {"kind"} if is_known else wanted))
    if is_known:
        places, kinds = pa.array(np.zeros(len(table), np.int32)), ["call" if span.calls else "span"]
        table = table.append_column("kind", pa.DictionaryArray.from_arrays(places, kinds))
    kept = kept_of_span(table, span, times)
    return (table if kept is None else table.filter(pa.array(kept))).combine_chunks()


def costs_of(table: Any) -> Numbers:
    """Return the costs of calls in picodollars, 0 of what is none."""
    found: Numbers = picodollars(table["cost_usd"].chunk(0)) * calls_of(table)
    return found


def calls_of(table: Any) -> Numbers:
    """Return 1 for each call, 0 for what is none."""
    codes = column_codes(table["kind"])
    found: Numbers = np.array([value == "call" for value in codes.values], np.int64)[codes.places]
    return found


def added(places: Places, values: Numbers, size: int) -> Numbers | None:
    """Return the sums of values by place; None: one is more than 64 bits have room for."""
    low, high = (np.zeros(size, np.int64) for _ in range(2))
    np.add.at(low, places, values & _LOW)
    if int(values.max(initial=0)) > _LOW or int(values.min(initial=0)) < 0:
        np.add.at(high, places, values >> 32)
    high += low >> 32
    if int(high.max(initial=0)) >= 1 << 30:
        return None
    found: Numbers = (high << 32) + (low & _LOW)
    return found


class Ids:
    """Different texts with numbers: their places among them."""

    def __init__(self, texts: Any) -> None:
        self.texts = texts
        """An Arrow array."""

    def numbers(self, texts: Any) -> Places:
        """Return the numbers of some texts, new ones for new texts; -1 for null."""
        coded = texts.combine_chunks().dictionary_encode()
        # All texts are looked for among the few, not the few among all: a table of 800,000 takes 0.3 s to make.
        there = pc.indices_nonzero(pc.is_in(self.texts, value_set=coded.dictionary))
        places = pc.index_in(coded.dictionary, value_set=self.texts.take(there))
        new, size = places.is_null().to_numpy(zero_copy_only=False), len(self.texts)
        numbers = np.full(len(new) + 1, -1, np.int32)  # the last one is that of null
        numbers[:-1][~new] = there.to_numpy()[places.drop_null().to_numpy()]
        if new.any():
            numbers[:-1][new] = np.arange(size, size + np.count_nonzero(new), dtype=np.int32)
            self.texts = pa.concat_arrays([self.texts, coded.dictionary.filter(pa.array(new))])
        found: Places = numbers[coded.indices.fill_null(-1).to_numpy()]
        return found

    def having(self, numbers: Places) -> Truths:
        """Return of each text whether its number is among some, in which -1 stands for none."""
        found = np.zeros(len(self.texts) + 1, np.bool_)
        found[numbers] = True
        return found[:-1]

    def of(self, chosen: Truths) -> Any:
        """Return the texts that are chosen."""
        return self.texts.take(pa.array(np.flatnonzero(chosen)))

    def grown(self, chosen: Truths) -> Truths:
        """Return a choice of what was there before as one of what is there now."""
        return np.append(chosen, np.zeros(len(self.texts) - len(chosen), np.bool_))

    def both(self, one: Truths, other: Truths) -> Truths:
        """Return what is in one of two choices."""
        found: Truths = self.grown(one) | self.grown(other)
        return found


def numbered(chunks: Sequence[Any]) -> tuple[Ids, Places]:
    """Return the different texts of some arrays of dictionaries, and which of them each row has; -1: none."""
    unified = pa.chunked_array(chunks).unify_dictionaries()
    numbers = [chunk.indices.fill_null(-1).to_numpy() for chunk in unified.chunks]
    return Ids(unified.chunk(0).dictionary), np.concatenate(numbers)


def chosen(numbers: Places, truths: Truths) -> Truths:
    """Return of each row whether what it has is chosen."""
    found: Truths = np.append(truths, False)[numbers]  # -1 is the last one
    return found


def first_ranked(ids: Any, values: Numbers, after: RankedPlace | None, limit: int, scale: int = 0) -> list[Ranked]:
    """Return the first of some ids behind a place: descending by value, then by id. `scale`: places of the values."""
    shown = np.flatnonzero(_behind(ids, values, scale, after)) if after is not None else np.arange(len(ids))
    table = pa.table({"id": ids.take(pa.array(shown)), "value": values[shown]})
    best = table.take(pc.select_k_unstable(table, limit, [("value", "descending"), ("id", "ascending")]))
    return [
        Ranked(name, Decimal(value).scaleb(-scale) if scale else value)
        for name, value in zip(best["id"].to_pylist(), best["value"].to_pylist(), strict=True)
    ]


def _behind(ids: Any, values: Numbers, scale: int, after: RankedPlace) -> Truths:
    last, name = int(Decimal(after.value).scaleb(scale)), after.id or None
    if after.digest:
        long = ids.filter(pc.greater(pc.binary_length(ids), LONG)).to_pylist()
        digests = {each: md5(each.encode(), usedforsecurity=False).hexdigest() for each in long}
        name = min((each for each, digest in digests.items() if digest == after.digest), default=None)
    found = values < last
    if name is not None:
        found |= (values == last) & pc.greater(ids, name).to_numpy(zero_copy_only=False)
    return found
