"""A page of traces or sessions, the first by a value of all their events, without valuing all that match if possible.

A trace or session matches with one event, and what it is sorted by is of all of its events, wherever they are. So those
that match are found first, as candidates, by the time of their first matching event, the latest first. Where they are
few, they are valued with the id indexes. Where they are many and the order is that of the start, the latest are enough:
nothing starts later than its first matching event. Else everything is read.
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


class Listed(Protocol):
    """What matches a question."""

    def candidates(self) -> Candidates:
        """Return those whose first matching event is the latest, `CANDIDATES` at most."""
        ...

    def valued(self, ids: Sequence[str], after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first `limit` of some candidates behind a place: descending by value, then by id."""
        ...

    def all_valued(self, after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the same of all that match."""
        ...


def page_of(listed: Listed, by_start: bool, after: RankedPlace | None, limit: int) -> list[Ranked]:
    """Return the first `limit` of what matches behind a place; `by_start`: their value is their start."""
    found = listed.candidates()
    if found.horizon is None:
        return listed.valued(found.ids, after, limit) if found.ids else []
    if by_start and found.ids and (after is None or Decimal(after.value) > found.horizon):
        ranked = listed.valued(found.ids, after, limit)
        if len(ranked) == limit and ranked[-1].value > found.horizon:
            return ranked
    return listed.all_valued(after, limit)


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
