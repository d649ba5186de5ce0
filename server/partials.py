"""The rows of a view: one partition's shares, and what is kept up to date of them by user, project and month.

A row is kept as the bytes it came in: the smallest form that has no bound. What is kept of a user is replaced, never
changed: a list of users is a snapshot. Nothing here locks; `views.View` does. A user row costs 390 bytes at ten rows a
user, 490 at one, and adds nothing to what the garbage collector tracks.
"""

from collections.abc import Iterator, Sequence
from sys import intern
from typing import Protocol, cast

import msgspec
from msgspec import Struct

from processor.core.tables import NEVER

Numbers = Sequence[int]
"""What a user or hour row says, in the order of `tables.Sums.value`: offset (meaningless in a sum), requests, errors,
input, output and cached tokens, cost, unpriced, first seen, last seen."""

Packed = bytes | tuple[int, ...]
"""Numbers of one row or of a sum, in a form that the garbage collector does not track for long."""

decode = msgspec.json.Decoder(list[int]).decode


def unpack(packed: Packed) -> Numbers:
    """The numbers of a row or sum."""
    return decode(packed) if type(packed) is bytes else cast(Numbers, packed)


class Row(Protocol):
    """One row of the changelog."""

    def take(self, value: bytes) -> None:
        """Replace what the row said; what is summed from it follows by the difference."""
        ...

    def drop(self) -> None:
        """Take the row out of all sums."""
        ...


class Dim(Struct, gc=False, eq=False):
    """What a project's user rows are kept by, besides the user; and the rows."""

    project: "Project"
    day: int
    provider: str
    model: str
    environment: str
    rows: "list[Partial]"


class Partial(Struct, gc=False, eq=False):
    """One partition's share of a user's day, provider, model and environment; `next` is another row of the user."""

    dim: Dim
    user_id: str | None
    value: bytes
    next: "Partial | None"

    def numbers(self) -> Numbers:
        return decode(self.value)

    def take(self, value: bytes) -> None:
        if value == self.value:  # a replay writes rows again
            return
        _, requests, errors, inputs, outputs, cached, cost, unpriced, first, last = decode(value)
        _, requests0, errors0, inputs0, outputs0, cached0, cost0, unpriced0, first0, last0 = decode(self.value)
        self.value = value
        requests -= requests0
        errors -= errors0
        inputs -= inputs0
        outputs -= outputs0
        cached -= cached0
        cost -= cost0
        unpriced -= unpriced0
        project = self.dim.project
        project.requests += requests
        project.errors += errors
        project.input_tokens += inputs
        project.output_tokens += outputs
        project.cached_tokens += cached
        project.cost += cost
        project.unpriced += unpriced
        user_id = self.user_id
        user = project.users[user_id]
        sums = user.sums
        if type(sums) is bytes:
            project.users[user_id] = User(user_id, user.head, value)
        elif first > first0 or last < last0 or requests < 0 or not requests0:  # less than before: not by this program
            project.users[user_id] = _add_up(user_id, user.head)
        else:
            _, r, e, i, o, c, p, u, f, l_ = cast(Numbers, sums)
            project.users[user_id] = User(
                user_id,
                user.head,
                (
                    NEVER,
                    r + requests,
                    e + errors,
                    i + inputs,
                    o + outputs,
                    c + cached,
                    p + cost,
                    u + unpriced,
                    first if first < f else f,
                    last if last > l_ else l_,
                ),
            )

    def drop(self) -> None:
        self.dim.rows.remove(self)
        project = self.dim.project
        project.add([-number for number in decode(self.value)])
        user = project.users[self.user_id]
        if user.head is not self:
            before = user.head
            while before.next is not self:
                before = cast(Partial, before.next)
            before.next = self.next
            project.users[self.user_id] = _add_up(self.user_id, user.head)
        elif self.next is not None:
            project.users[self.user_id] = _add_up(self.user_id, self.next)
        else:
            del project.users[self.user_id]


class User(Struct, frozen=True, gc=False, eq=False):
    """A user's all-time totals; `sums` of a user with one row are that row's bytes."""

    user_id: str | None
    head: Partial
    sums: "Packed"

    def numbers(self) -> Numbers:
        return unpack(self.sums)

    def rows(self) -> Iterator[Partial]:
        """All rows of the user. Needs no lock: new ones come before the head."""
        row: Partial | None = self.head
        while row is not None:
            yield row
            row = row.next


