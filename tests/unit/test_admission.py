"""Which connections are let in, and which make room for others."""

from dataclasses import dataclass, field

import pytest

from server.limits.admission import FOUND, MIN_IDLE, MIN_SILENT, RESCAN, Admission, network_of


@dataclass(eq=False)
class Connection:
    """A connection that has been idle `since` a moment; None: a request is under way."""

    network: str = "a"
    since: float | None = None
    requests: int = 1
    peer: tuple[str, int] = ("", 0)
    closed: list[bool] = field(default_factory=list)

    def idle_since(self) -> float | None:
        return self.since

    def force_close(self) -> None:
        self.closed.append(True)


def full(limit: int, probes: int = 2, **options: float | None) -> tuple[Admission[Connection], list[Connection]]:
    """As many connections as there may be, each of an address of its own."""
    admission: Admission[Connection] = Admission(limit, probes)
    there = [Connection(str(number), **options) for number in range(limit)]  # type: ignore[arg-type]
    assert all(admission.admit(each, 0.0) for each in there)
    return admission, there


def test_so_many_are_let_in_and_one_more_when_one_is_closed() -> None:
    admission, there = full(4)
    late = Connection()
    assert not admission.admit(late, 100.0)
    admission.forget(late)
    admission.forget(there[0])
    admission.forget(there[0])  # twice is once
    assert admission.admit(Connection(), 100.0)
    assert not admission.admit(Connection(), 100.0)
    assert len(admission) == 5


def test_one_address_has_a_share() -> None:
    admission: Admission[Connection] = Admission(8, 2)
    assert [admission.admit(Connection(), 0.0) for _ in range(7)] == [True] * 6 + [False]
    assert [admission.admit(Connection("b"), 0.0) for _ in range(3)] == [True, True, False]


def test_beyond_its_share_an_address_makes_room_itself() -> None:
    admission: Admission[Connection] = Admission(8, 2)
    other = Connection("b", since=0.0)
    own = [Connection(since=float(number)) for number in range(1, 7)]
    for each in (other, *own):
        assert admission.admit(each, 0.0)
    assert admission.admit(Connection(), 100.0)
    assert [each.closed for each in (other, *own)] == [[], [True], [], [], [], [], []]


def test_the_one_that_never_asked_goes_first_then_the_one_that_is_idle_for_longest() -> None:
    admission, there = full(4)
    for each, since, requests in zip(there, (5.0, 3.0, 9.0, None), (1, 2, 0, 1), strict=True):
        each.since, each.requests = since, requests
    order = []
    for _ in range(4):
        before = [bool(each.closed) for each in there]
        admission.admit(Connection("new"), 100.0)
        order += [at for at, each in enumerate(there) if bool(each.closed) != before[at]]
    assert order == [2, 1, 0]  # the fourth has a request under way


@pytest.mark.parametrize(("requests", "least"), [(1, MIN_IDLE), (0, MIN_SILENT)])
def test_one_that_is_idle_only_just_stays(requests: int, least: float) -> None:
    admission, there = full(1)
    there[0].since, there[0].requests = 10.0, requests
    assert not admission.admit(Connection("b"), 10.0 + least - 0.01)
    assert admission.admit(Connection("c"), 10.0 + least + RESCAN)


def test_one_that_has_begun_a_request_since_it_was_looked_at_stays() -> None:
    admission, there = full(3, since=0.0)
    assert admission.admit(Connection("b"), 100.0)  # all three were found, and the first is closed
    there[1].since = None
    assert admission.admit(Connection("c"), 100.0)
    assert [bool(each.closed) for each in there] == [True, False, True]


def test_any_number_makes_room_one_for_one() -> None:
    admission, there = full(3 * FOUND, since=0.0)
    for number in range(3 * FOUND):
        assert admission.admit(Connection(f"new-{number}"), 100.0)
    assert all(each.closed == [True] for each in there)
    assert len(admission) == 3 * FOUND


def test_of_those_for_probes_the_oldest_makes_room() -> None:
    admission, _ = full(1, probes=2)
    late = [Connection(str(number)) for number in range(4)]
    assert not any(admission.admit(each, 100.0) for each in late)
    assert [bool(each.closed) for each in late] == [True, True, False, False]
    assert len(admission) == 3


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_a_share_belongs_to(address: str, network: str) -> None:
    assert network_of(address) == network
