"""Row `overload`: twice as many events as the server sustains, from as many clients as it takes, for a minute.

First the generators send as fast as they are answered, over 64 connections and over 256: that gives the scale, and the
greater rate is called the closed loop's. Then the curve: requests are due at shares of that rate, whatever is answered,
over the same 4,096 connections as in the overload itself; the most that is taken at any of them is the server's peak.
Then a minute at twice that, then the curve and the closed loop again: what is taken is compared with the means of
before and after, for shared cores are not the same a minute later.

The generators stand for other machines: they run at a low priority, and take the cores when the server leaves them.
Whether they sent what was due, and when, is among the figures.

Once a second somebody else connects and asks for /healthz, as an orchestrator does.
"""

import contextlib
import http.client
import os
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
from tests.support.traffic import BATCH

GENERATORS: Final = 2
LANES: Final = 4096
"""Connections of all generators at a rate; a key may have a quarter as many requests under way."""
SHARES: Final = (0.8, 1.0, 1.25)
"""Of the closed loop's rate: where the curve is looked at for its peak."""
CALM_LANES: Final = (64, 256)
"""With fewer it waits for answers to go their way; with 32 or 128 it sustains no more than with these."""
CALM: Final = 10.0
"""Seconds of each of the stretches that tell what it sustains."""
START: Final = 1.0
"""Seconds in which it makes its connections."""
CONNECTED: Final = 5.0
"""Seconds in which all generators have made their connections, to start together."""
TIMES: Final = 2.0
NICE: Final = 10
NEWCOMER_PATIENCE: Final = 30.0
"""Seconds."""


def overload(bench: Bench) -> Figures:
    """What is taken, refused and held in memory; afterwards the tables are those of the requests that were taken."""
    made = Pass.make()
    with bench.server("serve") as (server, said), bench.fresh_loads(said, made, GENERATORS) as loads:
        for load in loads:
            os.setpriority(os.PRIO_PROCESS, load.program.pid, NICE)
        roles = server.roles()
        reader = Reader(said)
        trial = Trial(loads, reader, made)
        closed = [trial.closed_loop(lanes) for lanes in CALM_LANES]
        fast = max(closed)
        curve = [trial.at_rate(share * fast) for share in SHARES]

        meter = Meter({**roles, **{f"loader {number}": load.program.pid for number, load in enumerate(loads, start=1)}})
        newcomer = Newcomer(port_of(said, "json"))
        newcomer.start()
        pressed = trial.send(_open_loop(TIMES * max(curve), bench.overload_seconds))
        newcomer.stop()
        began = min(outcome.began for outcome in pressed)
        ended = max(outcome.ended for outcome in pressed)
        accepted, requests = _accepted(pressed), sum(outcome.requests for outcome in pressed)
        used = meter.figures(accepted, ended - began)
        caught_up = trial.caught_up()
        curve = [(before + trial.at_rate(share * fast)) / 2 for share, before in zip(SHARES, curve, strict=True)]
        closed = [(before + trial.closed_loop(lanes)) / 2 for lanes, before in zip(CALM_LANES, closed, strict=True)]
        reader.compare(made.truth(trial.times()))
        peak = max(curve)
        refused = sum(outcome.refused for outcome in pressed)
        if refused != sum(outcome.busy for outcome in pressed):
            raise Failed("some refusals are not 503 with Retry-After")
        peaks = {role: machine.peak(pid) for role, pid in roles.items()}
        sending = max(outcome.last_sent for outcome in pressed) - began
        return {
            RATE: accepted / (ended - began),
            **used,
            **{
                f"closed loop, {lanes} connections, events/s": rate
                for lanes, rate in zip(CALM_LANES, closed, strict=True)
            },
            **{f"taken of {share} of that, events/s": rate for share, rate in zip(SHARES, curve, strict=True)},
            "sent, of its peak": requests * BATCH / sending / peak,
            "taken, of its peak": accepted / (ended - began) / peak,
            "taken until all is in the tables, of its peak": accepted / (caught_up - began) / peak,
            "taken, of the closed loop": accepted / (ended - began) / max(closed),
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


class Trial:
    """Stretches that are sent one after the other, and what was taken of all of them."""

    def __init__(self, loads: list[FreshLoad], reader: Reader, made: Pass) -> None:
        self._loads = loads
        self._reader = reader
        self._made = made
        self._taken: list[list[int]] = [[] for _ in loads]

    def closed_loop(self, lanes: int) -> float:
        """Events a second, in the tables, when each connection sends once it is answered."""
        calm = self.send(Stretch(seconds=CALM, at=now() + START, lanes=lanes // GENERATORS, remember=True))
        return _accepted(calm) / (self.caught_up() - min(outcome.began for outcome in calm))

    def at_rate(self, rate: float) -> float:
        """Events a second that are taken of so many that are sent."""
        sent = self.send(_open_loop(rate, CALM))
        self.caught_up()
        began, ended = min(outcome.began for outcome in sent), max(outcome.ended for outcome in sent)
        return _accepted(sent) / (ended - began)

    def send(self, stretch: Stretch) -> list[Outcome]:
        """The same stretch by all generators at once."""
        for load in self._loads:
            load.tell(stretch)
        outcomes = [load.outcome() for load in self._loads]
        for taken, outcome in zip(self._taken, outcomes, strict=True):
            taken += outcome.taken
        return outcomes

    def caught_up(self) -> float:
        """When all that was taken is in the tables."""
        return self._reader.wait_for(int(self.times().sum()))

    def times(self) -> Numbers:
        """How many times each event of the pass counts."""
        times = np.zeros(len(self._made.lines), np.int64)
        for numbers in self._taken:
            times += self._made.counted(np.array(numbers, np.int64))
        return times


def _open_loop(rate: float, seconds: float) -> Stretch:
    """Requests that are due at `rate` events a second, whatever is answered."""
    return Stretch(
        seconds=seconds,
        at=now() + CONNECTED,
        lanes=LANES // GENERATORS,
        rate=rate / BATCH / GENERATORS,
        again=False,
        remember=True,
    )


def _quantiles(name: str, parts: list[list[float]]) -> Figures:
    seconds = [value for part in parts for value in part]
    return quantiles(name, seconds) if seconds else {}


def _accepted(outcomes: list[Outcome]) -> int:
    return sum(outcome.accepted for outcome in outcomes)
