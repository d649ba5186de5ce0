"""Generated traffic with its ground truth: what every table must say once all of it has been acknowledged.

Everything follows from the seed. The truth is kept in whole picodollars and microseconds from before anything was
written as text, and shares no code with the product.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final
from uuid import UUID

from tests.support.events import ABSENT, Num, make_event

BATCH: Final = 100

Sent = dict[str, Any]
"""An event as `make_event` gives it."""

COLUMNS: Final = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "unpriced")
"""The sums that every answer shows (contract, section 5)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_DAY: Final = (datetime(2025, 2, 20, tzinfo=UTC) - _EPOCH).days
_DAY: Final = 86_400_000_000
_EXACT: Final = Context(prec=60)
_PICO: Final = Decimal("1e-12")
_ERRORS: Final = {"error", "timeout", "rate_limited"}
_PROVIDERS: Final = ("openai", "anthropic", "google", "custom")
_STATUSES: Final = ("success", "success", "success", "success", "error", "timeout", "rate_limited", "cancelled")
_ENVIRONMENTS: Final = ("production", "production", "staging", "development")
_OPERATIONS: Final = ("chat", "chat", "chat", "embed", "image", "tts", "custom")
_ODD_USERS: Final = ("ünï/çødé 7", "a b", "100%", "x?y#z&u=1", '"quoted"', "null", "USER-1", "+", "é" * 128, "日本")


