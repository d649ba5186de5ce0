"""One partition's latency histograms, in columns: an hour's events by bucket (`processor.core.events.latency`).

A histogram has the number of its hour's row. Its counts are in pages of 16 buckets, two doublings of the latency, and
only pages with events exist: so events are counted by address, without a look-up for each, and an hour of one event
takes one page of 128 bytes instead of 256 counts.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from processor.core import growing_arrays
from processor.core.events import latency
from processor.core.growing_arrays import I64, Segments
from processor.core.kernel.loaded import kernel
from processor.core.tables import table_rows
from processor.core.tables.hour_rows import HourRows
from processor.core.tables.numbered_rows import Drained, NumberedRows
from processor.core.tables.table_rows import NEVER, Histogram, HourKey

_PAGE_BITS: Final = 4
_PAGE: Final = 1 << _PAGE_BITS
"""Buckets of a page."""
_PAGES: Final = latency.BUCKETS >> _PAGE_BITS
"""Pages of a complete histogram."""
_CUT: Final = -1
"""Neither a bucket nor a count."""
_IN_PAGE: Final = np.arange(_PAGE)
_OF_ROW: Final = np.arange(_PAGES)

_encode = msgspec.json.Encoder().encode


class LatencyRows(NumberedRows):
    """The histograms, and which of them have changed since the last `drain`. One whose offset is `NEVER` is none."""

    def __init__(self, hours: HourRows, partition: int) -> None:
        """`hours` map keys to numbers."""
        super().__init__()
        self._hours = hours
        self._start = b'[%d,"latency",' % partition
        self._skipped = len(b'[%d,"hour",' % partition)
        self._offsets = Segments(np.array((NEVER,), [("offset", "<i8")]))
        self._pages = Segments(np.array((-1,), [("page", "<i4")]))
        """`_PAGES` for each histogram: the number of each of its pages, -1 for one that does not exist."""
        self._counts = Segments(np.array((0,), [("count", "<i8")]))
        """`_PAGE` for each page."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def rows(self) -> Iterator[tuple[HourKey, Histogram]]:
        """Yield all histograms. Makes an object for each: not for the hot path."""
        rows = self._there()
        places, changelogs = self._hours.places, self._marks.column("changelog", rows).tolist()
        numbers, starts = self._listed(rows)
        bounds = pairwise([*starts.tolist(), len(numbers)])
        for row, changelog, (start, end) in zip(rows.tolist(), changelogs, bounds, strict=True):
            offset, *pairs = numbers[start:end].tolist()
            counts = dict(zip(pairs[::2], pairs[1::2], strict=True))
            yield places[row], Histogram(self._key(row), offset, counts, changelog)

    def _key(self, row: int) -> bytes:
        return self._start + self._hours.keys[row][self._skipped :]

    def _there(self) -> I64:
        numbers = np.arange(len(self._marks))
        return np.flatnonzero(self._offsets.column("offset", numbers, ascending=True) != NEVER)

    # --- counting events --------------------------------------------------------------------------------------------

    def add(self, rows: I64, offsets: I64, buckets: NDArray[np.uint8]) -> None:
        """Count events in those of their histograms that do not contain the event's message yet.

        `rows` and `offsets` have the number of the hour and the message's offset of each event, in the order of the
        log. Events that were not measured are left out. All these histograms are written again, see `SumRows.add_to`.

        The compiled kernel counts one event after the other, where it runs and no histogram contains its message; else
        it changes nothing, but that pages of others may exist already.
        """
        self._grow()
        buckets = np.ascontiguousarray(buckets)
        while kernel is not None:
            offsets_of, pages, counts, marks = (
                each.parts for each in (self._offsets, self._pages, self._counts, self._marks)
            )
            counted = kernel.count_latencies(
                offsets_of, pages, counts, marks, growing_arrays.BITS, _PAGE_BITS, rows, offsets, buckets, NEVER
            )
            if counted is None:
                break
            touched, came, missing = counted
            if not missing:
                self._touched(touched)
                self._length += came
                return
            self._make_pages(np.unique(np.frombuffer(missing, np.int64)))
        self._add_by_numpy(rows, offsets, buckets)

    def _add_by_numpy(self, rows: I64, offsets: I64, buckets: NDArray[np.uint8]) -> None:
        """`add` with as many calls for all events as for one."""
        known = buckets != latency.UNKNOWN
        if not known.all():
            rows, offsets, buckets = rows[known], offsets[known], buckets[known]
        held = self._offsets.column("offset", rows)
        is_open = held < offsets
        self._touch_each(rows)
        if not is_open.all():
            rows, offsets, buckets, held = rows[is_open], offsets[is_open], buckets[is_open], held[is_open]
        self._length += len(np.unique(rows[held == NEVER]))
        self._set_offsets(rows, offsets)
        for part, at, _ in self._counts.split(self._cells(rows << 8 | buckets)):
            np.add.at(part["count"], at, 1)  # counts an index as often as it comes

    def _grow(self) -> None:
        """Have a histogram for each number."""
        count = len(self._hours) - len(self._marks)
        if count:
            self._marks.extend(count)
            self._offsets.extend(count)
            self._pages.extend(count * _PAGES)

    def _set_offsets(self, rows: I64, offsets: I64) -> None:
        """Set the offsets of `rows`, which may repeat: numpy sets the last of several."""
        for part, at, which in self._offsets.split(rows):
            part["offset"][at] = offsets[which]

    def _cells(self, pairs: I64) -> I64:
        """Return where the counts of pairs are, each `row * 256 + bucket`. Adds the pages that do not exist."""
        places = pairs >> _PAGE_BITS
        pages = self._pages.column("page", places).astype(np.int64)
        missing = np.flatnonzero(pages < 0)
        if len(missing):
            fresh = np.unique(places[missing])
            made = self._make_pages(fresh)
            pages[missing] = made[np.searchsorted(fresh, places[missing])]
        return pages << _PAGE_BITS | pairs & _PAGE - 1

    def _make_pages(self, places: I64) -> I64:
        """Make the pages of these places, each `row * _PAGES + page of its histogram`; return their numbers."""
        made = self._counts.extend(len(places) * _PAGE)[::_PAGE] >> _PAGE_BITS
        for part, at, which in self._pages.split(places):
            part["page"][at] = made[which]
        return made

    def touch_all(self) -> None:
        """Have every histogram written with the next flush."""
        self._touch(self._there())

    # --- the changelog ----------------------------------------------------------------------------------------------

    def drain(self) -> Drained:
        """Return what has changed since the last call."""
        rows = self._take_changed()
        numbers, starts = self._listed(rows)
        # All numbers become one text, which is split where the offsets were: half the time of a call for each row.
        offsets, numbers[starts] = numbers[starts].tolist(), _CUT
        listed = numbers.tolist()
        listed.append(_CUT)
        texts = _encode(listed)[1:-1].split(b"%d" % _CUT)[1:-1]
        values = [b"[%d%b]" % (offset, text[:-1]) for offset, text in zip(offsets, texts, strict=True)]
        return self._drained(rows, list(zip(map(self._key, rows.tolist()), values, strict=True)))

    def _listed(self, rows: I64) -> tuple[I64, I64]:
        """Return the numbers of histograms in the form of the changelog, one behind the other, and where each begins:
        the offset, then bucket and count of each bucket that has events."""
        pages, cells = self._cells_of(rows)
        counts = self._counts.column("count", cells.ravel())
        counted = np.flatnonzero(counts)
        of_page = pages[counted >> _PAGE_BITS]
        owners = of_page // _PAGES
        # Pages are in the order of rows and buckets, so counts are, too. Before the two numbers of the k-th count are
        # those of k others, and one offset for each row up to its own.
        found = np.empty(len(rows) + 2 * len(counted), np.int64)
        sizes = 1 + 2 * np.bincount(owners, minlength=len(rows))
        starts = np.cumsum(sizes) - sizes
        found[starts] = self._offsets.column("offset", rows)
        at = owners + 1 + 2 * np.arange(len(counted))
        found[at] = of_page % _PAGES << _PAGE_BITS | counted & _PAGE - 1
        found[at + 1] = counts[counted]
        return found, starts

    def _cells_of(self, rows: I64) -> tuple[I64, NDArray[np.int64]]:
        """Return the pages of these histograms, each as `place of the histogram in rows * _PAGES + page`; and where
        their counts are, shape (n, `_PAGE`)."""
        places = (rows[:, None] * _PAGES + _OF_ROW).ravel()
        pages = self._pages.column("page", places).astype(np.int64)
        there = np.flatnonzero(pages >= 0)
        return there, (pages[there, None] << _PAGE_BITS) + _IN_PAGE

    # --- reading back -----------------------------------------------------------------------------------------------

    def restore(self, keys: Sequence[bytes], values: Sequence[bytes], offsets: I64) -> None:
        """Read back histograms of distinct keys, with the offsets of their records. Raises `ValueError` for another
        format."""
        lists = table_rows.decode_lists(values)
        sizes = np.array(list(map(len, lists)), np.int64)
        try:
            numbers = np.fromiter(chain.from_iterable(lists), np.int64, int(sizes.sum()))
        except OverflowError:
            raise ValueError("not a row of the changelog: a count of latencies beyond 64 bits") from None
        starts = np.cumsum(sizes) - sizes
        pairs = np.delete(numbers, starts[sizes > 0])
        if (sizes % 2 == 0).any() or (pairs[::2] >> 8 != 0).any():
            raise ValueError("not a row of the changelog: latencies are an offset, and pairs of bucket and count")
        rows = self._hours.read(keys)
        self._clear(rows)
        self._length += len(rows)
        self._set_offsets(rows, numbers[starts])
        counts = pairs[1::2]
        for part, at, which in self._counts.split(self._cells(np.repeat(rows, sizes >> 1) << 8 | pairs[::2])):
            part["count"][at] = counts[which]
        self._move(rows, offsets)

    def remove(self, key: bytes) -> None:
        """Read back a tombstone. Raises `ValueError` for a key of another format."""
        rows = self._hours.read([key])
        self._clear(rows)
        self._move(rows, np.full(1, NEVER))

    def _clear(self, rows: I64) -> None:
        """Set all counts of distinct histograms to 0, and their offsets to `NEVER`."""
        self._grow()
        self._length -= int(np.count_nonzero(self._offsets.column("offset", rows) != NEVER))
        self._set_offsets(rows, np.full(len(rows), NEVER))
        _, cells = self._cells_of(rows)
        for part, at, _ in self._counts.split(cells.ravel()):
            part["count"][at] = 0
