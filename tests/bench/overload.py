"""Row `overload`: twice as many events as the server sustains, from as many clients as it takes.

A fifth of the corpus tells what it sustains; the rest comes at twice that rate, whatever is answered. How long,
`--events` decides: a minute wants some six million.
"""

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tests.bench import machine
from tests.bench.context import Bench, quantiles
from tests.bench.end_to_end import PICO, Reader
from tests.bench.loading import Outcome
from tests.bench.programs import Failed, Meter
from tests.bench.results import RATE, Figures
from tests.bench.traffic import BATCH, Truth, Usage, read_bodies

LANES: Final = 2048
"""Connections; a key may have half as many requests under way."""
TIMES: Final = 2.0


class Line(Struct):
    """Of an event, what the tables have."""

    user_id: str
    status: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: Decimal


def overload(bench: Bench) -> Figures:
    """What is taken, refused and held in memory; afterwards the tables are those of the requests that were taken."""
    calm, pressed = _bodies(bench)
    first = len(bench.corpus.lines) // 5
    with bench.server("serve") as (server, said):
        roles = server.roles()
        reader = Reader(said)
        truth = _truth(bench, range(first))
        with bench.load("json", said, bodies=calm) as load:
            load.tell("go")
            outcome = msgspec.convert(load.line(), Outcome)
            before = first * BATCH / (reader.wait_for(truth.unique) - outcome.began)
        with bench.load(
            "json", said, bodies=pressed, lanes=LANES, depth=1, rate=TIMES * before / BATCH, remember=True
        ) as load:
            meter = Meter({**roles, "loader": load.pid})
            load.tell("go")
            outcome = msgspec.convert(load.line(), Outcome)
            used = meter.figures(outcome.accepted, outcome.ended - outcome.began)
            caught_up = reader.wait_until_contains(outcome.position)
            if outcome.refused != outcome.busy:
                raise Failed(f"{outcome.refused - outcome.busy} refusals are not 503 with Retry-After")
            truth = _truth(bench, [*range(first), *(first + number for number in outcome.taken)])
            reader.wait_for(truth.unique)
        reader.compare(truth)
        seconds = outcome.ended - outcome.began
        peaks = {role: machine.peak(pid) for role, pid in roles.items()}
        return {
            RATE: outcome.accepted / seconds,
            **used,
            "sustained before, events/s": before,
            "sent, of what it sustains": outcome.requests * BATCH / seconds / before,
            "taken, of what it sustains": outcome.accepted / seconds / before,
            "taken and in the tables, of what it sustains": outcome.accepted / (caught_up - outcome.began) / before,
            "refused (503 with Retry-After), % of requests": 100 * outcome.refused / outcome.requests,
            "seconds of it": seconds,
            "all in the tables, s after the last answer": caught_up - outcome.ended,
            **quantiles("answered", outcome.latencies),
            **{f"RSS {role} at most, MiB": value for role, value in peaks.items() if value is not None},
        }


def _bodies(bench: Bench) -> tuple[Path, Path]:
    """The first fifth of the requests, and the others."""
    calm, pressed = bench.directory / "calm.bodies", bench.directory / "pressed.bodies"
    if not pressed.exists():
        bodies = read_bodies(bench.corpus.bodies("json"))
        calm.write_bytes(msgspec.msgpack.encode(bodies[: len(bodies) // 5]))
        pressed.write_bytes(msgspec.msgpack.encode(bodies[len(bodies) // 5 :]))
    return calm, pressed


def _truth(bench: Bench, taken: Iterable[int]) -> Truth:
    """The tables after these requests, an event sent twice in them counted once."""
    truth = Truth({})
    decode = msgspec.json.Decoder(Line).decode
    for line in {line for number in taken for line in bench.corpus.lines[number]}:
        event = decode(line)
        tokens = event.input_tokens, event.output_tokens, event.cached_tokens
        truth.add(Usage(event.user_id, int(event.status != "success"), *tokens, int(event.cost_usd * PICO)))
    return truth