class Sums:
    """Exact sums over unique events."""

    __slots__ = ("first", "last", "numbers")

    def __init__(self) -> None:
        self.numbers = [0] * len(COLUMNS)
        """In the order of `COLUMNS`, cost in picodollars."""
        self.first = 0
        self.last = 0

    def add(self, numbers: Sequence[int], first: int, last: int) -> None:
        """Add what happened between two instants."""
        mine = self.numbers
        self.first = min(self.first, first) if mine[0] else first
        self.last = max(self.last, last) if mine[0] else last
        for column, number in enumerate(numbers):
            mine[column] += number

    def differences(self, where: str, row: Mapping[str, Any]) -> list[str]:
        """What `row`, as an answer has it, says otherwise."""
        found = []
        for name, number in zip(COLUMNS, self.numbers, strict=True):
            expected = _EXACT.multiply(Decimal(number), _PICO) if name == "cost_usd" else Decimal(number)
            if row.get(name) is None or Decimal(row[name]) != expected:
                found.append(f"{where}: {name} is {row.get(name)}, not {expected}")
        return found

    def seen_differences(self, where: str, row: Mapping[str, Any]) -> list[str]:
        """The same for the instants; the answer may write milliseconds or microseconds."""
        expected = {"first_seen": self.first, "last_seen": self.last}
        return [
            f"{where}: {name} is {row.get(name)}, not {_EPOCH + timedelta(microseconds=at)}"
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
    unique: int = 0
    duplicates: int = 0
    """Copies beyond the first, each sent once: a client that has to send again makes more of them."""
    conflicts: int = 0

    def count(self, facts: Iterable["Fact"]) -> None:
        """Count first copies."""
        cells: dict[tuple[str | None, int, str, str], Sums] = {}
        for fact in facts:
            key = (fact.user, fact.at // _DAY, fact.provider, fact.model)
            cell = cells.get(key) or cells.setdefault(key, Sums())
            cell.add(fact.numbers, fact.at, fact.at)
        for (user, day, provider, model), cell in cells.items():
            name = (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")
            for sums in (
                self.users.setdefault(user, Sums()),
                self.by_model.setdefault(user, {}).setdefault((provider, model), Sums()),
                self.by_day.setdefault(user, {}).setdefault(name, Sums()),
                self.total,
            ):
                sums.add(cell.numbers, cell.first, cell.last)
        self.unique = self.total.numbers[0]

    def list_differences(self, users: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> list[str]:
        """What all pages of `GET /v1/users` and their total say otherwise."""
        found = self.total.differences("total", total)
        if total.get("users") != len(self.users):
            found.append(f"total: {total.get('users')} users, not {len(self.users)}")
        names = [row["user_id"] for row in users]
        found += [f"user {name!r}: listed {names.count(name)} times" for name in {*names} if names.count(name) > 1]
        found += [f"user {name!r}: not listed" for name in self.users.keys() - {*names}]
        for row in users:
            sums = self.users.get(row["user_id"])
            where = f"user {row['user_id']!r}"
            if sums is None:
                found.append(f"{where}: never sent")
            else:
                found += sums.differences(where, row) + sums.seen_differences(where, row)
        return found

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


@dataclass(frozen=True, slots=True)
class Fact:
    """One event, as far as the tables care."""

    user: str | None
    at: int
    provider: str
    model: str
    numbers: tuple[int, ...]


@dataclass
class Traffic:
    """Batches of both APIs, in the order in which to send them."""

    seed: int
    http: list[list[Sent]]
    grpc: list[list[Sent]]
    late: list[list[Sent]]
    """Copies that differ from the first one: to be sent only after everything else has been acknowledged."""
    truth: GroundTruth

    @property
    def events(self) -> int:
        """All that `http` and `grpc` have, copies included."""
        return sum(map(len, self.http)) + sum(map(len, self.grpc))


def make_traffic(
    seed: int,
    events: int,
    *,
    users: int = 400,
    models: int = 12,
    days: int = 12,
    duplicates: float = 0.05,
    conflicts: int = 0,
) -> Traffic:
    """`events` events, half of them for each door, `duplicates` of them copies that come through either door.

    The copies say the same in another way (`5.0` for 5, an id in capitals), but none of them differs; `conflicts`
    copies that do differ are added apart, as `late`.
    """
    rng = random.Random(seed)
    maker = _Maker(rng, users, models, days)
    truth = GroundTruth()
    copies = int(events * duplicates)
    made = [maker.make() for _ in range(events - copies)]
    truth.count(fact for _, fact in made)
    sent = [event for event, _ in made]
    again = rng.choices(sent, k=copies)
    differing = [maker.differing(event) for event in rng.sample(sent, conflicts)]
    truth.duplicates = copies + conflicts
    truth.conflicts = conflicts
    sent += [maker.rewritten(event) for event in again]
    rng.shuffle(sent)
    half = len(sent) // 2
    return Traffic(seed, _batches(sent[:half]), _batches(sent[half:]), _batches(differing), truth)


def _batches(events: Sequence[Sent]) -> list[list[Sent]]:
    return [list(events[start : start + BATCH]) for start in range(0, len(events), BATCH)]


class _Maker:
    def __init__(self, rng: random.Random, users: int, models: int, days: int) -> None:
        self._rng = rng
        self._users = [*_ODD_USERS, *(f"user-{number}" for number in range(users))][:users]
        self._models = [(_PROVIDERS[number % 4], f"model-{number // 2}") for number in range(models)]
        self._days = days

    def make(self) -> tuple[Sent, Fact]:
        rng = self._rng
        user = None if rng.random() < 0.06 else rng.choice(self._users)
        provider, model = rng.choice(self._models)
        at = (_FIRST_DAY + rng.randrange(self._days)) * _DAY + rng.randrange(_DAY)
        status = rng.choice(_STATUSES)
        tokens = (rng.randrange(4000), rng.randrange(1500), rng.choice((0, rng.randrange(2000))))
        cost, pico = self._cost()
        event = make_event(
            event_id=str(UUID(int=rng.getrandbits(128), version=4)),
            timestamp=self._timestamp(at),
            provider=provider,
            model=model,
            operation=rng.choice(_OPERATIONS),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=tokens[2] or rng.choice((0, None, ABSENT)),
            cost_usd=Num(cost),
            status=status,
            environment=rng.choice(_ENVIRONMENTS),
            user_id=user if user is not None else rng.choice((ABSENT, None, "")),
        )
        return event, Fact(user, at, provider, model, (1, int(status in _ERRORS), *tokens, pico, 0))

    def _cost(self) -> tuple[str, int]:
        """A decimal as somebody might write it, and what it comes to in picodollars."""
        rng = self._rng
        places = rng.randrange(16)
        digits = rng.randrange(10 ** rng.randrange(1, 7)) if places else rng.randrange(3)
        if rng.random() < 0.02:
            digits += 10**places * rng.randrange(1000, 900_000)
        value = Decimal(digits).scaleb(-places, _EXACT)
        text = f"{value:f}"
        if rng.random() < 0.05:
            text = f"{digits}e-{places}"
        return text, int(value.quantize(_PICO, ROUND_HALF_EVEN, _EXACT).scaleb(12, _EXACT))

    def _timestamp(self, at: int) -> str:
        rng = self._rng
        zone = UTC if rng.random() < 0.8 else timezone(timedelta(minutes=rng.choice((-570, -60, 120, 345))))
        text = (_EPOCH + timedelta(microseconds=at)).astimezone(zone).isoformat(timespec="microseconds")
        moment, offset = text[:26], text[26:]
        if rng.random() < 0.1:
            moment += f"{rng.randrange(1000):03d}"  # nanoseconds: cut
        return moment + ("Z" if zone is UTC else offset)

    def rewritten(self, event: Sent) -> Sent:
        """The same event in other words."""
        rng = self._rng
        changes: Sent = {"trace_id": f"again-{rng.randrange(1000)}"}  # nothing that a copy is compared by
        if rng.random() < 0.3:
            changes["event_id"] = event["event_id"].upper()
        if rng.random() < 0.3:
            changes["input_tokens"] = Num(f"{event['input_tokens']}.0")
        if rng.random() < 0.3:
            cost: str = event["cost_usd"]
            changes["cost_usd"] = Num(cost if "e" in cost else f"{cost}0" if "." in cost else f"{cost}.0")
        return {**event, **changes}

    def differing(self, event: Sent) -> Sent:
        """A copy that says something else."""
        field_, value = self._rng.choice(
            [
                ("timestamp", "2025-06-01T00:00:00Z"),
                ("provider", "google" if event["provider"] != "google" else "openai"),
                ("model", "another-model"),
                ("operation", "tts" if event["operation"] != "tts" else "chat"),
                ("user_id", "somebody-else"),
                ("environment", "another-environment"),
                ("status", "cancelled" if event["status"] != "cancelled" else "success"),
                ("input_tokens", event["input_tokens"] + 1),
                ("output_tokens", event["output_tokens"] + 1),
                ("cached_tokens", 2001),
                ("cost_usd", Num("999999.999999999999")),
            ]
        )
        return {**event, field_: value}


_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(\d{3})?Z").fullmatch


def _micros(text: object) -> int | None:
    if not isinstance(text, str) or not _TIME(text):
        return None
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


_PLAIN: Final = re.compile(r"-?(0|[1-9]\d*)\.\d*[1-9]").fullmatch


def plain_decimal(text: str) -> Decimal:
    """For `parse_float`: the number with all its digits; raises for one with an exponent or trailing zeros."""
    if not _PLAIN(text):
        raise ValueError(f"not a plain number: {text}")
    return Decimal(text)
