"""Which connections of thousands are ended, and that these are what is ended."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.connection_watch import ConnectionWatch, Open, connections_to, count_files, end, parse_peer
from server.connections import OWN_FILES, PROBE_CONNECTIONS, budget_of


def crowd(count: int, address: str = "10.0.0.1") -> list[Open]:
    return [Open(number, (address, number)) for number in range(count)]


def ends(watch: ConnectionWatch, there: list[Open], now: float) -> list[tuple[str, int]]:
    return [each.peer for each in watch.surplus(there, now)]


def test_as_long_as_there_is_room_none_is_ended() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = crowd(75)
    assert [ends(watch, there, now) for now in (0.0, 10.0, 1000.0)] == [[], [], []]


def test_one_address_has_a_share_whatever_it_does() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = crowd(80) + crowd(5, "10.0.0.2")
    with ExitStack() as calls:
        for each in there[:78]:
            calls.enter_context(watch.call(f"ipv4:10.0.0.1:{each.peer[1]}"))
        assert len(ends(watch, there, 0.0)) == 5
        assert set(ends(watch, there, 0.0)) > {("10.0.0.1", 78), ("10.0.0.1", 79)}  # those without a call first


def test_idle_ones_make_room_for_others_those_without_a_key_first() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = [Open(number, (f"10.0.0.{number}", 1)) for number in range(90)]
    known = [each.peer for each in there[10:]]
    for address, port in known:
        with watch.call(f"ipv4:{address}:{port}"):
            watch.know(f"ipv4:{address}:{port}")
    assert ends(watch, there, 0.0) == []  # none has been idle for long enough
    ended = ends(watch, there, 2.0)
    assert len(ended) == 15
    assert set(ended) > {each.peer for each in there[:10]}


def test_a_connection_with_a_call_is_never_ended_for_others() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = [Open(number, (f"10.0.0.{number}", 1)) for number in range(100)]
    with ExitStack() as calls:
        for each in there[:95]:
            calls.enter_context(watch.call(f"ipv4:{each.peer[0]}:1"))
        ends(watch, there, 0.0)
        assert set(ends(watch, there, 2.0)) == {each.peer for each in there[95:]}


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:[2001:db8::1]:50000", ("2001:db8::1", 50000)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50000", ("10.0.0.1", 50000)),
        ("unix:", ("", 0)),
    ],
)
def test_peers_as_grpc_names_them(text: str, peer: tuple[str, int]) -> None:
    assert parse_peer(text) == peer


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An accepted connection: ours, and the client's."""
    family, address = request.param
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as client:
            accepted, _ = listener.accept()
            with accepted:
                yield accepted, client


def test_of_all_files_the_connections_to_the_port_are_found(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    port = accepted.getsockname()[1]
    before = count_files()
    left, right = socket.socketpair()
    with left, right:
        assert count_files() == before + 2
        assert connections_to(port) == [Open(accepted.fileno(), client.getsockname()[:2])]


def test_what_is_ended_is_that_connection_only(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    port, found = accepted.getsockname()[1], Open(accepted.fileno(), client.getsockname()[:2])
    client.settimeout(5)
    end(found, port + 1)
    end(Open(found.fd, (found.peer[0], found.peer[1] + 1)), port)
    end(Open(10_000_000, found.peer), port)
    client.sendall(b"still there")
    assert accepted.recv(100) == b"still there"
    end(found, port)
    assert (client.recv(1), accepted.recv(1)) == (b"", b"")
    assert accepted.fileno() == found.fd  # its owner closes it


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("files", [1024, 2048, 4096, 13_824, 20_000, 1_048_576])
def test_all_connections_are_within_the_files(files: int, tls: bool) -> None:
    budget = budget_of(files, tls=tls)
    assert sum(budget) + PROBE_CONNECTIONS + OWN_FILES <= files
    assert min(budget.http, budget.grpc, budget.backlog) >= 96
    assert bool(budget.handshakes) == tls


def test_with_files_enough_the_bounds_are_those_of_the_documents() -> None:
    assert budget_of(None) == budget_of(20_000) == (8192, 0, 4096, 1024)
