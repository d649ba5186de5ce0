"""Which users changed, and by which message, for the live feed.

Each row keeps the offset and partition of the last message applied to it. So the users that changed since any position
of the log, however old and from whichever process, are those with a row beyond it. A short history of the latest
changes answers the same at once for recent positions.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from processor.core.growing_arrays import I64, Segments
from processor.core.tables.table_rows import NEVER

MARK: Final = np.dtype([("offset", "<i8"), ("partition", "<i4")])
_EMPTY: Final = np.array((NEVER, 0), MARK)

KEPT: Final = 1 << 18
"""Changed rows in the short history: 5 MiB."""
STEPS: Final = 4096
"""Batches in the short history."""


class Step(NamedTuple):
    """The changed rows of a batch: their users, projects, and last messages applied. Shape (n,) each."""

    partition: int
    highest: int
    owners: I64
    homes: I64
    offsets: I64


class RecentChanges:
    """The marks (partition and offset) of all rows, by row number, and the latest changes. Nothing here locks."""

    def __init__(self, kept: int = KEPT) -> None:
        self.marks = Segments(_EMPTY)
        self._kept = kept
        self._size = 0
        self._steps: deque[Step] = deque()
        self._forgotten: dict[int, int] = {}
        """partition -> the highest offset of a change that is no longer in the short history."""

    def note(self, partition: int, rows: I64, offsets: I64, owners: I64, homes: I64) -> None:
        """Note changed rows; those without a user (`owners` 0) are not part of the history."""
        marks = np.empty(len(rows), MARK)
        marks["offset"], marks["partition"] = offsets, partition
        self.marks.put(rows, marks)
        of_users = np.flatnonzero(owners)
        if not len(of_users):
            return
        offsets = offsets[of_users]
        self._steps.append(Step(partition, int(offsets.max()), owners[of_users], homes[of_users], offsets))
        self._size += len(of_users)
        while self._size > self._kept or len(self._steps) > STEPS:
            oldest = self._steps.popleft()
            self._size -= len(oldest.owners)
            known = self._forgotten.get(oldest.partition, NEVER)
            self._forgotten[oldest.partition] = max(known, oldest.highest)

    def steps_since(self, since: Mapping[int, int]) -> list[Step] | None:
        """Return batches that include all changes beyond `since` (partition -> offset); None: some are forgotten."""
        if any(offset > since.get(partition, NEVER) for partition, offset in self._forgotten.items()):
            return None
        return [step for step in self._steps if step.highest > since.get(step.partition, NEVER)]

    def beyond(self, rows: I64, since: Mapping[int, int]) -> I64:
        """Return those of these rows whose last message is beyond `since`."""
        bounds = np.full(max(since, default=0) + 1, NEVER, np.int64)
        for partition, offset in since.items():
            bounds[partition] = offset
        marks = self.marks.take(rows)
        partitions = marks["partition"]
        known = partitions < len(bounds)
        bound = np.where(known, bounds[np.where(known, partitions, 0)], NEVER)
        return rows[marks["offset"] > bound]


def changed_between(steps: Iterable[Step], since: Mapping[int, int], until: Mapping[int, int]) -> dict[int, I64]:
    """Return project -> its users, ascending, with a change beyond `since` and not beyond `until`."""
    owners, homes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step in steps:
        low, high = since.get(step.partition, NEVER), until.get(step.partition, NEVER)
        which = (step.offsets > low) & (step.offsets <= high)
        owners.append(step.owners[which])
        homes.append(step.homes[which])
    users, first = np.unique(np.concatenate(owners), return_index=True)
    of = np.concatenate(homes)[first]
    return {home: users[of == home] for home in np.unique(of).tolist()}
