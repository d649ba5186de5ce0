"""The fast path of usual batches gives the answers that aiohttp's way gives, byte for byte, whatever is sent and in
however many pieces; and nothing that an HTTP parser might read otherwise comes into it."""

import asyncio
import gc
import gzip
import re
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import zstandard
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from server.errors import Refused
from server.http_api.fast_path import FastPath, Head, Sender, read_head
from server.ingest.intake import Intake
from server.limits.memory_budget import MemoryBudget
from server.limits.rate_limit_headers import Allowance
from server.services import Services
from server.tenancy.directory import Directory, revocation_record
from server.tenancy.directory_follower import always
from server.tenancy.keys import Key, Scope, make_key
from tests.contract.doors import READ_ONLY, SECRET, Doors, open_doors
from tests.contract.fakes import NOW, FakeReservation
from tests.contract.test_gate import read_answer
from tests.contract.test_hardening import HeldPublisher
from tests.support.connections import connections
from tests.support.events import make_event, to_ndjson
from tests.support.examples import examples
from tests.support.patience import PATIENCE, until

http_doors = partial(open_doors, apis=["http"])

EVENT = make_event()
ONE = to_ndjson([EVENT])
MANY = to_ndjson([make_event() for _ in range(100)])
BAD = to_ndjson([EVENT, make_event(latency_ms=-1)])


def head(*lines: str, size: int | None = None) -> bytes:
    usual = ["POST /v1/ingest HTTP/1.1", "Host: x", f"x-api-key: {SECRET}", "Content-Type: application/x-ndjson"]
    length = [] if size is None else [f"Content-Length: {size}"]
    return "\r\n".join([*usual, *lines, *length, "", ""]).encode()


def batch(body: bytes = ONE, *lines: str) -> bytes:
    return head(*lines, size=len(body)) + body


class Spy:
    """How many batches the fast path took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        take = Intake.take_together

        def spied(*arguments: Any) -> list[bool]:
            found = take(*arguments)
            self.taken += sum(found)
            return found

        monkeypatch.setattr(Intake, "take_together", spied)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


class Connected(NamedTuple):
    """A client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@asynccontextmanager
async def connected(doors: Doors) -> AsyncIterator[Connected]:
    reader, writer = await doors.connect()
    try:
        yield Connected(reader, writer)
    finally:
        writer.close()


async def all_of(reader: asyncio.StreamReader, within: float = PATIENCE) -> bytes:
    """Everything until the other side ends."""
    return await asyncio.wait_for(reader.read(), within)


def plain(response: bytes) -> bytes:
    """Without what differs between any two answers: the time, and the order of the headers."""
    found = []
    for part in re.split(rb"(?=HTTP/1\.[01] \d{3})", response):
        lines, _, body = part.partition(b"\r\n\r\n")
        status, *headers = lines.split(b"\r\n")
        kept = sorted(each for each in headers if not each.lower().startswith(b"date:"))
        found.append(b"\r\n".join([status, *kept, b"", body]))
    return b"\n\n".join(found)


async def exchange(doors: Doors, sent: bytes) -> bytes:
    """What comes back for these bytes, after which the client says no more."""
    async with connected(doors) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        return plain(await all_of(reader))


