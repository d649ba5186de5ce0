"""Row `otlp-collector`: spans taken over OTLP by the role `api`, and by an OpenTelemetry Collector, one core each.

Both have a request on the disk, fsynced, before they answer: the API in its log, the Collector in the queue of its
exporter (`file_storage` with `fsync: true`). Neither passes anything on meanwhile: nobody reads the log, and what the
Collector sends to is away. They are measured by turns, `ROUNDS` times, each tied to one core and the load generator to
another; figures are medians of the rounds. Then both are killed `KILLS` times while requests come in, and what had been
answered is looked for where it ends: in the tables, and at a receiver behind the Collector.
"""

import contextlib
import gzip
import http.client
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.bench.context import KEY, Bench, quantiles
from tests.bench.loading import Order, Outcome
from tests.bench.programs import Failed, Meter, Skipped, running
from tests.bench.results import ELSEWHERE, RATE, Figures
from tests.support.otlp_spans import requests
from tests.support.server import Server, server, wait_until
from tools.collector import Collector, Config, NoCollector, binary, exporting

SIZE: Final = 512
"""Spans of a request: what the exporters of OpenTelemetry send at once by default."""
SPANS: Final = 60_000
"""Of a round."""
ROUNDS: Final = 5
LANES: Final = 8
DEPTH: Final = 2
KILLS: Final = int(os.environ.get("OTLP_BENCH_KILLS", "20"))
SMALL: Final = 64
LIFE: Final = 0.6
"""Seconds of load between a start and a kill."""
PORT_OF_NOBODY: Final = 9
ANSWERED: Final = 200
THEIRS: Final = "spans/s, Collector"
RATIO: Final = "x Collector"
PROMISES: Final = (
    "Neither promises that a span arrives which an application had not sent, or was still trying to send, when it "
    "ended. Only spendstream promises that a span which is delivered twice counts once; the Collector delivers what it "
    "had sent when it was killed once more."
)


