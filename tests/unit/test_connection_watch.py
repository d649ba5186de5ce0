"""Which connections of thousands are ended, and that these are what is ended."""

import asyncio
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import trustme
import uvloop

from server.http_api.connections import OWN_FILES, PROBE_CONNECTIONS, budget_of
from server.limits.admission import peer_of
from server.limits.connection_watch import (
    ConnectionWatch,
    Heard,
    Open,
    connections_to,
    count_files,
    end,
    listen,
    parse_peer,
)


def crowd(count: int, address: str = "10.0.0.1") -> list[Open]:
    return [Open(number, (address, number)) for number in range(count)]


def ends(watch: ConnectionWatch, there: list[Open], now: float) -> list[tuple[str, int]]:
    return [each.peer for each in watch.surplus(there, now)]


def test_as_long_as_there_is_room_none_is_ended() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = crowd(75)
    assert [ends(watch, there, now) for now in (0.0, 10.0, 1000.0)] == [[], [], []]


def test_one_address_has_a_share_of_which_those_with_a_call_are_never_ended() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = crowd(80) + crowd(5, "10.0.0.2")
    with ExitStack() as calls:
        for each in there[:78]:
            calls.enter_context(watch.call(f"ipv4:10.0.0.1:{each.peer[1]}"))
        assert ends(watch, there, 0.0) == []  # none has been idle for long enough
        assert set(ends(watch, there, 2.0)) >= {("10.0.0.1", 78), ("10.0.0.1", 79)}
        assert not set(ends(watch, there, 2.0)) & {each.peer for each in there[:78]}


def test_an_address_beyond_its_share_makes_room_itself() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = crowd(5, "10.0.0.2") + crowd(80)
    ends(watch, there, 0.0)
    assert [address for address, _ in ends(watch, there, 2.0)] == ["10.0.0.1"] * 10


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


def scattered(count: int) -> list[Open]:
    """Connections of as many addresses."""
    return [Open(number, (f"10.0.0.{number}", 1)) for number in range(count)]


def test_of_those_with_a_key_the_one_goes_first_whose_last_call_is_longest_ago() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(76)
    names = [f"ipv4:{address}:{port}" for (address, port) in (each.peer for each in there)]
    for name in names:
        with watch.call(name):
            watch.know(name)
    ends(watch, there, 0.0)
    for name in names[:40]:  # those that were first seen
        with watch.call(name):
            pass
    assert ends(watch, there, 10.0) == [there[40].peer]
    for name in names:
        with watch.call(name):
            pass
    assert ends(watch, there, 20.0) == []
    assert ends(watch, there, 20.5) == []
    assert len(ends(watch, there, 21.0)) == 1


def test_calls_without_a_key_keep_nothing_open() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    for now in (0.0, 0.5, 1.0):
        for each in there:
            with watch.call(f"ipv4:{each.peer[0]}:1"):
                pass
        assert len(ends(watch, there, now)) == (5 if now == 1.0 else 0)


def test_a_call_that_ends_when_its_client_likes_makes_a_connection_the_last_to_go_and_no_more() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    ends(watch, there, 0.0)
    with ExitStack() as calls:
        for each in there[:78]:
            calls.enter_context(watch.call(f"ipv4:{each.peer[0]}:1", is_spared=False))
        ended = ends(watch, there, 2.0)
        assert len(ended) == 5
        assert set(ended) >= {each.peer for each in there[78:]}
    assert ends(watch, there, 2.0) == [each.peer for each in there[:5]]


def test_a_connection_that_may_bring_its_first_request_goes_after_older_ones() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    ends(watch, there[70:], 0.0)
    ends(watch, there, 5.0)
    assert set(ends(watch, there, 10.0)) <= {each.peer for each in there[70:]}


def test_a_connection_that_still_receives_goes_last() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    known = [f"ipv4:{each.peer[0]}:1" for each in there[:70]]
    for name in known:
        with watch.call(name):
            watch.know(name)
    uploads = {each.peer: Heard(0.5, False) for each in there[70:]}
    ends(watch, there, 0.0)
    ended = watch.surplus(there, 20.0, uploads)
    assert len(ended) == 5
    assert not {each.peer for each in ended} & set(uploads)


def test_bytes_now_and_then_hold_no_connection_for_ever() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    trickle = {each.peer: Heard(0.1, False) for each in there}
    ends(watch, there, 0.0)
    assert len(watch.surplus(there, 20.0, trickle)) == 5


def test_what_a_client_says_when_it_connects_is_no_request() -> None:
    watch = ConnectionWatch("grpc", 100)
    there = scattered(80)
    heard = {each.peer: Heard(2.2 if each in there[:10] else 0.1, False) for each in there}
    ends(watch, there, 0.0)
    assert {each.peer for each in watch.surplus(there, 2.0, heard)} <= {each.peer for each in there[:10]}


def test_a_handshake_that_waits_for_a_busy_server_is_kept_among_mute_connections() -> None:
    watch = ConnectionWatch("http", 100)
    handshakes = [Open(1000, ("10.0.0.1", 1000)), Open(1001, ("10.0.0.2", 1001))]
    heard = {each.peer: Heard(2.5, False) for each in handshakes}
    for step in range(10):  # the crowd comes back at once whenever its connections are ended
        mute = [Open(number, ("10.0.0.1", number)) for number in range(2000 + 1000 * step, 2400 + 1000 * step)]
        ended = watch.surplus(handshakes + mute, step * 0.5, heard | {each.peer: Heard(0.3, True) for each in mute})
        assert not {each.peer for each in ended} & set(heard)


