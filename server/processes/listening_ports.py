"""Ports on which several processes listen, reserved by their supervisor.

A socket that is bound with SO_REUSEPORT and does not listen gets no connection. It reserves the port for the child
processes while they are restarted, and keeps others out, except processes of the same user that also set SO_REUSEPORT:
`hold` checks for those.
"""

import asyncio
import errno
import socket
import time
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any, Final

PATIENCE: Final = 3.0
"""Seconds to wait for a port that an earlier server is just releasing."""


class HeldPort:
    """A port that is reserved until `close`."""

    def __init__(self, bind: str) -> None:
        """Reserve the port of `bind`; 0: a free one. Raises `OSError`, with EADDRINUSE if a process listens there."""
        host, port = split_bind(bind)
        with ExitStack() as stack:
            infos = _resolve(host, port)
            if port:
                for info in infos:  # the kernel would let this one share the port with another server: check first
                    _bound(*info, share=False).close()
            self._sockets = []
            for family, address in infos:
                made = stack.enter_context(_bound(family, (address[0], port, *address[2:]), share=True))
                port = made.getsockname()[1]
                self._sockets.append(made)
            stack.pop_all()
        self.bind = f"{bind.rpartition(':')[0]}:{port}"
        """The address with the port that was reserved."""

    def close(self) -> None:
        """Release the port."""
        for each in self._sockets:
            each.close()


def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _bound(family: int, address: Any, *, share: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


async def hold(bind: str) -> HeldPort:
    """Reserve a port, waiting up to `PATIENCE` seconds for it. Raises `OSError`, with what to do."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return HeldPort(bind)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise OSError(error.errno, taken(bind, error)) from error
            await asyncio.sleep(0.1)


def taken(bind: str, error: OSError) -> str:
    """Return the error text for an address on which the process cannot listen: why, and what to do."""
    return (
        f"cannot listen on {bind}: {error.strerror or error}; stop what listens there, or set another address as "
        "SPENDSTREAM_HTTP_BIND or SPENDSTREAM_GRPC_BIND"
    )


def is_local(bind: str) -> bool:
    """Return True for an address that only this machine reaches; of names only localhost counts."""
    host, _ = split_bind(bind)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def split_bind(bind: str) -> tuple[str, int]:
    """Return host (without brackets) and port."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)
