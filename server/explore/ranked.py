"""A page of traces or sessions in the order of a value, without computing the value of all that match if possible.

A trace or session matches if one of its events does, but the value that it is sorted by is that of all of its events,
wherever they are. So those that match are found first, as candidates, by the time of their first matching event, the
latest first. If they are few, their values are computed with the id indexes. If the order is that of the start, the
latest ones are enough, as many as the page has: nothing starts later than its first matching event. Else everything is
read.
"""

from collections.abc import Sequence
from decimal import Decimal
from hashlib import md5
from typing import Annotated, Any, Final, NamedTuple, Protocol

from msgspec import Meta, Struct

CANDIDATES: Final = 500
"""Candidates that are valued with the id indexes."""

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


class Candidates(NamedTuple):
    """Some of what matches."""

    ids: Sequence[str]
    horizon: int | None
    """No other has its first matching event later; None: there is no other."""


class RankedItem(Protocol):
    """What matches a question."""

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
        before = 0 if after is None else sum(start >= Decimal(after.value) for start in listed.starts())
        for most in (before + limit, CANDIDATES):
            found = listed.candidates(most)
            ranked = listed.valued(found.ids, after, limit) if found.ids else []
            if found.horizon is None or (len(ranked) == limit and ranked[-1].value > found.horizon):
                return ranked
        return listed.all_valued(after, limit)
    found = listed.candidates(CANDIDATES)
    if found.horizon is None:
        return listed.valued(found.ids, after, limit) if found.ids else []
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
