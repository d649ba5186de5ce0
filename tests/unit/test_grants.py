"""Leases under any order of statements, deaths, duplicates and grantors that change: never one event over the limit."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import pytest

from processor.leases.grants import Grants, Quota
from processor.leases.lease_messages import (
    DELIVERY,
    FRESH,
    TTL,
    Account,
    Cap,
    Lease,
    Need,
    Statement,
    decode_lease,
    decode_statement,
    encode,
)

MAY = Account("acme", 0)
QUOTA = {"acme": Quota(100, 5)}


@dataclass
class Charged:
    """A ledger that says what it is told."""

    by: dict[str, int] = field(default_factory=dict)
    end: int = -1
    others: int = 0

    def total(self, account: Account) -> int:
        return self.others + sum(self.by.values())

    def leased(self, instance: str, account: Account) -> int:
        return self.by.get(instance, 0)

    def contains(self, ends: Mapping[int, int]) -> bool:
        return all(self.end >= offset for offset in ends.values())


def nothing() -> dict[int, int]:
    return {0: -1}


def state(number: int, floor: int, need: int, want: int | None = None, *, lease: int = 0) -> Statement:
    return Statement(number, 9, lease, [Need(MAY, floor, need, need if want is None else want)])


def caps(leases: dict[str, Lease | None]) -> dict[str, int]:
    return {name: {cap.account: cap.cap for cap in lease.caps}.get(MAY, 0) for name, lease in leases.items() if lease}


def test_who_needs_less_is_served_first_and_nobody_gets_what_is_not_there() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 80), 0)
    grants.hear("b", state(1, 0, 50), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 50, "b": 50}


def test_a_reserve_is_taken_back_for_those_who_wait_but_only_once_its_holder_confirms_it() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 10, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 55}  # half of what is free stays there
    grants.hear("b", state(1, 0, 70), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 10, "b": 45}
    grants.hear("a", state(2, 12, 12, 100, lease=1), 0)  # it has not seen its new lease yet
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 12}
    grants.hear("a", state(3, 20, 20, 100, lease=3), 0)  # it went on to 20 before it did
    assert caps(grants.decide(QUOTA, Charged({"a": 20}), nothing, 0)) == {"a": 22, "b": 70}  # and now some is left over


def test_nothing_is_granted_before_everybody_goes_by_the_quota() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 10), 0)
    grants.hear("b", Statement(1, 4, 0, []), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 0, "b": 0}
    grants.hear("b", Statement(2, 5, 1, [Need(MAY, 95, 95, 95)]), 0)
    assert caps(grants.decide(QUOTA, Charged({"b": 95}), nothing, 0)) == {"a": 5, "b": 95}


def test_what_others_were_charged_with_counts() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(others=97), nothing, 0)) == {"a": 3}
    grants = Grants()
    grants.hear("a", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(others=150), nothing, 0)) == {"a": 0}


def test_the_lease_of_one_who_fell_silent_comes_back_when_all_it_wrote_is_charged() -> None:
    grants, charged = Grants(), Charged()
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, charged, nothing, 0)
    gone = TTL + DELIVERY + 1
    grants.hear("b", state(1, 0, 100), gone)
    end = {0: 7}
    assert caps(grants.decide(QUOTA, charged, lambda: end, gone)) == {"b": 40}
    charged.by["a"], charged.end = 25, 7
    grants.hear("b", state(2, 0, 100, lease=1), gone)
    leases = grants.decide(QUOTA, charged, lambda: end, gone)
    assert leases["a"] is None
    assert caps(leases) == {"b": 75}


def test_one_that_was_only_slow_keeps_its_lease() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, Charged(), nothing, 0)
    gone = TTL + DELIVERY + 1
    assert grants.decide(QUOTA, Charged(), lambda: {0: 7}, gone) == {}
    grants.hear("a", state(2, 40, 60, lease=1), gone)
    grants.hear("b", state(1, 0, 100), gone)
    assert caps(grants.decide(QUOTA, Charged(), lambda: {0: 7}, gone)) == {"a": 60, "b": 40}


def test_one_that_says_goodbye_gives_its_lease_back_at_once() -> None:
    grants, charged = Grants(), Charged({"a": 3}, end=7)
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, charged, nothing, 0)
    grants.hear("a", Statement(2, 9, 1, [], leaving=True), 0)
    assert grants.decide(QUOTA, charged, lambda: {0: 7}, 0) == {"a": None}
    grants.hear("b", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, charged, nothing, 0)) == {"b": 97}


def test_a_new_grantor_reckons_with_the_highest_cap_somebody_may_go_by() -> None:
    grants = Grants()
    lease = Lease(4, 2, [Cap(MAY, 10, 90)])
    grants.restore("a", lease, 0)
    grants.hear("a", state(2, 5, 10, lease=3), 0)
    grants.hear("b", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"b": 10}
    grants.hear("a", state(3, 5, 10, lease=4), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 10, "b": 90}


def test_a_lifted_quota_needs_no_lease() -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, Charged(), nothing, 0)
    assert caps(grants.decide({"acme": Quota(None, 6)}, Charged(), nothing, 0)) == {"a": 0}


@pytest.mark.parametrize("value", [b"", b"{}", b'{"number":"1"}', b"[1]"])
def test_records_of_another_format_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expected|Object|truncated"):
        decode_statement(value)
    with pytest.raises(ValueError, match=r"Expected|Object|truncated"):
        decode_lease(value)


# --- any order of things ---------------------------------------------------------------------------------------------


@dataclass
class FrontEnd:
    """One side of the protocol as `server.limits.leased_quotas` plays it, with the log in between as two queues."""

    name: str
    number: int = 0
    lease: Lease = field(default_factory=lambda: Lease(0, 0, []))
    unread: deque[bytes | None] = field(default_factory=deque)
    under_way: list[tuple[int, int]] = field(default_factory=list)
    """(events, unique ones) of batches that are in the log and not in the tables."""
    charged: int = 0
    alive: bool = True
    said_at: float = -FRESH
    answer_to: int = 0
    counts: bool = False

    @property
    def floor(self) -> int:
        return self.charged + sum(events for events, _ in self.under_way)

    def cap(self) -> int:
        return {cap.account: cap.cap for cap in self.lease.caps}.get(MAY, 0) if self.counts else 0

    def send(self, events: int, copies: int, now: float) -> bool:
        if not self.alive or now - self.said_at >= FRESH or self.floor + events > self.cap():
            return False
        self.under_way.append((events, max(0, events - copies)))
        return True

    def read(self) -> None:
        if self.unread:
            value = self.unread.popleft()
            lease = None if value is None else decode_lease(value)
            self.counts = lease is not None and lease.answers >= self.answer_to
            if self.counts and lease is not None:
                self.lease = lease

    def say(self, need: int, want: int, now: float, overlap: int) -> bytes:
        self.number += 1
        if now - self.said_at >= FRESH:
            self.answer_to, self.counts = self.number, False
        self.said_at = now
        floor = self.floor + overlap  # what is charged and not yet known to be counts twice
        needs = [Need(MAY, floor, floor + need, floor + need + want)] if floor or need or want else []
        return encode(Statement(self.number, 9, self.lease.version, needs))


ORDINARY = ("send", "send", "settle", "read", "say", "hear", "decide")
RARE = ("book", "book", "book", "die", "fail_over", "silence", "wait", "nap")


class World:
    """API processes, the log between them and the grantor, and one step at a time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.ends = [FrontEnd(f"f{number}") for number in range(3)]
        self.charged, self.grants, self.now = Charged(), Grants(), 0.0
        self.said: deque[tuple[str, bytes]] = deque()
        self.latest: dict[str, bytes] = {}
        self.written: dict[str, bytes] = {}
        self.settled = 0
        self.unread: deque[tuple[str, int]] = deque()
        """What the tables say and the grantor has not read yet."""
        self.log: list[FrontEnd] = []
        """Who sent each batch, in the order of the log."""

    def step(self, name: str, end: FrontEnd) -> None:
        random = self.random
        if name == "send":
            if end.send(random.randint(1, 12), random.randint(0, 3), self.now):
                self.log.append(end)
        elif name == "settle" and self.settled < len(self.log):
            sender = self.log[self.settled]
            self.settled += 1
            sender.charged += sender.under_way.pop(0)[1]
            self.unread.append((sender.name, sender.charged))
        elif name == "book":  # now and then, but then all
            while self.unread:
                self.charged.end += 1
                who, charged = self.unread.popleft()
                self.charged.by[who] = charged
        elif name == "read":
            end.read()
        elif name == "say" and end.alive:
            self.said.append(
                (
                    end.name,
                    end.say(random.choice((0, 20)), random.choice((0, 0, 20)), self.now, random.choice((0, 0, 5))),
                )
            )
        elif name == "hear" and self.said:
            who, value = self.said.popleft()
            self.latest[who] = value
            self.grants.hear(who, decode_statement(value), self.now)
        elif name == "die":
            end.alive = False
            self.ends.append(FrontEnd(f"f{len(self.ends)}"))
        elif name == "silence":
            self.pass_by(TTL + DELIVERY + 1)
        elif name == "wait":
            self.pass_by(FRESH / 3)
        elif name == "nap":  # everybody but one goes on
            for _ in range(8):
                self.pass_by(FRESH / 2)
                for each in self.ends:
                    if each is not end:
                        self.step("say", each)
                self.step("decide", end)
        elif name == "fail_over":
            self.grants = Grants()
            for who, value in self.written.items():
                self.grants.restore(who, decode_lease(value), self.now)
            for who, value in self.latest.items():
                self.grants.hear(who, decode_statement(value), self.now)
        elif name == "decide":
            self.decide()

    def pass_by(self, seconds: float) -> None:
        """The grantor's clock only runs while it keeps up with what is said."""
        while self.said:
            self.step("hear", self.ends[0])
        self.now += seconds

    def decide(self) -> None:
        end = {0: len(self.log) - 1}
        for who, lease in self.grants.decide(QUOTA, self.charged, lambda: end, self.now).items():
            reader = next(each for each in self.ends if each.name == who)
            reader.unread.append(None if lease is None else encode(lease))
            if lease is None:
                self.written.pop(who, None)
                self.latest.pop(who, None)
            else:
                self.written[who] = encode(lease)


@pytest.mark.parametrize("seed", range(60))
def test_the_limit_holds_whatever_happens_in_whatever_order(seed: int) -> None:
    world = World(seed)
    sent = 0
    for _ in range(3000):
        live = [end for end in world.ends if end.alive]
        name = world.random.choice(RARE if world.random.random() < 0.02 else ORDINARY)
        world.step(name, world.random.choice(live))
        sent = max(sent, sum(end.floor for end in world.ends))
        assert sum(end.floor for end in world.ends) <= 100
    assert sent > 50, "nothing much happened"
