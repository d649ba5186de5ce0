"""Ports that are held for several processes."""

import errno
import socket

import pytest

from server.processes import listening_ports
from server.processes.listening_ports import HeldPort


def listening(bind: str, *, share: bool) -> socket.socket:
    host, _, port = bind.rpartition(":")
    made = socket.socket()
    if share:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, int(port)))
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def test_a_held_port_is_for_those_who_share() -> None:
    held = HeldPort("127.0.0.1:0")
    assert not held.bind.endswith(":0")
    with listening(held.bind, share=True), listening(held.bind, share=True):
        pass
    with pytest.raises(OSError, match="in use"):
        listening(held.bind, share=False)
    held.close()
    with listening(held.bind, share=False):
        pass


@pytest.mark.parametrize("share", [False, True])
async def test_a_port_that_somebody_listens_on_is_not_had(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening_ports, "PATIENCE", 0.15)
    with socket.socket() as other:
        if share:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {bind}") as caught:
            await listening_ports.hold(bind)
        assert caught.value.errno == errno.EADDRINUSE
    (await listening_ports.hold(bind)).close()
