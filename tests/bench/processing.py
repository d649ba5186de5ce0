"""Row `processor`: the worker alone on one core, over a log of messages of 500 events, until all of it is durable."""

import time
from typing import Final

import msgspec

from processor.core.events import codec, message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.core.tables import row_block, table_rows
from processor.log.embedded.log import Log
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, ROWS
from tests.bench import machine
from tests.bench.context import Bench
from tests.bench.corpus import Corpus
from tests.bench.loading import now
from tests.bench.programs import Failed, Meter, running, stopped_with_log_free
from tests.bench.results import RATE, Figures
from tests.support.truth import GroundTruth

REQUESTS: Final = 5
"""Requests of 100 events in one message."""
PATIENCE: Final = 300.0
FROM: Final = TopicPartition(EVENTS, 0)
TO: Final = TopicPartition(ROWS, 0)


def processor(bench: Bench) -> Figures:
    """The clock runs from when the worker, which was ready and held still, finds the log full."""
    events = bench.corpus.count
    values = messages(bench.corpus)
    with bench.fresh() as directory:
        data = directory / "data"
        environment = {"SPENDSTREAM_DATA_DIR": str(data), "SPENDSTREAM_LOG_LEVEL": "warning"}
        with running(["-m", "processor"], directory, environment, cpu=0) as worker:
            worker.line()
            log = Log(data, create=False)
            rest = machine.resident(worker.pid)
            with stopped_with_log_free(worker, data):
                fill(log, values)
                meter = Meter({"worker": worker.pid})
                began = now()
            ended = _wait(log, len(values) - 1)
            found = {RATE: events / (ended - began), **meter.figures(events, ended - began)}
            for when, size in (("at rest", rest), ("at the end", machine.resident(worker.pid))):
                if size is not None:
                    found[f"RSS worker {when}, MiB"] = size
            found["changelog records/event"] = log.end(TO) / events
        _compare(log, bench.corpus.truth)
        log.close()
        return found


def messages(corpus: Corpus) -> list[bytes]:
    """The corpus as the API process would write it."""
    at = time.time_ns() // 1000
    source = Source("default", "default", "bench", at, "json", "partial")
    parts = [build_blocks(source, codec.decode("json", lines, "partial", at).columns, 1)[0] for lines in corpus.lines]
    return [message.encode(parts[start : start + REQUESTS]) for start in range(0, len(parts), REQUESTS)]


def fill(log: Log, values: list[bytes]) -> None:
    """Append all messages, and leave nothing in the write-ahead log."""
    log.append([Append(FROM, [(None, value) for value in values])], time.time_ns() // 1000)
    log.checkpoint()


def _wait(log: Log, last: int) -> float:
    """When the progress in the changelog is `last`: it is the last record of every flush."""
    deadline = now() + PATIENCE
    seen = -1
    while now() < deadline:
        version = log.version()
        if version != seen:
            seen = version
            for record in log.read(TO, log.end(TO) - 1, 1):
                _, kind, _ = table_rows.decode_key(record.key or b"")
                if kind == "progress" and table_rows.decode_value(record.value or b"")[0] >= last:
                    return now()
        time.sleep(0.002)
    raise Failed(f"the worker did not reach offset {last} in {PATIENCE:.0f} s")


def _compare(log: Log, truth: GroundTruth) -> None:
    """Add up what the changelog says last of every row."""
    rows: dict[bytes, bytes | None] = {}
    for record in scan(log, TO):
        rows.update(row_block.expand(0, record.key or b"", record.value))
    found: dict[str | None, list[int]] = {}
    for key, value in rows.items():
        kind, user = msgspec.json.decode(key)[1], msgspec.json.decode(key)[3:4]
        if kind == "user" and value is not None:
            sums = found.setdefault(user[0], [0] * 6)
            for column, number in enumerate(table_rows.decode_value(value)[1:7]):
                sums[column] += number
    if found != {user: sums.numbers[:6] for user, sums in truth.users.items()}:
        raise Failed("the rows do not add up to the ground truth")