def test_others_do_not_go_for_what_a_crowded_address_has_just_opened() -> None:
    watch = ConnectionWatch("http", 100)
    others = crowd(5, "10.0.0.2")
    for step in range(10):
        there = others + [Open(number, ("10.0.0.1", number)) for number in range(1000 * step, 1000 * step + 300)]
        assert {address for address, _ in ends(watch, there, step * 0.5)} <= {"10.0.0.1"}


def test_a_connection_that_never_sent_a_byte_goes_first_and_soon() -> None:
    watch = ConnectionWatch("http", 100)
    there = scattered(80)
    heard = {each.peer: Heard(20.0, each in there[70:]) for each in there}
    assert watch.surplus(there, 0.0, heard) == []
    assert {each.peer for each in watch.surplus(there, 0.5, heard)} == {each.peer for each in there[70:75]}
    assert {each.peer for each in watch.surplus(there, 20.0, heard)} == {each.peer for each in there[70:75]}


async def test_none_is_ended_that_has_become_busy_since_the_look(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    port, found = accepted.getsockname()[1], Open(accepted.fileno(), client.getsockname()[:2])
    counted: list[tuple[str, int]] = []
    watch = ConnectionWatch("http", 1, counted=lambda: counted)
    client.sendall(b"still there")
    name = f"ipv{4 if '.' in found.peer[0] else 6}:{found.peer[0]}:{found.peer[1]}"
    with watch.call(name):
        assert await watch.end_all([found], port) == 0
    counted.append(found.peer)
    assert await watch.end_all([found], port) == 0
    assert accepted.recv(100) == b"still there"
    counted.clear()
    assert await watch.end_all([found], port) == 1
    assert accepted.recv(100) == b""


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:[2001:db8::1]:50000", ("2001:db8::1", 50000)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50000", ("10.0.0.1", 50000)),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", ("fe80::1", 50000)),
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


def test_a_link_local_address_is_one_whatever_its_interface_is_called() -> None:
    assert peer_of(("fe80::1%eth0", 50000, 0, 2)) == peer_of(("fe80::1%2", 50000, 0, 2)) == ("fe80::1", 50000)


def test_of_all_files_the_connections_to_the_port_are_found(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    port = accepted.getsockname()[1]
    before = count_files()
    left, right = socket.socketpair()
    with left, right:
        assert count_files() == before + 2
        assert connections_to(port) == [Open(accepted.fileno(), client.getsockname()[:2])]


def test_connections_are_found_while_no_file_can_be_opened(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    port = accepted.getsockname()[1]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(accepted.fileno(), client.fileno()) + 1, hard))
    try:
        with ExitStack() as held:
            with suppress(OSError):
                while True:
                    held.enter_context(socket.socket())
            assert count_files()
            assert connections_to(port) == [Open(accepted.fileno(), client.getsockname()[:2])]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a connection has received, and when")
def test_what_a_connection_has_received(pair: tuple[socket.socket, socket.socket]) -> None:
    accepted, client = pair
    there = connections_to(accepted.getsockname()[1])
    time.sleep(0.5)
    [since_accepted] = listen(there).values()
    assert since_accepted.silent >= 0.4
    assert since_accepted.is_mute
    client.sendall(b"a part of a request")
    assert accepted.recv(100, socket.MSG_PEEK)
    found = listen([*there, Open(10_000_000, ("10.0.0.1", 1))])
    assert list(found) == [client.getsockname()[:2]]
    assert found[client.getsockname()[:2]].silent < since_accepted.silent
    assert not found[client.getsockname()[:2]].is_mute


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("files", [1024, 2048, 4096, 13_824, 20_000, 1_048_576])
def test_all_connections_are_within_the_files(files: int, tls: bool) -> None:
    budget = budget_of(files, tls=tls)
    assert sum(budget) + PROBE_CONNECTIONS + OWN_FILES <= files
    assert min(budget.http, budget.grpc, budget.backlog) >= 96
    assert bool(budget.handshakes) == tls


def test_with_files_enough_the_bounds_are_those_of_the_documents() -> None:
    assert budget_of(None) == budget_of(20_000) == (8192, 0, 4096, 1024)


class Accepting(asyncio.Protocol):
    """What each connection of a server with TLS gets, before its handshake."""


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_connections_without_a_handshake_leave_files_however_fast_they_come(run: Callable[..., Any]) -> None:
    """Without a file left, libuv closes whatever waits to be accepted: clients of other addresses, too."""
    certificate = trustme.CA().issue_cert("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def flood() -> None:
        loop = asyncio.get_running_loop()
        before, port, most, clients = count_files(), 0, 0, list[socket.socket]()
        watch = ConnectionWatch("http", 64, files=before + 500)  # a connection has two files here: the client's, too

        def accept() -> asyncio.Protocol:
            nonlocal most
            watch.accepted(port)
            most = max(most, count_files() - before - len(clients))
            return Accepting()

        server = await loop.create_server(accept, "127.0.0.1", 0, ssl=context, backlog=64)
        port = server.sockets[0].getsockname()[1]
        try:
            elsewhere = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
            clients.append(elsewhere)
            for _ in range(600):
                clients.append(socket.create_connection(("127.0.0.1", port)))
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            accepted = connections_to(port)
            assert most < 300
            assert 48 <= len(accepted) < 300
            assert elsewhere.getsockname() in [each.peer for each in accepted]
        finally:
            for each in clients:
                each.close()
            server.close()

    run(flood())
