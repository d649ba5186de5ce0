"""A page of traces or sessions in the order of a value, without computing the value of all that match if possible.

A trace or session matches if one of its events does, but the value that it is sorted by is that of all of its events,
wherever they are. So those that match are found first, as candidates, by the time of their first matching event, the
latest first. If they are few, their values are computed with the id indexes. If the order is that of the start, the
latest ones are enough, as many as the page has: nothing starts later than its first matching event. For these the
latest events are looked at alone, then more of them: what has none there begins before. Else everything is read.
"""

from collections.abc import Sequence
from decimal import Decimal
from hashlib import md5
from typing import Annotated, Any, Final, NamedTuple, Protocol

from msgspec import Meta, Struct

CANDIDATES: Final = 500
"""Candidates that are valued with the id indexes."""

LEAST_GROWTH: Final = 4
MOST_GROWTH: Final = 64
MARGIN: Final = 4
"""If too few candidates are among the latest rows, so many times as many rows are looked at next, within these bounds:
as it would take for `MARGIN` times the candidates that are wanted."""
BEGAN_BEFORE: Final = 16
"""The same if enough are there, but have begun long before."""

LONG: Final = 128
"""Bytes of an id that a cursor has room for."""

_Value = Annotated[str, Meta(pattern=r"\A-?[0-9]{1,25}(\.[0-9]{1,12})?\Z")]


class RankedPlace(Struct, frozen=True, array_like=True):
    """The end of a page, in a cursor."""

    value: _Value
    """A decimal number."""
    id: Annotated[str, Meta(max_length=256)]
    digest: Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
    """The MD5 of an id that is longer than `LONG`, in its place; else empty."""


class Ranked(NamedTuple):
    """A trace or session and its value."""

    id: str
    value: int | Decimal

    @property
    def place(self) -> list[str]:
        """Return what `RankedPlace` is made of."""
        text = self.id.encode()
        value = f"{self.value:f}" if isinstance(self.value, Decimal) else str(self.value)
        return [value, self.id, ""] if len(text) <= LONG else [value, "", md5(text, usedforsecurity=False).hexdigest()]


class RankedBound(NamedTuple):
    """A place in the order of first matching events, the latest first, then by id: others come behind it."""

    start: int
    id: str = ""

    def is_behind(self, last: Ranked) -> bool:
        """Return whether all that come behind it come behind a trace or session in the order of starts."""
        return (-self.start, self.id) > (-last.value, last.id)


class Candidates(NamedTuple):
    """Some of what matches."""

    ids: Sequence[str]
    horizon: RankedBound | None
    """No other comes before it, by its first matching event; None: there is no other."""


def first_of(rows: Sequence[tuple[Any, ...]], most: int, beyond: RankedBound | None) -> Candidates:
    """Return the first of some (id, first matching event), which are in order; `beyond`: where others begin."""
    horizon = RankedBound(rows[most][1], rows[most][0]) if len(rows) > most else beyond
    return Candidates([row[0] for row in rows[:most]], horizon)


class RankedItem(Protocol):
    """What matches a question."""

    @property
    def first_look(self) -> int:
        """About how many of the latest rows are looked at first for those that began last."""
        ...

    def look(self, rows: int | None) -> bool:
        """Look at about so many of the latest rows alone from now on, or at all; return whether these are all.

        Of what has a matching event among them, those before count as if they did not match."""
        ...

    def starts(self) -> Sequence[int]:
        """Return times of first matching events, the latest first, `CANDIDATES` + 1 at most."""
        ...

    def candidates(self, most: int) -> Candidates:
        """Return those whose first matching event is the latest: those of the first `most` of `starts`, of `CANDIDATES`
        at most, and perhaps others."""
        ...

    def valued(self, ids: Sequence[str], after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first `limit` of some candidates behind a place: descending by value, then by id."""
        ...

    def all_valued(self, after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the same of all that match."""
        ...


def page_of(listed: RankedItem, by_start: bool, after: RankedPlace | None, limit: int) -> list[Ranked]:
    """Return the first `limit` of what matches behind a place; `by_start`: their value is their start."""
    if by_start:
        return _first_started(listed, after, limit)
    has_all = listed.look(listed.first_look)
    are_few = len(listed.starts()) <= CANDIDATES
    if not has_all:
        listed.look(None)
    if are_few:
        found = listed.candidates(CANDIDATES)
        if found.horizon is None:
            return listed.valued(found.ids, after, limit) if found.ids else []
    return listed.all_valued(after, limit)


def _first_started(listed: RankedItem, after: RankedPlace | None, limit: int) -> list[Ranked]:
    """Return the page in the order of starts, from as few of the latest rows as it takes."""
    rows, has_all = listed.first_look, False
    while not has_all:
        has_all = listed.look(rows)
        starts = listed.starts()
        wanted = limit if after is None else limit + sum(start >= Decimal(after.value) for start in starts)
        for most in (wanted, CANDIDATES):
            found = listed.candidates(most)
            if not has_all and len(found.ids) < limit:
                break  # no whole page is among them
            ranked = listed.valued(found.ids, after, limit) if found.ids else []
            if found.horizon is None or (len(ranked) == limit and found.horizon.is_behind(ranked[-1])):
                return ranked
        short = 1 + MARGIN * wanted // max(len(starts), 1)
        rows *= min(max(short, LEAST_GROWTH), MOST_GROWTH) if len(starts) < wanted else BEGAN_BEFORE
    return listed.all_valued(after, limit)


def sorted_behind(found: Sequence[Ranked], after: RankedPlace | None, limit: int) -> list[Ranked]:
    """Return the first `limit` of some items behind a place."""
    if after is not None:
        value, name = Decimal(after.value), after.id or None
        if after.digest:
            name = min((each.id for each in found if each.place[2] == after.digest), default=None)
        behind = [each for each in found if each.value == value and name is not None and each.id > name]
        found = [*behind, *(each for each in found if each.value < value)]
    return sorted(found, key=lambda each: (-each.value, each.id))[:limit]


def first_behind(valued: str, after: RankedPlace | None) -> tuple[str, list[Any]]:
    """Return a SELECT of the first rows behind a place of `valued`, a SELECT of `id` and `value`.

    The parameters come behind those of `valued`; the last one, which is not among them, is how many rows.
    """
    condition, params = "", []
    if after is not None:
        value, name = "CAST(? AS DECIMAL(38, 12))", "?"
        params = [after.value, after.value, after.id]
        if after.digest:
            name, params[2] = "(SELECT min(id) FROM valued WHERE md5(id) = ?)", after.digest
        condition = f"WHERE value < {value} OR (value = {value} AND id > {name})"
    return f"WITH valued AS ({valued}) SELECT * FROM valued {condition} ORDER BY value DESC, id LIMIT ?", params
