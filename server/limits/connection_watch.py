"""Bounds for connections that the libraries accept without asking: for all of them, and a share for each address.

gRPC accepts connections in its own threads. It has one bound, beyond which a new connection is closed at once; so a
client with that many idle connections would keep all others out. Over HTTP with TLS, the event loop does not report a
connection before its handshake is done. Therefore the process examines its own sockets, twice a second while there are
many, and shuts down what exceeds the bounds: connections without a call, first those that never made a call with a
valid key. To server and client it looks as if the other side had closed; clients connect again when they need to.

Only connections without a call are closed, to make room or because one address has more than its share. A call begins
when its request has arrived as a whole. Connections that still receive bytes are closed last, as a request may be on
its way; but they are closed, as a byte now and then costs a client nothing. So are those with a call that needs no key
and ends when its client likes: `Watch` of the health service, and reflection.

A connection that has never sent a byte is closed before one that has: its client waits for nothing, while a handshake
may be waiting for a busy server. Connections of addresses with more than an even part of the room are closed before
those of other addresses.

Connections can come faster than that: between two examinations thousands may be accepted. A process without a file left
cannot accept, and libuv then closes all that wait, of whatever address. Therefore the event loop reports what it has
accepted, and where the files are nearly used up it makes room at once, in the same order.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from processor.recurring import Recurring
from processor.structured_log import structlog
from server.limits.admission import MIN_IDLE, MIN_SILENT, SHARE, Peer, network_of, plain_address

MAX_GRPC: Final = 4096
"""Most connections at once, if the process may open as many files."""
PERIOD: Final = 0.5
"""Seconds between two examinations."""
CROWDED: Final = 0.7
"""Part of the bound: with fewer open files than that, no socket is examined. A little less than what can make closing
necessary, so that it is known by then which connections are idle."""
ROOM: Final = 0.75
"""Part of the bound: if there are more connections, idle ones are closed until so many are left."""
GRACE: Final = 10.0
"""Seconds for which a new connection without a key is closed after the others: its first request may be arriving."""
RECENT: Final = 3.0
"""Seconds after its last bytes for which a connection counts as receiving."""
STEP: Final = 256
"""Connections that are closed within one turn of the event loop."""
ACCEPTED: Final = 32
"""Accepted connections after which the number of open files is looked at again. Those that were closed last time are
gone by then: an event loop closes them in its next turn or the one after that."""
_LAST_DATA_RECEIVED: Final = 52
"""Offset of that time in Linux's `struct tcp_info`: 32 bits, in milliseconds."""
_BYTES_RECEIVED: Final = 128
"""Offset of the number of all bytes received, 64 bits; from Linux 4.1 on."""
_FILES: Final = next(path for path in (Path("/proc/self/fd"), Path("/dev/fd"), Path("/")) if path.is_dir())
"""The directory in which the system lists the process's open files by number."""

log = structlog.get_logger(__name__)


class Open(NamedTuple):
    """A connection of the process."""

    fd: int
    peer: Peer


class Heard(NamedTuple):
    """What a connection has received."""

    silent: float
    """Seconds since the last bytes, or since it was accepted."""
    is_mute: bool
    """Whether it has never sent a byte; False if the system does not report that."""


