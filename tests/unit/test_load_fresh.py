"""The load generator of endless traffic: what is refused comes again unchanged, what is said to be taken was taken."""

import asyncio
import contextlib
import gzip
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.bench.load_fresh import HELLO, Fresh, Generator, Odd, Stretch
from tests.bench.passes import Bodies, Pass
from tests.support.traffic import BATCH

MADE = Pass.make(users=60, seed=3)
TAKEN = b'HTTP/1.1 202 Accepted\r\nContent-Length: 16\r\n\r\n{"accepted":100}'
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\n{}"
WRONG = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}"


class FakeServer:
    """Answers request after request as `answer` says, given how many there were before."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self._answer = answer
        self._number = itertools.count()
        self.taken: list[bytes] = []
        self.refused: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head == HELLO:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = gzip.decompress(await reader.readexactly(size))
                answer = self._answer(next(self._number))
                (self.taken if answer == TAKEN else self.refused).append(body)
                writer.write(answer)

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def rig(tmp_path: Path, answer: Callable[[int], bytes]) -> AsyncIterator[tuple[Generator, FakeServer]]:
    server = FakeServer(answer)
    MADE.write(tmp_path / "pass")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield Generator(Fresh(port, "lqt_", str(tmp_path / "pass"), 7)), server
        await server.close()


def requests(count: int) -> list[bytes]:
    bodies = Bodies(MADE, 7)
    return [bytes(bodies.text(number)) for number in range(count)]


async def test_so_many_are_sent_and_the_next_stretch_goes_on_there(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda _: TAKEN) as (generator, server):
        one = await generator.run(Stretch(requests=7, lanes=3))
        other = await generator.run(Stretch(requests=5, lanes=2, remember=True))
    assert (one.accepted, other.accepted, one.requests) == (7 * BATCH, 5 * BATCH, 7)
    assert sorted(other.taken) == [7, 8, 9, 10, 11]
    assert sorted(server.taken) == sorted(requests(12))
    assert one.began <= one.last_sent <= one.ended


async def test_what_is_refused_is_sent_again_unchanged_until_it_is_taken(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda number: TAKEN if number % 3 == 2 else BUSY) as (generator, server):
        outcome = await generator.run(Stretch(requests=20, lanes=4))
    assert (outcome.accepted, outcome.requests) == (20 * BATCH, 20 + outcome.refused)
    assert outcome.refused == outcome.busy > 20
    assert sorted(server.taken) == sorted(requests(20))
    assert set(server.refused) <= set(requests(20))


async def test_prepared_ones_are_all_sent_and_no_more(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda _: TAKEN) as (generator, server):
        generator.prepare(9)
        outcome = await generator.run(Stretch(requests=9, prepared=True))
    assert outcome.accepted == 9 * BATCH
    assert sorted(server.taken) == sorted(requests(9))


async def test_a_rate_is_kept_and_what_stays_refused_is_not_among_the_taken(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda number: BUSY if number % 2 else TAKEN) as (generator, server):
        stretch = Stretch(seconds=0.5, rate=200, lanes=20, again=False, remember=True)
        outcome = await generator.run(stretch)
        after = await generator.run(Stretch(requests=1))
    assert 50 <= outcome.requests <= 105, "100 are due in half a second"
    assert outcome.accepted == BATCH * len(outcome.taken)
    made = requests(200)
    assert {made[number] for number in outcome.taken} == set(server.taken[: len(outcome.taken)])
    assert len(set(outcome.taken)) == len(outcome.taken) == len(outcome.latencies)
    assert len(outcome.late) == outcome.requests == len(outcome.latencies) + len(outcome.refusals)
    assert after.accepted == BATCH


async def test_with_a_rate_too_what_is_refused_can_be_sent_until_it_is_taken(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda number: BUSY if number < 60 else TAKEN) as (generator, server):
        outcome = await generator.run(Stretch(seconds=0.2, rate=200, lanes=10))
    assert outcome.refused == 60
    assert sorted(server.taken) == sorted(requests(len(server.taken)))
    assert outcome.accepted == BATCH * len(server.taken) > 0


async def test_an_answer_that_no_server_should_give_ends_it(tmp_path: Path) -> None:
    async with rig(tmp_path, lambda _: WRONG) as (generator, _):
        with pytest.raises(Odd, match="400 Bad Request"):
            await generator.run(Stretch(requests=1, lanes=1))