USUAL = {
    "one event": batch(),
    "a hundred": batch(MANY),
    "gzip": batch(gzip.compress(MANY), "Content-Encoding: gzip"),
    "deflate": batch(zlib.compress(MANY), "Content-Encoding: deflate"),
    "zstd": batch(zstandard.compress(MANY), "Content-Encoding: zstd"),
    "identity": batch(ONE, "Content-Encoding: identity"),
    "other headers": batch(ONE, "User-Agent: x y/1", "Accept: */*", "x-request-id: 7", "Connection: keep-alive"),
    "names in any case": batch().replace(b"x-api-key", b"X-API-KEY").replace(b"Content-Length:", b"content-length: "),
    "a bad line": batch(BAD),
    "blank lines between": batch(ONE.replace(b"\n", b"\r\n\n")),
}
UNUSUAL = {
    "only bad lines": batch(b"{}\n"),
    "no event": batch(b"\n"),
    "no body": head(size=0),
    "101 events": batch(MANY + ONE),
    "prefer": batch(ONE, "Prefer: handling=strict"),
    "strict and a bad line": batch(BAD, "Prefer: handling=strict"),
    "a key that is none": batch().replace(SECRET.encode(), b"lqt_" + b"7" * 64),
    "a key that may only read": batch().replace(SECRET.encode(), READ_ONLY.encode()),
    "no key": batch().replace(b"x-api-key", b"x-other"),
    "another type": batch().replace(b"application/x-ndjson", b"text/plain"),
    "a type with a parameter": batch().replace(b"application/x-ndjson", b"application/x-ndjson; charset=utf-8"),
    "an unknown coding": batch(ONE, "Content-Encoding: br"),
    "two codings": batch(gzip.compress(ONE), "Content-Encoding: gzip, gzip"),
    "damaged gzip": batch(gzip.compress(MANY)[:-5], "Content-Encoding: gzip"),
    "gzip without its name": batch(gzip.compress(ONE)),
    "much text": batch(gzip.compress(b" " * 2_000_000 + ONE), "Content-Encoding: gzip"),
    "a large body": batch(b" " * 300_000 + ONE),
    "too much text": batch(gzip.compress(b"\n" * 21_000_000), "Content-Encoding: gzip"),
    "expect": batch(ONE, "Expect: 100-continue"),
    "connection: close": batch(ONE, "Connection: close"),
    "HTTP/1.0": batch().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a query": batch().replace(b"/v1/ingest ", b"/v1/ingest?a=b "),
    "another path": batch().replace(b"/v1/ingest ", b"/v1/ingesting "),
    "a body that breaks off": batch(MANY)[:-10],
    "a head that breaks off": batch()[:40],
    "a long header": batch(ONE, f"x-long: {'y' * 5000}"),
    "chunked": head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(ONE), ONE),
}
SMUGGLED = {
    "two lengths": batch(ONE, f"Content-Length: {len(ONE)}"),
    "two other lengths": batch(ONE, "Content-Length: 3"),
    "a length with a sign": batch().replace(b"Content-Length: ", b"Content-Length: +"),
    "a list of lengths": head(f"Content-Length: {len(ONE)}, {len(ONE)}") + ONE,
    "a length in hex": head(f"Content-Length: 0x{len(ONE):x}") + ONE,
    "a length with an underscore": head("Content-Length: 1_0") + ONE,
    "no length": head() + ONE,
    "a length and chunked": batch(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    "chunked behind a space": batch(b"0\r\n\r\n", "Transfer-Encoding : chunked"),
    "chunked behind a tab": batch(b"0\r\n\r\n", "Transfer-Encoding:\tchunked"),
    "chunked in a folded line": batch(b"0\r\n\r\n", "x-other: a\r\n Transfer-Encoding: chunked"),
    "a folded line": batch(ONE, "x-other: a\r\n b"),
    "a length in a folded line": head("x-other: a\r\n Content-Length: 3") + ONE,
    "a space before the colon": batch().replace(b"Content-Length:", b"Content-Length :"),
    "a bare LF": batch(ONE, "x-other: a\nContent-Length: 3"),
    "a bare CR": batch(ONE, "x-other: a\rContent-Length: 3"),
    "a NUL": batch(ONE, "x-other: a\0b"),
    "a byte above 127": batch(ONE, "x-other: é"),
    "a line without a colon": batch(ONE, "other"),
    "a header without a name": batch(ONE, ": a"),
    "two keys": batch(ONE, "x-api-key: other"),
    "two types": batch(ONE, "Content-Type: text/plain"),
    "two codings in two headers": batch(gzip.compress(ONE), "Content-Encoding: gzip", "Content-Encoding: identity"),
    "two hosts": batch(ONE, "Host: y"),
    "no host": batch().replace(b"Host: x\r\n", b""),
    "another method": batch().replace(b"POST", b"post"),
    "two spaces": batch().replace(b"POST /", b"POST  /"),
    "an absolute target": batch().replace(b"/v1/ingest", b"http://x/v1/ingest"),
    "upgrade": batch(ONE, "Connection: upgrade", "Upgrade: h2c"),
    "te": batch(ONE, "TE: trailers"),
    "trailer": batch(ONE, "Trailer: x"),
}


@pytest.mark.parametrize("sent", [*USUAL, *UNUSUAL, *SMUGGLED])
async def test_every_answer_is_the_one_of_the_other_way(sent: str, spy: Spy) -> None:
    behind = [b"", batch(), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
    if sent == "a body that breaks off":  # what is behind it would be its end
        behind = behind[:1]
    answers, stored = [], []
    for watched in (False, True):
        async with http_doors(watched=watched) as doors:
            doors.quotas.left = [Allowance("requests", 60, 7, NOW + 5, 60)]
            for each in behind:
                answers.append(await exchange(doors, (USUAL | UNUSUAL | SMUGGLED)[sent] + each))
                stored.append([event.event_id for _, events in doors.stored() for event in events])
                assert doors.services.bodies.used == doors.services.intake.pending.used == 0
                if not watched:
                    assert spy.taken == (sent in USUAL) * (1 + (each == batch())), each
                    spy.taken = 0
    assert answers[: len(behind)] == answers[len(behind) :]
    assert stored[: len(behind)] == stored[len(behind) :]
    assert spy.taken == 0


async def test_garbage_behind_a_batch_is_refused_and_the_batch_is_not(spy: Spy) -> None:
    async with http_doors() as doors:
        answers = await exchange(doors, batch() + b"garbage\r\n\r\n")
        assert re.findall(rb"HTTP/1.. (\d+)", answers) == [b"202", b"400"]
        assert len(doors.stored()) == spy.taken == 1


@pytest.mark.parametrize("name", USUAL)
async def test_usual_batches_come_in_however_many_pieces(name: str, spy: Spy) -> None:
    data = USUAL[name]
    begin = data.index(b"\r\n\r\n") + 4
    async with http_doors() as doors, connected(doors) as (reader, writer):
        for cut in (begin, begin + 1, (begin + len(data)) // 2, len(data) - 1):
            writer.write(data[:cut])
            await asyncio.sleep(0.02)
            writer.write(data[cut:])
            assert (await read_answer(reader))[0] == 202
    assert spy.taken == 4


async def test_batches_in_one_write_are_answered_in_order(spy: Spy) -> None:
    sent = [batch(to_ndjson([make_event() for _ in range(1 + number)])) for number in range(20)]
    async with http_doors() as doors:
        answers = await exchange(doors, b"".join(sent))
    assert [int(each) for each in re.findall(rb'"accepted":(\d+)', answers)] == list(range(1, 21))
    assert spy.taken == 20


async def test_a_keys_handling_holds_on_both_ways(spy: Spy) -> None:
    missing = to_ndjson([make_event(), make_event(model=None)])
    for sent, handlings in ((batch(MANY), ("strict", "lenient", "partial", None)), (batch(missing), ("lenient",))):
        for handling in handlings:
            answers = []
            for watched in (False, True):
                async with http_doors(handling="strict", watched=watched) as doors:
                    doors.add_key(SECRET, handling=handling)
                    answers.append(await exchange(doors, sent))
                    [(request, _)] = doors.stored()[:1]
                    assert request.source.handling == (handling or "strict")
            assert answers[0] == answers[1]
            assert answers[0].count(b"HTTP/1.1 202 Accepted") == 1
    assert spy.taken == 5


@pytest.mark.parametrize("what", ["spans", "spans and calls", "other kinds"])
async def test_a_span_is_a_usual_event(what: str, spy: Spy) -> None:
    span = {"kind": "span", "name": "plan", "cost_usd": 0}
    odd = {"kind": "tool", "name": ""}
    chosen: dict[str, list[dict[str, Any]]] = {"spans": [span], "spans and calls": [span, {}], "other kinds": [odd]}
    kinds = chosen[what]
    sent = batch(to_ndjson([make_event(**each) for each in kinds for _ in range(20)]))
    answers = []
    for watched in (False, True):
        async with http_doors(watched=watched) as doors:
            answers.append(await exchange(doors, sent))
            found = [event.kind for _, events in doors.stored() for event in events]
            assert sorted(found) == sorted(each.get("kind", "call").replace("tool", "call") for each in kinds * 20)
    assert answers[0] == answers[1]
    assert spy.taken == 1


@pytest.mark.parametrize("why", ["rate", "quota", "log", "fault"])
async def test_who_is_refused_is_told_as_by_the_other_way(why: str) -> None:
    answers = []
    for watched in (False, True):
        async with http_doors(watched=watched) as doors:
            if why == "rate":
                doors.quotas.refuse_request = Refused("rate_limited", "Rate limit exceeded", retry_after=7)
            elif why == "quota":
                doors.quotas.refuse_events = Refused("quota_exceeded", "Monthly quota exceeded", retry_after=60)
            elif why == "log":
                doors.publisher.available = False
            else:
                doors.quotas.refuse_request = RuntimeError("of the test")  # type: ignore[assignment]
            answers.append(await exchange(doors, batch()))
            assert [end for each in doors.quotas.reservations for end in each.ended] in ([], ["released"], ["doubted"])
    assert answers[0] == answers[1]


async def test_a_body_that_comes_slowly_is_left_to_the_other_way(spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_api.connections.PATIENCE", 0.05)
    data = batch(MANY)
    async with http_doors() as doors, connected(doors) as (reader, writer):
        writer.write(data[:500])
        await asyncio.sleep(0.5)
        writer.write(data[500:] + batch())
        for count in (100, 1):
            assert b'"accepted":%d}' % count in await reader.readuntil(b"}")
        assert doors.services.bodies.used == 0
    assert spy.taken == 0


async def test_only_what_has_arrived_of_a_body_takes_room() -> None:
    async with http_doors() as doors, connected(doors) as (reader, writer):
        writer.write(batch(MANY)[:700])
        await until(lambda: doors.services.bodies.used)
        assert doors.services.bodies.used == 700
        writer.write(batch(MANY)[700:])
        assert (await read_answer(reader))[0] == 202
        assert doors.services.bodies.used == 0


async def test_a_body_without_room_is_refused_as_by_the_other_way(spy: Spy) -> None:
    answers = []
    for watched in (False, True):
        async with http_doors(watched=watched) as doors:
            doors.services.bodies.limit = 1000
            answers.append(await exchange(doors, batch(MANY)))
            assert doors.services.bodies.used == 0
    assert answers[0] == answers[1]
    assert b" 503 " in answers[0]
    assert spy.taken == 0


@pytest.mark.parametrize("what", ["submit", "admit_request", "settle", "accepted"])
async def test_a_fault_of_ours_is_answered_and_holds_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: nobody waits for an answer that never comes, nothing that was reserved stays so."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with http_doors() as doors:
        owner: Any = {
            "submit": doors.publisher,
            "admit_request": doors.quotas,
            "settle": FakeReservation,
            "accepted": doors.services.intake.meters,
        }[what]

        def fail(*_: Any) -> None:
            raise RuntimeError("of the test")

        monkeypatch.setattr(owner, what, fail)
        answer = await exchange(doors, batch())
        assert answer.split()[1] == (b"202" if what == "settle" else b"500")
        assert b"of the test" not in answer
        assert doors.services.bodies.used == doors.services.intake.pending.used == 0
        ends = [each.ended for each in doors.quotas.reservations]
        assert (
            ends
            == {
                "submit": [["doubted"], ["doubted"]],
                "admit_request": [["released"]],
                "settle": [[]],
                "accepted": [["settled"]],
            }[what]
        )
        assert [str(error) for error in reported] == ["of the test"] * (what == "settle")


async def test_what_a_client_leaves_behind_is_given_back(spy: Spy) -> None:
    publisher = HeldPublisher()
    async with http_doors(publisher) as doors:
        async with connected(doors) as (_, writer):  # gone in the middle of the body
            writer.write(batch(MANY)[:900])
            await until(lambda: doors.services.bodies.used)
        async with connected(doors) as (_, writer):  # gone while the log writes
            writer.write(batch())
            await until(lambda: spy.taken)
        await asyncio.sleep(0.05)
        publisher.durable.set()
        await until(doors.stored)
        await until(lambda: doors.services.bodies.used == doors.services.intake.pending.used == 0)
        assert [each.ended for each in doors.quotas.reservations] == [["settled"]]
        assert len(doors.stored()) == 1


async def test_a_client_that_resets_the_connection_harms_nobody(spy: Spy) -> None:
    publisher = HeldPublisher()
    async with http_doors(publisher) as doors:
        for size in (100, 700, len(batch(MANY))):
            with socket.create_connection(("127.0.0.1", int(doors.url.rpartition(":")[2]))) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(batch(MANY)[:size])
                await asyncio.sleep(0.05)
        publisher.durable.set()
        assert (await doors.post(ONE)).status == 202
        await until(lambda: doors.services.bodies.used == doors.services.intake.pending.used == 0)
    assert spy.taken == 2


async def test_a_client_that_resets_the_connection_leaves_no_error_of_ours(spy: Spy) -> None:
    """A request behind its batch is begun in the moment in which the connection is lost."""
    publisher, reported = HeldPublisher(), list[dict[str, Any]]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    async with http_doors(publisher) as doors:
        for behind in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", batch(ONE, "Prefer: handling=strict")):
            with socket.create_connection(("127.0.0.1", int(doors.url.rpartition(":")[2]))) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                before = spy.taken
                client.sendall(batch() + behind)
                await until(lambda before=before: spy.taken > before)  # type: ignore[misc]
                await asyncio.sleep(0.05)
            publisher.durable.set()
            await asyncio.sleep(0.05)
            publisher.durable.clear()
        assert spy.taken == 2
        assert doors.services.bodies.used == doors.services.intake.pending.used == 0
    gc.collect()
    assert reported == []


async def test_the_end_of_the_server_waits_for_what_is_under_way(spy: Spy) -> None:
    publisher = HeldPublisher()
    async with connections() as opened:
        async with http_doors(publisher) as doors:
            reader, writer = await opened.open("127.0.0.1", int(doors.url.rpartition(":")[2]))
            writer.write(batch())
            await until(lambda: spy.taken)
            asyncio.get_running_loop().call_later(0.5, publisher.durable.set)
        assert (await all_of(reader))[:12] == b"HTTP/1.1 202"


async def test_a_connection_that_waits_for_the_log_is_not_taken_for_idle(spy: Spy) -> None:
    publisher = HeldPublisher()
    async with http_doors(publisher, keepalive=0.2) as doors, connected(doors) as (reader, writer):
        writer.write(batch())
        await asyncio.sleep(1.0)
        publisher.durable.set()
        assert (await reader.readuntil(b"}"))[:12] == b"HTTP/1.1 202"
        assert await all_of(reader) == b"", "and it is idle from then on"
    assert spy.taken == 1


async def test_what_comes_behind_a_batch_is_bounded(spy: Spy) -> None:
    """While one is under way hardly more is read than the kernel holds."""
    publisher = HeldPublisher()
    async with http_doors(publisher) as doors, connected(doors) as (_, writer):
        writer.write(batch() + b"x" * 50_000_000)
        await until(lambda: spy.taken)
        await asyncio.sleep(0.3)
        assert spy.taken == 1
        assert writer.transport.get_write_buffer_size() > 30_000_000
        writer.transport.abort()
        publisher.durable.set()


@pytest.mark.slow
async def test_who_does_not_read_is_not_written_to_without_end(spy: Spy) -> None:
    async with http_doors() as doors:
        with socket.create_connection(("127.0.0.1", int(doors.url.rpartition(":")[2]))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            sent, data = 0, batch() * 500
            for _ in range(100):
                try:
                    sent += client.send(data[sent % len(data) :])
                except BlockingIOError:
                    await asyncio.sleep(0.05)
            assert spy.taken < 100 * 500, "some was refused to be read"
        assert (await doors.post(ONE)).status == 202


# --- heads -----------------------------------------------------------------------------------------------------------


def test_a_usual_head_says_the_key_and_the_coding() -> None:
    assert read_head(head("Content-Encoding: gzip", "Content-Length: *")[:-2]) == Head(SECRET, "gzip")


@pytest.mark.parametrize("name", SMUGGLED)
def test_what_a_parser_may_read_otherwise_is_not_usual(name: str) -> None:
    data = SMUGGLED[name]
    sender = cast(Sender, SimpleNamespace(known_head=None))
    found = FastPath(None).open(sender, data)  # type: ignore[arg-type] # it must not come to where a key is looked up
    assert found is None


class Nothing:
    """Of the services only what `open` asks: everything is in order."""

    trust = always()
    directory = Directory()
    bodies = MemoryBudget()

    def authenticate(self, secret: str | None, scope: Scope) -> Key:
        return make_key(secret or "", at=0)


@examples(300)
@given(st.integers(0, 10**10), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=2))
def test_a_head_is_recognized_only_where_it_would_be_found_anew(size: int, changes: list[tuple[int, bytes]]) -> None:
    """Whatever changes in a head that a connection has sent before, and whatever its next length is."""
    path = FastPath(cast(Services, Nothing()))
    sender = cast(Sender, SimpleNamespace(known_head=None))
    assert path.open(sender, head(size=7)) is not None
    data = bytearray(head(size=size))
    for place, piece in changes:
        data[place % len(data) : place % len(data) + len(piece)] = piece
    fresh = path.open(cast(Sender, SimpleNamespace(known_head=None)), bytes(data))
    again = path.open(sender, bytes(data))
    assert (fresh is None) == (again is None)
    if fresh is not None and again is not None:
        assert (fresh.begin, fresh.end, fresh.encoding) == (again.begin, again.end, again.encoding)
        assert fresh.key.hash == again.key.hash


class Taking(Nothing):
    """Services whose intake only notes how many batches it is given together."""

    def __init__(self) -> None:
        self.together: list[int] = []
        self.intake = self

    def handling_of(self, key: Key) -> str:
        return "partial"

    def take_together(self, batches: list[Any]) -> list[bool]:
        self.together.append(len(batches))
        return [True] * len(batches)


async def test_small_batches_of_turns_without_a_gap_are_taken_together() -> None:
    services = Taking()
    path = FastPath(cast(Services, services))
    senders = [cast(Sender, SimpleNamespace(known_head=None, is_there=True)) for _ in range(8)]

    def arrive(sender: Sender, body: bytes = ONE) -> None:
        sent = batch(body)
        arrival = path.open(sender, sent)
        assert arrival is not None
        path.take(arrival, sent)

    for sender in senders[:3]:
        arrive(sender)
        await asyncio.sleep(0)
        assert services.together == []
    await asyncio.sleep(0)  # a turn that brings nothing
    assert services.together == [3]
    arrive(senders[3])
    await asyncio.sleep(0)
    arrive(senders[4], b"\n".join([MANY.rstrip()] + [b" " * 64] * 600))  # much: nothing more is waited for
    await asyncio.sleep(0)
    assert services.together == [3, 2]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert services.together == [3, 2]


async def test_a_key_ends_on_a_connection_that_has_sent_its_head_before(spy: Spy) -> None:
    async with http_doors() as doors, connected(doors) as (reader, writer):
        key = doors.directory.find(SECRET)
        assert key is not None
        for _ in range(2):
            writer.write(batch())
            assert (await read_answer(reader))[0] == 202
        doors.directory.apply(*revocation_record(key, NOW))
        writer.write(batch())
        assert (await read_answer(reader))[0] == 401
        assert spy.taken == 2


PIECES = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b"\0", b",", b"\x80", b"chunked", b"0", b"\r\n\r\n"]
)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([(173, b"\r\n", False)], "a hundred")
@given(
    st.lists(st.tuples(st.integers(0, 400), PIECES, st.booleans()), min_size=1, max_size=3),
    st.sampled_from(list(USUAL)),
)
def test_changed_bytes_get_the_answers_of_the_other_way(changes: list[tuple[int, bytes, bool]], name: str) -> None:
    data = bytearray(USUAL[name])
    limit = data.index(b"\r\n\r\n") + 4
    for place, piece, replaces in changes:
        place %= limit
        data[place : place + len(piece) * replaces] = piece

    async def both() -> list[bytes]:
        found = []
        for watched in (False, True):
            async with http_doors(watched=watched) as doors:
                answer = await exchange(doors, bytes(data) + batch())
                found.append(answer + b"%d" % sum(len(events) for _, events in doors.stored()))
        return found

    one, other = asyncio.run(both())
    assert one == other


@pytest.mark.parametrize("watched", [False, True])
async def test_a_batch_counts_whatever_comes_behind_it_in_the_same_read(*, watched: bool) -> None:
    async with http_doors(watched=watched) as doors:
        answers = await exchange(doors, batch() + b"\0 is no request\r\n\r\n")
        assert [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", answers)] == [202, 400]
        assert sum(len(events) for _, events in doors.stored()) == 1