class ConnectionWatch:
    """What is known of the connections to one port.

    `limit` is the bound for all of them, but for those of `counted`, which are bounded elsewhere; `others` says how
    many connections there are to other ports. `name` is for the log. `files` is how many files the process may have
    open before `accepted` makes room.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        counted: Callable[[], Collection[Peer]] = tuple,
        others: Callable[[], int] = lambda: 0,
        files: int | None = None,
    ) -> None:
        self.limit = limit
        self._files = files
        self._accepted = 0
        """Connections that were accepted since the open files were counted."""
        self._ended_at_once = 0
        """Connections that were ended by `accepted` since the log said so."""
        self._name = name
        self._counted = counted
        self._others = others
        self.share = max(int(limit * SHARE), 1)
        self._room = int(limit * ROOM)
        self._calls: Counter[str] = Counter()
        """Peer as gRPC names it -> calls under way."""
        self._unspared: Counter[str] = Counter()
        """The same of calls that spare their connection only while others can go."""
        self._known: set[str] = set()
        """Peers that made a call with a valid key."""
        self._seen: dict[Peer, float] = {}
        """Connection -> when it was first seen, in the order of that."""
        self._used: dict[Peer, float] = {}
        """Connection with a key -> the last look before which a call had ended, or at which one was under way."""
        self._ended: set[str] = set()
        """Peers of which a call has ended since the last look."""

    @contextmanager
    def call(self, peer: str, *, is_spared: bool = True) -> Iterator[None]:
        """A call of this peer is under way.

        Not spared is the connection of one that needs no key and ends when its client likes: it goes last.
        """
        calls = self._calls if is_spared else self._unspared
        calls[peer] += 1
        try:
            yield
        finally:
            left = calls[peer] - 1
            if left:
                calls[peer] = left
            else:
                del calls[peer]
            self._ended.add(peer)

    def know(self, peer: str) -> None:
        """A call of this peer had a valid key."""
        self._known.add(peer)

    def accepted(self, port: int) -> None:
        """A connection was accepted, on the event loop. If the process has nearly no files left, end others at once:
        those beyond the room, however short they have been idle."""
        self._accepted += 1
        if self._files is None or self._accepted < ACCEPTED:
            return
        self._accepted = 0
        if count_files() < self._files:
            return
        counted = set(self._counted())
        there = {each.peer: each for each in connections_to(port) if each.peer not in counted}
        now = time.monotonic()
        calls, known = self._by_peer(there)
        order = self._order(there, calls, known, now, listen(there.values()))
        surplus = [peer for peer in order[: max(len(there) - self._room, 0)] if peer not in calls][:STEP]
        for peer in surplus:
            end(there[peer], port)
        self._ended_at_once += len(surplus)

    async def run(self, port: int) -> None:
        """Look at the connections to `port`, for ever."""
        failing = Recurring("connections.unknown", "connections.known_again")
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self._look(port)
            except OSError as error:  # such as that there are no files left to look with
                failing.failed(api=self._name, error=str(error))
            else:
                failing.worked(api=self._name)

    async def _look(self, port: int) -> None:
        if self._ended_at_once:
            log.warning("connections.ended", api=self._name, ended=self._ended_at_once, is_at_once=True)
            self._ended_at_once = 0
        if await asyncio.to_thread(count_files) - self._others() - len(self._counted()) < self.limit * CROWDED:
            for memory in (self._seen, self._used, self._ended):
                memory.clear()
            if len(self._known) > self.limit:
                self._known.clear()
            return
        found = await asyncio.to_thread(connections_to, port)
        counted = set(self._counted())
        there = [each for each in found if each.peer not in counted]
        now = time.monotonic()
        heard = await asyncio.to_thread(listen, there) if len(there) > min(self.share, self._room) else {}
        if ended := await self.end_all(self.surplus(there, now, heard), port):
            log.warning("connections.ended", api=self._name, ended=ended, connections=len(there))

    async def end_all(self, surplus: Sequence[Open], port: int) -> int:
        """End connections, but for those on which a call began meanwhile or that are counted by now: between the
        look at them and their end there may be many turns of the event loop. Returns how many were ended."""
        ended = 0
        for start in range(0, len(surplus), STEP):
            spared = set(self._counted()) | {parse_peer(each) for each in self._calls}
            for each in surplus[start : start + STEP]:  # on the loop: nothing else happens between look and end
                if each.peer not in spared:
                    end(each, port)
                    ended += 1
            await asyncio.sleep(0)
        return ended

    def surplus(self, there: Iterable[Open], now: float, heard: Mapping[Peer, Heard] | None = None) -> list[Open]:
        """Return which of these connections are to be ended: those beyond the bounds that have been idle for a while.

        `now` is of a clock in seconds that never goes back; `heard`, read after that, says what they have received, as
        far as that is known. What is beyond a bound but not idle for long enough yet stays for now, and no other
        connection goes in its place.
        """
        connections = {each.peer: each for each in there}
        self._seen = dict.fromkeys(connections, now) | {p: at for p, at in self._seen.items() if p in connections}
        calls, known = self._by_peer(connections)
        fresh = calls | {parse_peer(each) for each in self._ended}
        self._ended.clear()
        self._used = {peer: now if peer in fresh else self._used.get(peer, self._seen[peer]) for peer in known}

        networks = Counter(network_of(address) for address, _ in connections)
        excess = {network: count - self.share for network, count in networks.items() if count > self.share}
        if not excess and len(connections) <= self._room:
            return []
        heard = heard or {}
        return [
            connections[peer]
            for peer in _beyond(self._order(connections, calls, known, now, heard), excess, self._room)
            if peer not in calls
            and now - self._idle_since(peer, now) >= (MIN_SILENT if _is_mute(peer, heard) else MIN_IDLE)
        ]

    def _order(
        self, there: Iterable[Peer], calls: set[Peer], known: set[Peer], now: float, heard: Mapping[Peer, Heard]
    ) -> list[Peer]:
        """Return these in the order in which they are to go."""
        unspared = {parse_peer(each) for each in self._unspared}
        networks = Counter(network_of(address) for address, _ in there)
        even = self._room / max(len(networks), 1)

        def rank(peer: Peer) -> tuple[bool, bool, bool, bool, bool, bool, float]:
            """The first to go: one that receives nothing and answers nothing, without a key, of an address that has
            more than an even part of the room, that never sent a byte, beyond its grace, idle for longest."""
            age = now - self._seen.get(peer, now)
            silent = heard[peer].silent if peer in heard else age
            is_busy = peer in unspared or silent < min(RECENT, age)  # not what it said at the start
            is_known = peer in known
            is_light = is_known or networks[network_of(peer[0])] <= even
            is_young = not is_known and age < GRACE
            idle_since = self._idle_since(peer, now)
            return peer in calls, is_busy, is_known, is_light, not _is_mute(peer, heard), is_young, idle_since

        return sorted(there, key=rank)

    def _idle_since(self, peer: Peer, now: float) -> float:
        return self._used.get(peer, self._seen.get(peer, now))

    def _by_peer(self, there: dict[Peer, Open]) -> tuple[set[Peer], set[Peer]]:
        """Who of these has calls under way, and who a valid key; of the others the key is forgotten."""
        calls = {parse_peer(each) for each in self._calls}
        known = {}
        for each in list(self._known):
            peer = parse_peer(each)
            if peer in there:
                known[peer] = each
            else:
                self._known.discard(each)
        return calls, set(known)


def _is_mute(peer: Peer, heard: Mapping[Peer, Heard]) -> bool:
    return peer in heard and heard[peer].is_mute


def _beyond(order: Sequence[Peer], excess: Mapping[str, int], room: int) -> list[Peer]:
    """Return the first of these that are beyond a bound: of each network as many as it has in `excess`, and then of all
    as many as leave `room`."""
    left = dict(excess)
    found: dict[Peer, None] = {}
    for peer in order:
        network = network_of(peer[0])
        if left.get(network, 0) > 0:
            left[network] -= 1
            found[peer] = None
    others = [peer for peer in order if peer not in found]
    return [*found, *others[: max(len(others) - room, 0)]]


def parse_peer(text: str) -> Peer:
    """Return address and port of a peer as gRPC names it, like `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    address, _, port = unquote(text).partition(":")[2].rpartition(":")
    return plain_address(address.strip("[]")), int(port) if port.isdecimal() else 0


def count_files() -> int:
    """Return how many files the process has open, sockets among them."""
    return _FILES.stat().st_size or len(_numbers())  # Linux says it as the size, from 6.2 on


def _numbers() -> Sequence[int]:
    """The numbers of the open files. To list them takes a file: where none is left, all numbers that there may be."""
    try:
        return [int(name) for name in os.listdir(_FILES) if name.isdecimal()]  # noqa: PTH208 - thousands of plain names
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def connections_to(port: int) -> list[Open]:
    """Return the process's TCP connections that were accepted on a local port."""
    found = []
    for fd in _numbers():
        peer = _peer_at(fd, port)
        if peer is not None:
            found.append(Open(fd, peer))
    return found


def listen(there: Iterable[Open]) -> dict[Peer, Heard]:
    """Return what connections have received.

    Those of which that cannot be read are left out: all, where the system is not Linux.
    """
    found = {}
    if sys.platform == "linux":
        for each in there:
            with contextlib.suppress(OSError, struct.error), _borrowed(each.fd) as borrowed:
                info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
                silent = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)[0] / 1000
                is_mute = len(info) >= _BYTES_RECEIVED + 8 and not any(info[_BYTES_RECEIVED:])
                found[each.peer] = Heard(silent, is_mute)
    return found


def end(connection: Open, port: int) -> None:
    """End a connection on both sides, if the file is still that. Whoever uses it sees that the client has gone."""
    # Not by a duplicate, although a number may be used anew meanwhile: closing a duplicate would drop the locks of a
    # file that SQLite has opened under that number. A shutdown of what is no socket does nothing.
    if _peer_at(connection.fd, port) == connection.peer:
        with contextlib.suppress(OSError), _borrowed(connection.fd) as found:
            found.shutdown(socket.SHUT_RDWR)


def _peer_at(fd: int, port: int) -> Peer | None:
    """Who is at the other side of a file; None if it is no connection to that port."""
    try:
        with _borrowed(fd) as found:
            own = found.getsockname()
            if not isinstance(own, tuple) or own[1] != port:
                return None
            address, number = found.getpeername()[:2]
    except OSError:  # no socket, or one that listens, or closed by now
        return None
    return plain_address(address), number


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A file as a socket, which stays open. IPv6 has the longest addresses; those of other families say so."""
    found = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        yield found
    finally:
        found.detach()