def otlp_collector(bench: Bench) -> Figures:
    """Spans a second of both, and what is lost over kills."""
    try:
        binary()
    except NoCollector as error:
        raise Skipped(str(error)) from None
    count = max(1, min(bench.corpus.count, SPANS) // SIZE)
    bodies = bench.directory / "otlp.bodies"
    bodies.write_bytes(msgspec.msgpack.encode(list(requests(count, SIZE))))  # not compressed: exporters' default
    rounds = [_round(bench, bodies, count, number) for number in range(ROUNDS)]
    bench.rows["otlp-collector"].note = PROMISES
    found = _medians(rounds)
    for name in (RATIO, RATE, THEIRS):
        found[f"{name}, least"] = min(each[name] for each in rounds)
        found[f"{name}, most"] = max(each[name] for each in rounds)
    return {**found, **_killed(bench)}


def _round(bench: Bench, bodies: Path, count: int, number: int) -> Figures:
    """Both once, the one that goes first by turns."""
    measures = [_ours, _theirs] if number % 2 == 0 else [_theirs, _ours]
    found: Figures = {}
    for measure in measures:
        one = measure(bench, bodies, count)
        elsewhere = max(one.get(ELSEWHERE, 0.0), found.get(ELSEWHERE, 0.0))
        found |= one | {ELSEWHERE: elsewhere}
    return found | {RATIO: found[RATE] / found[THEIRS]}


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def _ours(bench: Bench, bodies: Path, count: int) -> Figures:
    with bench.server("api", cpu=0) as (api, said):
        rate, outcome, used = _loaded(bench, bodies, int(said["http"].rpartition(":")[2]), count, api.pid, "api")
    return {RATE: rate, **used, **quantiles("acknowledged", outcome.latencies)}


def _theirs(bench: Bench, bodies: Path, count: int) -> Figures:
    config = exporting(f"http://127.0.0.1:{PORT_OF_NOBODY}", KEY)
    config["exporters"]["otlp_http"]["sending_queue"]["queue_size"] = 1_000_000
    config["exporters"]["otlp_http"]["retry_on_failure"]["initial_interval"] = "30s"
    config["exporters"]["otlp_http"]["retry_on_failure"]["max_interval"] = "30s"
    with bench.fresh() as directory, Collector(directory, config, before=_on_core(0)) as collector:
        port = int(collector.http.rpartition(":")[2])
        rate, outcome, used = _loaded(bench, bodies, port, count, collector.pid, "collector")
    return {THEIRS: rate, **used, **quantiles("acknowledged by the Collector", outcome.latencies)}


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _on_core(number: int) -> list[str]:
    cores = _cores()
    return ["taskset", "-c", str(cores[number % len(cores)])]


def _loaded(
    bench: Bench, bodies: Path, port: int, count: int, pid: int, name: str
) -> tuple[float, Outcome, dict[str, float]]:
    """Spans a second, the outcome, and the CPU time of the process."""
    order = Order(port=port, key=KEY, bodies=str(bodies), lanes=LANES, depth=DEPTH, encoding="identity")
    words = ["-m", "tests.bench.load_otlp", msgspec.json.encode(order).decode()]
    with bench.fresh() as directory, running(words, directory, cpu=1) as load:
        load.line()
        if len(_cores()) > 1 and (os.sched_getaffinity(pid), os.sched_getaffinity(load.pid)) != (
            {_cores()[0]},
            {_cores()[1]},
        ):
            raise Failed(f"{name} or its load is not tied to a core")
        meter = Meter({name: pid, "load": load.pid})
        load.tell("go")
        outcome = msgspec.convert(load.line(), Outcome)
    if outcome.accepted != count:
        raise Failed(f"{name}: {outcome.refused} of {count} requests were refused")
    seconds = outcome.ended - outcome.began
    return count * SIZE / seconds, outcome, meter.figures(count * SIZE, seconds)


# --- kills ----------------------------------------------------------------------------------------------------------


def _killed(bench: Bench) -> Figures:
    """Spans that were answered with 200 and are nowhere in the end, of both."""
    found: Figures = {}
    with bench.fresh() as directory, server(directory / "data", key=KEY) as running_server:
        sent = _over_kills(
            running_server.http, lambda: _kill_api(running_server), lambda: wait_until(running_server.is_ready, 30)
        )
        counted = _counted(running_server)
        for body in sent:  # what was lost would count now; what is there is a duplicate
            _send(running_server.http, body)
        found["spans acknowledged over kills, ours"] = len(sent) * SMALL
        found["of them lost, ours"] = _counted(running_server) - counted
    with bench.fresh() as directory, _sink() as (url, arrived):
        config: Config = exporting(url, KEY)
        collector = Collector(directory, config)
        with collector:
            address = collector.http.removeprefix("http://")
            sent = _over_kills(address, collector.kill, collector.start)
            expected = {span for body in sent for span in _span_ids(body)}
            _wait_quietly(lambda: expected <= arrived.keys(), 60)
        found["spans acknowledged over kills, Collector"] = len(expected)
        found["of them lost, Collector"] = len(expected - arrived.keys())
        found["spans delivered more than once, Collector"] = sum(times > 1 for times in arrived.values())
    return found


def _kill_api(running_server: Server) -> None:
    running_server.signal("api", signal.SIGKILL)


def _over_kills(address: str, kill: Callable[[], object], restart: Callable[[], object]) -> list[bytes]:
    """The bodies that were answered with 200, while what answers is killed again and again."""
    taken: list[bytes] = []
    source = requests(10_000_000, SMALL, seed=2)
    for _ in range(KILLS):
        over = threading.Event()
        sender = threading.Thread(target=_send_until, args=(address, source, over, taken))
        sender.start()
        time.sleep(LIFE)
        kill()
        over.set()
        sender.join()
        restart()
    return taken


def _send_until(address: str, source: Iterator[bytes], over: threading.Event, taken: list[bytes]) -> None:
    """Send until it fails; a body without an answer is neither lost nor taken."""
    connection = http.client.HTTPConnection(address, timeout=10)
    headers = {"x-api-key": KEY, "Content-Type": "application/x-protobuf"}
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        while not over.is_set():
            body = next(source)
            connection.request("POST", "/v1/traces", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == ANSWERED:
                taken.append(body)


def _send(address: str, body: bytes) -> None:
    headers = {"x-api-key": KEY, "Content-Type": "application/x-protobuf"}
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", "/v1/traces", body, headers)
        if connection.getresponse().status != ANSWERED:
            raise Failed("a request that was sent again was refused")


def _counted(running_server: Server) -> int:
    """The calls in the tables, once no more come for a second."""
    counts = [-1]
    since = time.monotonic()

    def is_steady() -> bool:
        nonlocal since
        with contextlib.closing(http.client.HTTPConnection(running_server.http, timeout=10)) as connection:
            connection.request("GET", "/v1/users?limit=1", headers={"x-api-key": KEY})
            count = int(msgspec.json.decode(connection.getresponse().read())["total"]["requests"])
        if count != counts[-1]:
            since = time.monotonic()
            counts.append(count)
        return time.monotonic() > since + 1

    wait_until(is_steady, 60)
    return counts[-1]


def _wait_quietly(condition: Callable[[], bool], patience: float) -> None:
    with contextlib.suppress(TimeoutError):  # what is missing is counted
        wait_until(condition, patience)


def _span_ids(body: bytes) -> list[bytes]:
    made = ExportTraceServiceRequest.FromString(body)
    return [span.span_id for each in made.resource_spans for scope in each.scope_spans for span in scope.spans]


@contextlib.contextmanager
def _sink() -> Iterator[tuple[str, Counter[bytes]]]:
    """A receiver of OTLP, and how often each span id arrived there."""
    arrived: Counter[bytes] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            arrived.update(_span_ids(body))
            self.send_response(ANSWERED)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}", arrived
    finally:
        serving.shutdown()
        serving.server_close()
