"""What the gate sees of a request, and how it counts."""

import pytest

from server.errors import Refused
from server.http_api import gate
from server.http_api.gate import Gate, Waiting
from server.limits.memory_budget import MemoryBudget
from tests.contract.doors import SECRET

HEAD = (
    "POST /v1/ingest HTTP/1.1\r\nHost: x\r\nx-api-key: a\r\nContent-Type: application/x-ndjson\r\nContent-Length: 3\r\n"
)


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n", "connection:keep-alive\r\n", "X-Expect-Not: 1\r\n"])
def test_a_usual_request_is_whole(more: str) -> None:
    assert gate.is_whole(f"{HEAD}{more}\r\nabc".encode())


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + "\r\nab",
        HEAD + "\r\nabcd",
        HEAD,
        HEAD + "Transfer-Encoding: chunked\r\n\r\nabc",
        HEAD + "Connection: close\r\n\r\nabc",
        HEAD + "Connection: keep-alive, close\r\n\r\nabc",
        HEAD + "Connection: upgrade\r\nUpgrade: x\r\n\r\nabc",
        HEAD + "Expect: 100-continue\r\n\r\nabc",
        HEAD + "content-length: 3\r\n\r\nabc",
        HEAD + "x-a: b\n\r\n\r\nabc",
        HEAD.replace("Content-Length: 3", "Content-Length: 3, 3") + "\r\nabc",
        HEAD.replace("Content-Length: 3", "Content-Length: +3") + "\r\nabc",
        HEAD.replace("HTTP/1.1", "HTTP/1.0") + "\r\nabc",
        HEAD.replace("/v1/ingest", "/v1/ingest?a=b") + "\r\nabc",
        HEAD + "x-long: " + "a" * 33_000 + "\r\n\r\nabc",
    ],
)
def test_the_parser_sees_what_is_not(request_: str) -> None:
    assert not gate.is_whole(request_.encode())


def test_the_answer_is_that_of_the_table() -> None:
    head, _, body = gate.ANSWER.decode().partition("\r\n\r\n")
    assert head.split("\r\n") == [
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Retry-After: 1",
        f"Content-Length: {len(body)}",
    ]
    assert (
        body
        == '{"error":"More batches arrive than can be accepted; retry the request unchanged","reason":"unavailable"}'
    )


class Held:
    """A connection as the gate sees it."""

    def __init__(self, told: list[str], name: str, owner: str = "") -> None:
        self.held: bytes | None = HEAD.replace(": a\r", f": {owner}\r").encode()
        self._told = told
        self._name = name

    def let_in(self) -> None:
        self.held = None
        self._told.append(self._name)

    def refuse(self) -> None:
        self.held = None
        self._told.append(f"{self._name} refused")


class Loop:
    """A loop whose turns are made by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[object] = []
        self.later: list[float] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: object) -> None:
        self.soon.append(callback)

    def call_later(self, seconds: float, callback: object) -> None:
        self.later.append(seconds)
        self.soon.append(callback)

    def turn(self) -> None:
        ready, self.soon = self.soon, []
        for callback in ready:
            callback()  # type: ignore[operator]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: made)
    monkeypatch.setattr("server.http_api.gate.PER_TURN", 2)
    return made


def arrive(made: Gate, each: Waiting) -> None:
    if made.lets_in():
        each.let_in()
    else:
        made.wait(each)


def test_so_many_come_in_in_a_turn_owner_by_owner(loop: Loop) -> None:
    made, told = Gate(lambda secret: secret[:1], MemoryBudget()), list[str]()
    for number in range(6):
        arrive(made, Held(told, f"a{number}", "a"))
    arrive(made, Held(told, "b", "b"))
    assert told == ["a0", "a1"]
    loop.turn()
    assert told == ["a0", "a1", "a2", "b"]
    arrive(made, Held(told, "late", "a"))
    loop.turn()
    loop.turn()
    assert told[4:] == ["a3", "a4", "a5", "late"]
    loop.turn()
    assert (loop.soon, loop.later) == ([], []), "there is nothing to do any more"
    arrive(made, Held(told, "calm", "a"))
    assert told[-1] == "calm"


def test_who_has_waited_for_too_long_is_refused_and_who_left_is_forgotten(loop: Loop) -> None:
    room_for = MemoryBudget()
    made, told = Gate(lambda secret: secret[:1], room_for), list[str]()
    with room_for.hold("a", "k") as hold:
        hold.reserve(room_for.limit)
        with room_for.hold("a", "k") as other, pytest.raises(Refused):
            other.reserve(1)
        gone = Held(told, "gone", "a")
        for each in (Held(told, "a0", "a"), gone, Held(told, "b0", "b")):
            arrive(made, each)
        gone.held = None
        loop.turn()
        assert told == ["b0"], "nobody comes in for whom there is no room"
        loop.turn()
        loop.now += gate.PATIENCE / 2
        arrive(made, Held(told, "a1", "a"))
        loop.turn()
        assert told == ["b0"]
        assert loop.later
        assert set(loop.later) == {gate.PAUSE}
        loop.now += gate.PATIENCE / 2 + 0.01
        loop.turn()
        assert told == ["b0", "a0 refused"]
    loop.turn()
    assert told == ["b0", "a0 refused", "a1"]


def test_beyond_the_bytes_that_may_wait_the_next_is_refused_at_once(loop: Loop) -> None:
    made, told = Gate(lambda _: "", MemoryBudget()), list[str]()
    made.lets_in()
    made.lets_in()
    made.hold(gate.MAX_BYTES + 1)
    arrive(made, Held(told, "a"))
    assert told == ["a refused"]


def test_the_owner_is_found_by_the_key(loop: Loop) -> None:
    asked: list[str] = []

    def owner_of(secret: str) -> str:
        asked.append(secret)
        return ""

    made = Gate(owner_of, MemoryBudget())
    made.lets_in()
    made.lets_in()
    for head in (HEAD.replace("x-api-key: a", f"X-API-Key:{SECRET}"), HEAD, HEAD.replace("x-api-key: a", "x-y: z")):
        each = Held([], "")
        each.held = head.encode()
        made.wait(each)
    assert asked == [SECRET, "a"]