def merge(one: Numbers, other: Numbers) -> tuple[int, ...]:
    """Add up what two rows say."""
    _, requests, errors, inputs, outputs, cached, cost, unpriced, first, last = one
    _, requests1, errors1, inputs1, outputs1, cached1, cost1, unpriced1, first1, last1 = other
    if not requests:  # its times mean nothing
        first, last = first1, last1
    elif not requests1:
        first1, last1 = first, last
    return (
        NEVER,
        requests + requests1,
        errors + errors1,
        inputs + inputs1,
        outputs + outputs1,
        cached + cached1,
        cost + cost1,
        unpriced + unpriced1,
        first if first < first1 else first1,
        last if last > last1 else last1,
    )


def _add_up(user_id: str | None, head: Partial) -> User:
    """A user's totals from its rows."""
    if head.next is None:
        return User(user_id, head, head.value)
    sums: Numbers = head.numbers()
    row: Partial | None = head.next
    while row is not None:
        sums = merge(sums, row.numbers())
        row = row.next
    return User(user_id, head, tuple(sums))


class HourPartial(Struct, gc=False, eq=False):
    """One partition's share of a project's hour, provider, model and environment."""

    siblings: "list[HourPartial]"
    provider: str
    model: str
    environment: str
    value: bytes

    def numbers(self) -> Numbers:
        return decode(self.value)

    def take(self, value: bytes) -> None:
        self.value = value

    def drop(self) -> None:
        self.siblings.remove(self)


class Charged(Struct, gc=False):
    """What a window counted, over all partitions."""

    unique: int = 0
    duplicates: int = 0
    conflicts: int = 0

    def add(self, value: bytes, sign: int = 1) -> None:
        _, unique, duplicates, conflicts = decode(value)
        self.unique += sign * unique
        self.duplicates += sign * duplicates
        self.conflicts += sign * conflicts


class Window(Struct, gc=False, eq=False):
    """One partition's share of a window, found by its key alone."""

    value: bytes

    def take(self, value: bytes) -> None:
        self.value = value

    def drop(self) -> None:
        pass


class Month(Struct, gc=False, eq=False):
    """One partition's share of an organisation's month: what quotas are about, so its sum is at hand."""

    total: Charged
    value: bytes

    def take(self, value: bytes) -> None:
        _, unique, duplicates, conflicts = decode(value)
        _, unique0, duplicates0, conflicts0 = decode(self.value)
        self.value = value
        self.total.unique += unique - unique0
        self.total.duplicates += duplicates - duplicates0
        self.total.conflicts += conflicts - conflicts0

    def drop(self) -> None:
        self.total.add(self.value, -1)


class Project:
    """A project's rows and its totals over all time."""

    __slots__ = (
        "cached_tokens",
        "cost",
        "dims",
        "errors",
        "hours",
        "input_tokens",
        "output_tokens",
        "requests",
        "unpriced",
        "users",
    )

    def __init__(self) -> None:
        self.users: dict[str | None, User] = {}
        self.dims: dict[tuple[int, str, str, str], Dim] = {}
        self.hours: dict[int, list[HourPartial]] = {}
        self.requests = self.errors = self.unpriced = self.cost = 0
        self.input_tokens = self.output_tokens = self.cached_tokens = 0

    def add(self, numbers: Numbers) -> None:
        _, requests, errors, inputs, outputs, cached, cost, unpriced, _, _ = numbers
        self.requests += requests
        self.errors += errors
        self.input_tokens += inputs
        self.output_tokens += outputs
        self.cached_tokens += cached
        self.cost += cost
        self.unpriced += unpriced

    def totals(self) -> tuple[int, ...]:
        return (
            self.requests,
            self.errors,
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.cost,
            self.unpriced,
        )

    def add_user_row(self, value: bytes, user_id: str | None, day: int, *kept_by: str) -> Partial:
        numbers = decode(value)
        provider, model, environment = kept_by
        self.add(numbers)
        key = (day, provider, model, environment)
        dim = self.dims.get(key)
        if dim is None:
            key = (day, intern(provider), intern(model), intern(environment))
            dim = self.dims[key] = Dim(self, *key, [])
        user = self.users.get(user_id)
        if user is None:
            row = Partial(dim, user_id, value, None)
            self.users[user_id] = User(user_id, row, value)
        else:
            row = Partial(dim, user.user_id, value, user.head)
            self.users[user_id] = User(user.user_id, row, merge(user.numbers(), numbers))
        dim.rows.append(row)
        return row

    def add_hour_row(self, value: bytes, hour: int, provider: str, model: str, environment: str) -> HourPartial:
        siblings = self.hours.setdefault(hour, [])
        row = HourPartial(siblings, intern(provider), intern(model), intern(environment), value)
        siblings.append(row)
        return row
