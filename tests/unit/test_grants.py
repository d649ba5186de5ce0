"""Leases under any order of statements, deaths, duplicates and grantors that change: never one event over the limit."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from processor.leases.grants import Grants, MonthlyQuota
from processor.leases.lease_messages import (
    DELIVERY,
    FRESH,
    GAP,
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
from tests.support.examples import tries

MAY = Account("acme", 0)
QUOTA = {"acme": MonthlyQuota(100, 5)}


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

    def lacks(self, ends: Mapping[int, int]) -> int:
        return 12 * sum(max(0, offset - self.end) for offset in ends.values())


def begun(gap: int = GAP) -> Grants:
    """A grantor that has read all there was: nothing."""
    grants = Grants(gap)
    grants.begin({})
    return grants


def nothing() -> dict[int, int]:
    return {0: -1}


def state(number: int, floor: int, need: int, want: int | None = None, *, lease: int = 0) -> Statement:
    return Statement(number, 9, lease, [Need(MAY, floor, need, need if want is None else want)])


def caps(leases: dict[str, Lease | None]) -> dict[str, int]:
    return {name: {cap.account: cap.cap for cap in lease.caps}.get(MAY, 0) for name, lease in leases.items() if lease}


def test_who_needs_less_is_served_first_and_nobody_gets_what_is_not_there() -> None:
    grants = begun()
    grants.hear("a", state(1, 0, 80), 0)
    grants.hear("b", state(1, 0, 50), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 50, "b": 50}


def test_a_reserve_is_taken_back_for_those_who_wait_but_only_once_its_holder_confirms_it() -> None:
    grants = begun()
    grants.hear("a", state(1, 0, 10, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 55}  # half of what is free stays there
    grants.hear("b", state(1, 0, 70), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 10, "b": 45}
    grants.hear("a", state(2, 12, 12, 100, lease=1), 0)  # it has not seen its new lease yet
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 12}
    grants.hear("a", state(3, 20, 20, 100, lease=3), 0)  # it went on to 20 before it did
    assert caps(grants.decide(QUOTA, Charged({"a": 20}), nothing, 0)) == {"a": 22, "b": 70}  # and now some is left over


def test_nothing_is_granted_before_everybody_goes_by_the_quota() -> None:
    grants = begun()
    grants.hear("a", state(1, 0, 10), 0)
    grants.hear("b", Statement(1, 4, 0, []), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 0, "b": 0}
    grants.hear("b", Statement(2, 5, 1, [Need(MAY, 95, 95, 95)]), 0)
    assert caps(grants.decide(QUOTA, Charged({"b": 95}), nothing, 0)) == {"a": 5, "b": 95}


def test_what_others_were_charged_with_counts() -> None:
    grants = begun()
    grants.hear("a", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(others=97), nothing, 0)) == {"a": 3}
    grants = begun()
    grants.hear("a", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(others=150), nothing, 0)) == {"a": 0}


def test_the_lease_of_one_who_fell_silent_comes_back_when_all_it_wrote_is_charged() -> None:
    grants, charged = begun(), Charged()
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
    grants = begun()
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, Charged(), nothing, 0)
    gone = TTL + DELIVERY + 1
    assert grants.decide(QUOTA, Charged(), lambda: {0: 7}, gone) == {}
    grants.hear("a", state(2, 40, 60, lease=1), gone)
    grants.hear("b", state(1, 0, 100), gone)
    assert caps(grants.decide(QUOTA, Charged(), lambda: {0: 7}, gone)) == {"a": 60, "b": 40}


def test_one_that_says_goodbye_gives_its_lease_back_at_once() -> None:
    grants, charged = begun(), Charged({"a": 3}, end=7)
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, charged, nothing, 0)
    grants.hear("a", Statement(2, 9, 1, [], leaving=True), 0)
    assert grants.decide(QUOTA, charged, lambda: {0: 7}, 0) == {"a": None}
    grants.hear("b", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, charged, nothing, 0)) == {"b": 97}


def test_a_new_grantor_reckons_with_the_highest_cap_somebody_may_go_by() -> None:
    grants = Grants()
    grants.restore("a", Lease(4, 2, [Cap(MAY, 10, 90)]), 0)
    grants.hear("a", state(2, 5, 10, lease=3), 0)
    grants.begin({})
    grants.hear("b", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 0, "b": 0}  # it may have had more since
    assert caps(grants.decide(QUOTA, Charged(), nothing, FRESH)) == {"a": 10, "b": 10}  # it goes by none of it
    grants.hear("a", state(3, 5, 10, lease=4 + GAP + 1), FRESH)  # it lives, and has not seen the last one
    assert caps(grants.decide(QUOTA, Charged(), nothing, FRESH)) == {"a": 10, "b": 90}


def test_what_the_log_lost_of_a_lease_is_granted_to_nobody_else() -> None:
    grants = Grants()
    grants.restore("a", Lease(4, 2, [Cap(MAY, 10, 10)]), 0)
    grants.hear("a", state(2, 5, 10, lease=4), 0)  # the last word that is left; its lease 7, up to 95, is lost
    grants.begin({})
    grants.hear("b", state(1, 0, 100), 0)
    leases = grants.decide(QUOTA, Charged(), nothing, 0)
    assert caps(leases) == {"a": 0, "b": 0}
    asked = leases["a"]
    assert asked is not None
    assert asked.version > 7
    grants.hear("a", state(8, 30, 30, lease=7), 0)
    assert grants.members["a"].is_strange
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 0}
    grants.hear("a", state(9, 95, 95, lease=asked.version), 0)  # all of it, before the new one came
    assert not grants.members["a"].is_strange
    assert caps(grants.decide(QUOTA, Charged({"a": 95}), nothing, 0)) == {"a": 95, "b": 5}


def test_what_the_log_lost_of_a_lease_that_was_lowered_is_not_given_once_more() -> None:
    grants = Grants()
    grants.restore("a", Lease(4, 2, [Cap(MAY, 50, 50)]), 0)  # since then 30 of it went to b, in a lease that is lost
    grants.hear("a", state(5, 20, 20, lease=6), 0)
    grants.hear("b", state(5, 30, 80, lease=6), 0)
    grants.begin({})
    leases = grants.decide(QUOTA, Charged(), nothing, 0)
    assert caps(leases) == {"a": 0, "b": 0}
    for name, floor in (("a", 20), ("b", 80)):
        asked = leases[name]
        assert asked is not None
        grants.hear(name, state(6, floor, floor + 10, lease=asked.version), 0)
    assert caps(grants.decide(QUOTA, Charged({"a": 20, "b": 80}), nothing, 0)) == {"a": 20, "b": 80}


@pytest.mark.parametrize("said", [0, 7])
def test_where_all_leases_are_lost_nothing_is_granted_before_it_is_known_who_had_one(said: int) -> None:
    grants = Grants()
    grants.hear("a", state(1, 0, 60, lease=said), 0)
    grants.begin({})
    grants.hear("b", state(1, 0, 100), 0)
    leases = grants.decide(QUOTA, Charged(), nothing, 0)
    assert caps(leases) == {"a": 0, "b": 0}
    asked = leases["a"]
    assert asked is not None
    grants.hear("a", state(2, 60, 60, lease=asked.version), 0)
    assert caps(grants.decide(QUOTA, Charged({"a": 60}), nothing, 0)) == {"a": 60, "b": 40}


def test_where_all_statements_are_lost_one_that_is_not_new_may_have_a_lease() -> None:
    grants = begun()
    grants.hear("b", state(1, 0, 100), 0)
    grants.hear("a", state(5, 0, 60), 0)
    assert caps(grants.decide(QUOTA, Charged(), nothing, 0)) == {"a": 0, "b": 0}


def test_what_is_on_its_way_when_leases_are_lost_may_be_anybodys() -> None:
    grants, charged = Grants(), Charged(end=3)
    grants.begin({0: 8})  # 5 messages of up to 12 events
    grants.hear("b", state(1, 0, 100), 0)
    assert caps(grants.decide(QUOTA, charged, nothing, 0)) == {"b": 40}
    charged.by["a"], charged.end = 50, 8
    assert caps(grants.decide(QUOTA, charged, nothing, 0)) == {"b": 50}


def test_two_grantors_never_give_leases_of_one_version() -> None:
    first, second = Grants(GAP + 5), Grants(GAP + 3)
    for each in (first, second):  # the second knows nothing of the first
        each.restore("a", Lease(4, 2, [Cap(MAY, 10, 10)]), 0)
        each.hear("a", state(2, 5, 10, lease=4), 0)
        each.begin({})
    lost = first.decide(QUOTA, Charged(), nothing, 0)["a"]
    assert lost is not None
    second.decide(QUOTA, Charged(), nothing, 0)
    second.hear("a", state(3, 5, 10, lease=lost.version), 0)
    assert not second.members["a"].is_sure
    assert second.members["a"].is_strange


def test_a_lifted_quota_needs_no_lease() -> None:
    grants = begun()
    grants.hear("a", state(1, 0, 60), 0)
    grants.decide(QUOTA, Charged(), nothing, 0)
    assert caps(grants.decide({"acme": MonthlyQuota(None, 6)}, Charged(), nothing, 0)) == {"a": 0}


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
LOSSES = ("lose", "fail_over", "book", "say", "hear", "decide")
RARE = ("book", "book", "book", "die", "fail_over", "silence", "wait", "nap")


class World:
    """API processes, the log between them and the grantor, and one step at a time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.ends = [FrontEnd(f"f{number}") for number in range(3)]
        self.charged, self.grants, self.now = Charged(), begun(), 0.0
        self.said: deque[tuple[str, bytes]] = deque()
        """Statements that the grantor has not read yet."""
        self.statements: list[tuple[str, bytes | None]] = []
        self.leases: list[tuple[str, bytes | None]] = []
        """The two topics, in order; None: a tombstone."""
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
            for _ in range(random.choice((1, 1, len(end.unread)))):
                end.read()
        elif name == "say" and end.alive:
            needs = random.choice((0, 20)), random.choice((0, 0, 20))
            said = end.name, end.say(*needs, self.now, random.choice((0, 0, 5)))
            self.said.append(said)
            self.statements.append(said)
        elif name == "hear" and self.said:
            who, value = self.said.popleft()
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
            self.fail_over()
        elif name == "lose":
            self.lose(self.leases)
            self.lose(self.statements)
            for each in self.ends:
                if random.random() < 0.5:  # else they were on their way already
                    each.unread.clear()
            self.fail_over()
        elif name == "decide":
            self.decide()

    def lose(self, topic: list[tuple[str, bytes | None]]) -> None:
        """The end of a topic, or all of it, or nothing."""
        lost = self.random.choice((0, 1, 3, 10, 50, len(topic)))
        del topic[max(0, len(topic) - lost) :]

    def fail_over(self) -> None:
        self.grants = Grants(GAP + self.random.getrandbits(40))
        self.said.clear()
        for who, value in self.leases:
            self.grants.restore(who, None if value is None else decode_lease(value), self.now)
        for who, value in dict(self.statements).items():
            self.grants.hear(who, None if value is None else decode_statement(value), self.now)
        self.grants.begin({0: len(self.log) - 1})

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
            self.leases.append((who, None if lease is None else encode(lease)))
            if lease is None:
                self.statements.append((who, None))


@pytest.mark.parametrize("rare", [RARE, LOSSES], ids=["", "the log loses leases and statements"])
@pytest.mark.parametrize("seed", range(tries(60)))
def test_the_limit_holds_whatever_happens_in_whatever_order(seed: int, rare: Sequence[str]) -> None:
    world = World(seed)
    sent = 0
    for _ in range(3000):
        live = [end for end in world.ends if end.alive]
        name = world.random.choice(rare if world.random.random() < 0.02 else ORDINARY)
        world.step(name, world.random.choice(live))
        sent = max(sent, sum(end.floor for end in world.ends))
        assert sum(end.floor for end in world.ends) <= 100
    assert sent > 50, "nothing much happened"
