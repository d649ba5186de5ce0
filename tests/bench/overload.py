"""Row `overload`: twice as many events as the server sustains, from as many clients as it takes, for a minute.

Once a second somebody else connects and asks for /healthz, as an orchestrator does.

First the same generators send as fast as they are answered, for ten seconds, and tell what it sustains; then requests
are due at twice that rate, whatever is answered; then ten seconds as at first. What is taken is compared with the mean
of what was sustained before and after: shared cores are not the same a minute later.
"""

import contextlib
import http.client
import threading
from typing import Final

import numpy as np

from tests.bench import machine
from tests.bench.context import Bench, FreshLoad, port_of, quantiles
from tests.bench.end_to_end import Reader
from tests.bench.load_fresh import Stretch
from tests.bench.loading import Outcome, now
from tests.bench.passes import Numbers, Pass
from tests.bench.programs import Failed, Meter
from tests.bench.results import RATE, Figures
from tests.bench.traffic import BATCH

GENERATORS: Final = 2
LANES: Final = 4096
"""Connections of all generators; a key may have a quarter as many requests under way."""
CALM_LANES: Final = 16
CALM: Final = 10.0
"""Seconds of the load that tells what it sustains."""
START: Final = 1.0
"""Seconds in which it makes its connections."""
CONNECTED: Final = 5.0
"""Seconds in which all generators have made their connections, to start together."""
TIMES: Final = 2.0
NEWCOMER_PATIENCE: Final = 30.0
"""Seconds."""


def overload(bench: Bench) -> Figures:
    """What is taken, refused and held in memory; afterwards the tables are those of the requests that were taken."""
    made = Pass.make()
    with bench.server("serve") as (server, said), bench.fresh_loads(said, made, GENERATORS) as loads:
        roles = server.roles()
        reader = Reader(said)
        before, taken = _calm(loads, reader, made, [[] for _ in loads])

        meter = Meter({**roles, **{f"loader {number}": load.program.pid for number, load in enumerate(loads, start=1)}})
        rate = TIMES * before / BATCH / GENERATORS
        newcomer = Newcomer(port_of(said, "json"))
        newcomer.start()
        pressed = _send(
            loads,
            Stretch(
                seconds=bench.overload_seconds,
                at=now() + CONNECTED,
                lanes=LANES // GENERATORS,
                rate=rate,
                again=False,
                remember=True,
            ),
        )
        newcomer.stop()
        began = min(outcome.began for outcome in pressed)
        ended = max(outcome.ended for outcome in pressed)
        accepted, requests = _accepted(pressed), sum(outcome.requests for outcome in pressed)
        used = meter.figures(accepted, ended - began)
        taken = _joined(taken, pressed)
        caught_up = reader.wait_for(int(_times(made, taken).sum()))
        after, taken = _calm(loads, reader, made, taken)
        reader.compare(made.truth(_times(made, taken)))
        sustained = (before + after) / 2
        refused = sum(outcome.refused for outcome in pressed)
        if refused != sum(outcome.busy for outcome in pressed):
            raise Failed("some refusals are not 503 with Retry-After")
        peaks = {role: machine.peak(pid) for role, pid in roles.items()}
        sending = max(outcome.last_sent for outcome in pressed) - began
        return {
            RATE: accepted / (ended - began),
            **used,
            "sustained before, events/s": before,
            "sustained after, events/s": after,
            "sent, of what it sustains": requests * BATCH / sending / sustained,
            "taken, of what it sustains": accepted / (ended - began) / sustained,
            "taken until all is in the tables, of what it sustains": accepted / (caught_up - began) / sustained,
            "refused (503 with Retry-After), % of requests": 100 * refused / requests,
            "seconds of it": sending,
            "all answered, s after the last request": ended - began - sending,
            "all in the tables, s after the last answer": caught_up - ended,
            **_quantiles("sent late by", [outcome.late for outcome in pressed]),
            **_quantiles("accepted", [outcome.latencies for outcome in pressed]),
            **_quantiles("refused", [outcome.refusals for outcome in pressed]),
            **_quantiles("a new connection answered", [newcomer.waited]),
            **{f"RSS {role} at most, MiB": value for role, value in peaks.items() if value is not None},
        }


class Newcomer(threading.Thread):
    """Connects anew and asks for /healthz, a second after the answer again."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.waited: list[float] = []
        """Seconds until the answer; as long as it was waited for if there was none."""
        self._port = port
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(1.0):
            began = now()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=NEWCOMER_PATIENCE)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            connection.close()
            self.waited.append(now() - began)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def _calm(loads: list[FreshLoad], reader: Reader, made: Pass, taken: list[list[int]]) -> tuple[float, list[list[int]]]:
    """Events a second that it sustains, accepted and in the tables; and what was taken from each generator by then."""
    calm = _send(loads, Stretch(seconds=CALM, at=now() + START, lanes=CALM_LANES // GENERATORS, remember=True))
    taken = _joined(taken, calm)
    caught_up = reader.wait_for(int(_times(made, taken).sum()))
    return _accepted(calm) / (caught_up - min(outcome.began for outcome in calm)), taken


def _joined(taken: list[list[int]], outcomes: list[Outcome]) -> list[list[int]]:
    return [[*earlier, *outcome.taken] for earlier, outcome in zip(taken, outcomes, strict=True)]


def _send(loads: list[FreshLoad], stretch: Stretch) -> list[Outcome]:
    """The same stretch by all of them at once."""
    for load in loads:
        load.tell(stretch)
    return [load.outcome() for load in loads]


def _times(made: Pass, taken: list[list[int]]) -> Numbers:
    """How many times each event of the pass counts when of each generator these requests were taken."""
    times = np.zeros(len(made.lines), np.int64)
    for numbers in taken:
        times += made.counted(np.array(numbers, np.int64))
    return times


def _quantiles(name: str, parts: list[list[float]]) -> Figures:
    seconds = [value for part in parts for value in part]
    return quantiles(name, seconds) if seconds else {}


def _accepted(outcomes: list[Outcome]) -> int:
    return sum(outcome.accepted for outcome in outcomes)
