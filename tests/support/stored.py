"""What the event store of a running product holds."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from processor.event_store.catalog import Catalog
from processor.event_store.manifest import Segment
from processor.event_store.segments_topic import SegmentsTopic
from processor.log.address import LogAddress
from processor.log.port import LogWriter
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from tests.support.events import ABSENT
from tests.support.patience import PROCESS_PATIENCE
from tests.support.traffic import Sent
from tests.support.truth import EXACT, PICO

ROW_PLACE = ("log_partition", "log_offset", "log_index")


def catalog_of(log: LogWriter) -> Catalog:
    """The catalog as a reader that begins now sees it."""
    return SegmentsTopic(log, lambda: 0).read_on()


def live(address: LogAddress) -> list[Segment]:
    with closing(address.open()) as log:
        return catalog_of(log).live()


def generations(address: LogAddress) -> dict[int, int]:
    """The generation of each partition's segments."""
    with closing(address.open()) as log:
        catalog = catalog_of(log)
        return {number: catalog.generation(number) for number in range(log.partitions)}


def wait_stored(address: LogAddress, generation: int = 0, patience: float = PROCESS_PATIENCE) -> list[Segment]:
    """Wait until everything that is in the log is in segments, of this generation at least; return these. Blocks."""
    deadline = time.monotonic() + patience
    with closing(address.open()) as log:
        while True:
            ends = {number: log.end(TopicPartition(EVENTS, number)) for number in range(log.partitions)}
            catalog = catalog_of(log)
            reached = {number: catalog.reached.get(number, 0) for number in ends}
            if reached == ends and all(catalog.generation(number) >= generation for number in ends):
                return catalog.live()
            assert time.monotonic() < deadline, f"the store has reached {reached} of {ends}"
            time.sleep(0.1)


def rows(directory: Path, segments: list[Segment]) -> list[dict[str, Any]]:
    """The rows of segments, in the order of the log."""
    found: list[dict[str, Any]] = []
    for segment in segments:
        if segment.has_files:
            found += pq.read_table(directory / f"{segment.id}.parquet").to_pylist()
    return sorted(found, key=lambda row: tuple(row[name] for name in ROW_PLACE))


def differences(rows: list[dict[str, Any]], sent: Mapping[str, Sent]) -> list[str]:
    """What is missing, there more than once or different of these events, which are by their ids in small letters."""
    times = Counter(row["event_id"] for row in rows)
    missing, foreign = sent.keys() - times.keys(), times.keys() - sent.keys()
    repeated = [event_id for event_id, count in times.items() if count > 1]
    wrong = [row["event_id"] for row in rows if row["event_id"] in sent and not _says(row, sent[row["event_id"]])]
    found = {"missing": missing, "not sent": foreign, "more than once": repeated, "different": wrong}
    return [f"{len(ids)} events {what} in the store, {min(ids)} of them" for what, ids in found.items() if ids]


def _says(row: dict[str, Any], event: Sent) -> bool:
    """Whether a row says what was sent, in any of the words that say the same."""
    cost = Decimal(str(event["cost_usd"])).quantize(PICO, ROUND_HALF_EVEN, EXACT)
    extra = json.loads(row["extra"]) if row["extra"] else {}
    user = event.get("user_id")
    return (row["model"], row["user_id"], row["cost_usd"], extra.get("padding")) == (
        event["model"],
        None if user in (ABSENT, None, "") else user,
        cost,
        event.get("padding"),
    )
