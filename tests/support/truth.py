"""The ground truth of generated traffic: what every table must say once all of it has been acknowledged.

It is kept in whole picodollars and microseconds from before anything was written as text, and shares no code with the
product.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Final

from msgspec import Struct

COLUMNS: Final = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "unpriced")
"""The sums that every answer shows (contract, section 5)."""
PRICED: Final = COLUMNS[:-1]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAY: Final = 86_400_000_000
EXACT: Final = Context(prec=60)
PICO: Final = Decimal("1e-12")


class Fact(Struct, frozen=True, array_like=True):
    """One event, as far as the tables care."""

    user: str | None
    at: int
    provider: str
    model: str
    numbers: tuple[int, ...]
    """In the order of `COLUMNS`, cost in picodollars."""


@dataclass(slots=True)
class Sums:
    """Exact sums over unique events."""

    numbers: list[int] = field(default_factory=lambda: [0] * len(COLUMNS))
    """In the order of `COLUMNS`, cost in picodollars."""
    first: int = 0
    last: int = 0

    def add(self, numbers: Sequence[int], first: int, last: int, times: int = 1) -> None:
        """Add what happened between two instants, `times` times."""
        mine = self.numbers
        self.first = min(self.first, first) if mine[0] else first
        self.last = max(self.last, last) if mine[0] else last
        for column, number in enumerate(numbers):
            mine[column] += times * number

    def differences(self, where: str, row: Mapping[str, Any], columns: Sequence[str] = COLUMNS) -> list[str]:
        """What `row`, as an answer has it, says otherwise in `columns`."""
        found = []
        for name, number in zip(COLUMNS, self.numbers, strict=True):
            expected = EXACT.multiply(Decimal(number), PICO) if name == "cost_usd" else number
            if name in columns and row.get(name) != expected:
                found.append(f"{where}: {name} is {row.get(name)}, not {expected}")
        return found

    def seen_differences(self, where: str, row: Mapping[str, Any]) -> list[str]:
        """The same for the instants; the answer may write milliseconds or microseconds."""
        expected = {"first_seen": self.first, "last_seen": self.last}
        return [
            f"{where}: {name} is {row.get(name)}, not {EPOCH + timedelta(microseconds=at)}"
            for name, at in expected.items()
            if _micros(row.get(name)) != at
        ]


@dataclass
class GroundTruth:
    """What was sent, each event_id counted once."""

    users: dict[str | None, Sums] = field(default_factory=dict)
    by_model: dict[str | None, dict[tuple[str, str], Sums]] = field(default_factory=dict)
    by_day: dict[str | None, dict[str, Sums]] = field(default_factory=dict)
    total: Sums = field(default_factory=Sums)
    duplicates: int = 0
    """Copies beyond the first, each sent once: a client that has to send again makes more of them."""
    conflicts: int = 0
    has_details: bool = True
    """Whether it knows a user's models and days: not worth the memory for a million users."""

    @property
    def unique(self) -> int:
        return self.total.numbers[0]

    def count(self, facts: Iterable[Fact]) -> None:
        """Count first copies."""
        if not self.has_details:
            for fact in facts:
                self.add(fact)
            return
        cells: dict[tuple[str | None, int, str, str], Sums] = {}
        for fact in facts:
            key = (fact.user, fact.at // DAY, fact.provider, fact.model)
            cell = cells.get(key) or cells.setdefault(key, Sums())
            cell.add(fact.numbers, fact.at, fact.at)
        for (user, day, provider, model), cell in cells.items():
            name = (EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")
            for sums in (
                self.users.setdefault(user, Sums()),
                self.by_model.setdefault(user, {}).setdefault((provider, model), Sums()),
                self.by_day.setdefault(user, {}).setdefault(name, Sums()),
                self.total,
            ):
                sums.add(cell.numbers, cell.first, cell.last)

    def add(self, fact: Fact, times: int = 1) -> None:
        """Count an event, or so many that are alike, without details."""
        sums = self.users.get(fact.user) or self.users.setdefault(fact.user, Sums())
        sums.add(fact.numbers, fact.at, fact.at, times)
        self.total.add(fact.numbers, fact.at, fact.at, times)

    def __add__(self, other: "GroundTruth") -> "GroundTruth":
        """The tables after both, of which no event is in the other; without details."""
        found = GroundTruth(has_details=False)
        for truth in (self, other):
            for user, sums in truth.users.items():
                for each in (found.users.setdefault(user, Sums()), found.total):
                    each.add(sums.numbers, sums.first, sums.last)
        return found

    # --- what answers say otherwise ---------------------------------------------------------------------------------

    def list_differences(self, rows: Iterable[Mapping[str, Any]], total: Mapping[str, Any]) -> list[str]:
        """What all pages of `GET /v1/users` and their total say otherwise."""
        found = self.total.differences("total", total)
        listed, differences = self._differences(rows, COLUMNS)
        if total.get("users") != listed:
            found.append(f"total: {total.get('users')} users, not {listed}")
        return found + differences

    def sums_differences(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """The same of rows that have neither instants nor unpriced events, nor a total."""
        return self._differences(rows, PRICED)[1]

    def _differences(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> tuple[int, list[str]]:
        """How many rows there are, and what they say otherwise."""
        found: list[str] = []
        listed = 0
        missing = {*self.users}
        for row in rows:
            listed += 1
            user = row["user_id"]
            where = f"user {user!r}"
            sums = self.users.get(user)
            if sums is None:
                found.append(f"{where}: never sent")
                continue
            if user not in missing:
                found.append(f"{where}: listed again")
            missing.discard(user)
            found += sums.differences(where, row, columns)
            if columns is COLUMNS:
                found += sums.seen_differences(where, row)
        return listed, found + [f"user {name!r}: not listed" for name in missing]

    def detail_differences(self, user: str, answer: Mapping[str, Any]) -> list[str]:
        """What `GET /v1/users/{user_id}` says otherwise."""
        where = f"detail of {user!r}"
        sums = self.users[user]
        found = sums.differences(where, answer) + sums.seen_differences(where, answer)
        models = {(row["provider"], row["model"]): row for row in answer["byModel"]}
        days = {row["day"]: row for row in answer["byDay"]}
        found += _table_differences(f"{where}, byModel", self.by_model[user], models, len(answer["byModel"]))
        return found + _table_differences(f"{where}, byDay", self.by_day[user], days, len(answer["byDay"]))


def _table_differences(where: str, expected: Mapping[Any, Sums], rows: Mapping[Any, Any], count: int) -> list[str]:
    if rows.keys() != expected.keys() or count != len(expected):
        return [f"{where}: has {count} rows {sorted(rows)}, not {sorted(expected)}"]
    return [line for key, sums in expected.items() for line in sums.differences(f"{where}, {key}", rows[key])]


_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(\d{3})?Z").fullmatch


def _micros(text: object) -> int | None:
    if not isinstance(text, str) or not _TIME(text):
        return None
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


_PLAIN: Final = re.compile(r"-?(0|[1-9]\d*)\.\d*[1-9]").fullmatch


def plain_decimal(text: str) -> Decimal:
    """For `parse_float`: the number with all its digits; raises for one with an exponent or trailing zeros."""
    if not _PLAIN(text):
        raise ValueError(f"not a plain number: {text}")
    return Decimal(text)
