"""Kinds of events: a project and a `Dim`, with the rows that follow from them, looked up once for each kind.

Nearly every event of a message may have a kind of its own, and the next message has the same kinds again. So what a
kind comes to (the group of users' rows, the hour's row, whether the event failed) is cached by its number.
"""

from collections.abc import Sequence
from sys import intern
from typing import Final, cast

import numpy as np

from processor.core.events.columns import Dim
from processor.core.events.compiled_rows import PackedDims
from processor.core.events.fields import ERRORS
from processor.core.events.message import Message
from processor.core.growing_arrays import I64, Records, Segments
from processor.core.hash_index import HashIndex, name_hashes
from processor.core.tables.hour_rows import HourRows
from processor.core.tables.table_rows import HOURS_PER_DAY
from processor.core.tables.user_rows import UserRows

MAX_KINDS: Final = 16_384
"""Cached kinds, about 300 bytes each, beside those of the messages applied last."""

_NUMBER: Final = np.array((0,), [("kind", "<i4")])
_KIND: Final = np.dtype([("group", "<i4"), ("hour", "<i4"), ("error", "?"), ("_", "V3")])


class EventKinds:
    """The cached kinds of a partition."""

    def __init__(self, users: UserRows, hours: HourRows) -> None:
        """Groups and hours that do not exist yet are added to `users` and `hours`."""
        self._users = users
        self._hours = hours
        self._projects: dict[str, _OfProject] = {}
        self._kinds = Segments(np.zeros((), _KIND))
        self._new: list[tuple[str, Dim]] = []
        """Kinds that have a number, and are not in `_kinds` yet."""
        self._packed = HashIndex()
        self._of_packed = Segments(_NUMBER)
        """The kinds of what is known by the hash of its bytes (`PackedDims`)."""

    def __len__(self) -> int:
        return len(self._kinds)

    def of(self, messages: Sequence[Message], dims: I64, chosen: slice | I64) -> Records:
        """Return the kind of each of the `chosen` events of some messages; `dims` are the dims of all of their events,
        places in the dictionary of their own message.

        Nothing is added for a kind that no chosen event has.
        """
        if len(self) > MAX_KINDS:
            self._projects.clear()
            self._kinds = Segments(np.zeros((), _KIND))
            self._packed, self._of_packed = HashIndex(), Segments(_NUMBER)
        sections, starts, counts, end = _sections(messages)
        codes = (dims + np.repeat(np.array(starts, np.int64), counts))[chosen]
        is_used = np.zeros(end, np.bool_)
        is_used[codes] = True
        numbers = np.empty(end, np.int64)
        for project, names, start in sections:
            used = np.flatnonzero(is_used[start : start + len(names)])
            known = self._projects.get(project)
            if known is None:
                known = self._projects[project] = _OfProject(self, project)
            if isinstance(names, PackedDims):
                numbers[used + start] = self._numbers_of(names, used, project, known)
                continue
            met = names if len(used) == len(names) else [names[place] for place in used.tolist()]
            numbers[used + start] = list(map(known.__getitem__, met))
        if self._new:
            self._make()
        return self._kinds.take(numbers[codes])

    def _numbers_of(self, dims: PackedDims, used: I64, project: str, known: "_OfProject") -> I64:
        """Return the kinds of some `Dim`s of a project. Only those that were not met before are decoded."""
        hashes = dims.hashes.take(used)
        low, high = name_hashes([project])[0].item()
        hashes["low"] ^= np.uint64(low)
        hashes["high"] ^= np.uint64(high)
        found = self._packed.find(hashes)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            once = np.sort(np.unique(hashes[unknown], return_index=True)[1])
            self._packed.add(hashes[unknown[once]])
            made = np.array([(known[dims.one(place)],) for place in used[unknown[once]].tolist()], _NUMBER.dtype)
            self._of_packed.put(self._of_packed.extend(len(made)), made)
            found[unknown] = self._packed.find(hashes[unknown])
        return self._of_packed.column("kind", found).astype(np.int64)

    def number(self, project: str, dim: Dim) -> int:
        """Give a new kind a number."""
        self._new.append((project, dim))
        return len(self) + len(self._new) - 1

    def _make(self) -> None:
        made = np.zeros(len(self._new), _KIND)
        made["hour"] = self._hours.numbers_of((project, *dim[:4]) for project, dim in self._new)
        made["group"] = [
            self._users.group((project, hour // HOURS_PER_DAY, provider, model, environment))
            for project, (hour, provider, model, environment, _, _) in self._new
        ]
        made["error"] = [status in ERRORS for _, (*_, status) in self._new]
        self._kinds.put(self._kinds.extend(len(made)), made)
        self._new = []


def _sections(messages: Sequence[Message]) -> tuple[list[tuple[str, Sequence[Dim], int]], list[int], list[int], int]:
    """Return codes of (project, dim) over all messages: each project of a message has all of its dims, and uses some.

    They are the sections (project, dims, the first code), the first code of each request's section, the events of each
    request, and how many codes there are.
    """
    sections: list[tuple[str, Sequence[Dim], int]] = []
    starts: list[int] = []
    counts: list[int] = []
    end = 0
    for message in messages:
        begins: dict[str, int] = {}
        for request in message.requests:
            project = request.source.project
            if project not in begins:
                begins[project] = end
                sections.append((project, message.dims, end))
                end += len(message.dims)
            starts.append(begins[project])
            counts.append(request.count)
    return sections, starts, counts, end


class _OfProject(dict[Dim, int]):
    """The numbers of a project's kinds."""

    def __init__(self, kinds: EventKinds, project: str) -> None:
        super().__init__()
        self._kinds = kinds
        self._project = project

    def __missing__(self, dim: Dim) -> int:
        hour, *names = dim
        number = self[cast(Dim, (hour, *map(intern, names)))] = self._kinds.number(self._project, dim)
        return number
