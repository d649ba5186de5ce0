"""Admission of connections to the HTTP API: a bound for all, a share for each address, and a reserve for probes.

Pure bookkeeping: the event loop's time is an argument, in seconds.

Beyond a bound the connection that has been idle longest is closed, first of those that never made a request. If none is
idle, the new connection is for probes only; of those the oldest is closed for the newest. So a client that opens
connections without end and does not use them closes its own.
"""

from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, Generic, Protocol, TypeVar

SHARE: Final = 0.75
"""The part of all connections that one address may have: that many, as it may be a proxy's."""
MIN_IDLE: Final = 1.0
"""Seconds that a connection has to be idle between two requests before it may be closed for another one."""
MIN_SILENT: Final = 0.25
"""The same before its first request."""
RESCAN: Final = 0.1
"""Seconds between two scans of all connections, if the first one found less than `FOUND`."""
FOUND: Final = 256
"""Idle connections that one scan remembers."""

Peer = tuple[str, int]
"""Address and port."""


def peer_of(address: tuple[object, ...]) -> Peer:
    """Return address and port of a socket's address."""
    return plain_address(str(address[0])), int(str(address[1]))


def plain_address(address: str) -> str:
    """Without what only one of the two namings may have: the interface of a link-local address, by name or number."""
    address = address.partition("%")[0]
    return address.removeprefix("::ffff:") if "." in address else address


@lru_cache(maxsize=16_384)
def network_of(address: str) -> str:
    """Return the network that has a share: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64"


class AdmittedConnection(Hashable, Protocol):
    """What is used of a connection."""

    peer: Peer
    network: str
    """The network that has the share: `network_of` the address."""

    @property
    def requests(self) -> int: ...
    def idle_since(self) -> float | None: ...
    def force_close(self) -> None: ...


C = TypeVar("C", bound=AdmittedConnection)


class Admission(Generic[C]):
    """The connections of one API process: at most `limit`, and `probes` more for probes only."""

    def __init__(self, limit: int, probes: int) -> None:
        self.limit = limit
        self.share = max(int(limit * SHARE), 1)
        self._probes = probes
        self._admitted: dict[C, None] = {}
        self._by_address: dict[str, int] = {}
        self._probe_only: dict[C, None] = {}
        """The oldest first."""
        self._idle: dict[str | None, tuple[float, list[C]]] = {}
        """Address (None: all) -> when to scan again, and the idle connections found; the next one to close is last."""

    def __len__(self) -> int:
        return len(self._admitted) + len(self._probe_only)

    def peers(self) -> list[tuple[str, int]]:
        """Return address and port of all connections."""
        return [each.peer for each in (*self._admitted, *self._probe_only)]

    def admit(self, connection: C, now: float) -> bool:
        """Count a connection, closing an idle one if there is no room; return False if it is for probes only."""
        address = connection.network
        has_share = self._by_address.get(address, 0) < self.share
        if (has_share and len(self._admitted) < self.limit) or self._make_room(None if has_share else address, now):
            self._admitted[connection] = None
            self._by_address[address] = self._by_address.get(address, 0) + 1
            return True
        if len(self._probe_only) >= self._probes:
            oldest = next(iter(self._probe_only))
            self.forget(oldest)
            oldest.force_close()
        self._probe_only[connection] = None
        return False

    def forget(self, connection: C) -> None:
        """Forget a closed connection; does nothing if it is not known."""
        self._probe_only.pop(connection, None)
        if connection not in self._admitted:
            return
        del self._admitted[connection]
        left = self._by_address[connection.network] - 1
        if left:
            self._by_address[connection.network] = left
        else:
            del self._by_address[connection.network]

    def _make_room(self, address: str | None, now: float) -> bool:
        """Close an idle connection, of that address if one is given."""
        found = self._find_idle(address, now)
        while found:
            connection = found.pop()
            if connection in self._admitted and _idle(connection, now) is not None:
                self.forget(connection)
                connection.force_close()
                return True
        return False

    def _find_idle(self, address: str | None, now: float) -> list[C]:
        next_look, found = self._idle.get(address, (now, []))
        if found or now < next_look:
            return found
        idle = [
            (each.requests > 0, since, number, each)
            for number, each in enumerate(self._admitted)
            if (address is None or each.network == address) and (since := _idle(each, now)) is not None
        ]
        idle.sort(key=lambda item: item[:3])
        found = [each for _, _, _, each in idle[FOUND - 1 :: -1]]
        self._idle = {key: value for key, value in self._idle.items() if value[1] or value[0] > now}
        self._idle[address] = (now if len(found) == FOUND else now + RESCAN, found)
        return found


def _idle(connection: AdmittedConnection, now: float) -> float | None:
    since = connection.idle_since()
    least = MIN_IDLE if connection.requests else MIN_SILENT
    return since if since is not None and now - since >= least else None
