"""Pieces of state from different moments, on a real broker: each topic loses its end or its beginning in turn.

After each loss every event that was acknowledged is counted exactly once, or is reported as lost by name.
"""

import http.client
import json
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from processor.log import losses
from processor.log.dead_letters import letters
from processor.log.errors import HistoryMismatch
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.records import TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, ROWS
from tests.support import clients
from tests.support.events import make_event, to_ndjson
from tests.support.kafka import OwnBroker
from tests.support.patience import PROCESS_PATIENCE
from tests.support.product import E0, EACH, Product
from tests.support.segments import cut_off, flushes
from tests.support.server import Server, losses_in, run_cli, server, wait_until
from tools.kafka import Broker


def test_what_is_lost_is_made_anew_or_named(own_broker: OwnBroker, tmp_path: Path) -> None:
    """One after the other, on one broker: each part leaves a product that is whole."""
    broker = own_broker().start()
    product = Product(broker, tmp_path / "worker")
    rows, claims = (Product(broker, tmp_path / name / "worker", f"{name}.") for name in ("rows", "claims"))
    for each in (product, rows, claims):
        each.send(8)
        each.work()
        assert each.counted() == 8 * EACH
    rows_and_claims_lose_their_ends(broker, product, rows, claims)
    rows_and_claims_lose_their_beginnings(product)
    events_that_lost_their_end_are_named(product)
    beginnings_are_named_or_refused(product)


def check(product: Product, what: str) -> None:
    """Whatever was lost is there again, and counts once."""
    product.work()
    assert product.counted() == product.sent * EACH, what
    product.counts_no_copy(what)
    assert product.differences(product.directory.parent) == [], what
    assert product.lost() == [], what


def rows_and_claims_lose_their_ends(broker: Broker, both: Product, rows: Product, claims: Product) -> None:
    ends: dict[Product, list[tuple[str, int]]] = {
        rows: [(ROWS, rows.flushes(ROWS)[7])],
        claims: [(CLAIMS, claims.flushes(CLAIMS)[-4])],
        both: [(CLAIMS, both.flushes(CLAIMS)[-6]), (ROWS, both.flushes(ROWS)[-3])],
    }
    for product in ends:
        product.log.close()
    broker.kill()
    for product, cuts in ends.items():
        for topic, offset in cuts:
            cut_off(broker, product.access.wire(topic), 0, offset)
    broker.start()
    for product, cuts in ends.items():
        product.reopen(*cuts)
    check(rows, "end of the rows: the group's offset is beyond it")
    check(claims, "end of the claims: the ids of this worker are ahead of them")
    both.forget_ids()
    check(both, "ends of both, and the next worker has no ids")
    for product in (rows, claims):
        product.log.close()


def rows_and_claims_lose_their_beginnings(product: Product) -> None:
    product.behead(ROWS, product.flushes(ROWS)[5])
    check(product, "beginning of the rows")
    product.forget_ids()
    product.behead(CLAIMS, product.flushes(CLAIMS)[5])
    check(product, "beginning of the claims")
    product.behead(ROWS, product.log.end(TopicPartition(ROWS, 0)))
    check(product, "all rows")


def events_that_lost_their_end_are_named(product: Product) -> None:
    # three that were counted; the two that grow in their place were acknowledged by an API that did not know
    end = product.log.end(E0)
    product.send(3)
    product.work()
    product.cut((EVENTS, end))
    product.send(2)
    product.work()
    assert product.lost() == [("events", end, end + 3, True)]
    assert product.counted() == product.sent * EACH, "events at offsets that the rows had already are not counted"
    assert [letter.retry is not None for letter in letters(product.log, 0)] == [True, True]
    product.send(1)
    product.work()
    assert product.counted() == product.sent * EACH
    # a copy of what is gone is a copy still
    product.counts_no_copy()
    assert len(product.lost()) == 1

    # rows and events lost their ends: what was claimed only is lost, and counts when it is sent again
    before, sent = product.log.end(E0), product.sent
    product.send(4)
    product.work()
    product.cut((EVENTS, before + 1), (ROWS, flushes(product.broker, ROWS, 0)[-3]))
    product.work()
    assert product.lost()[1:] == [("events", before + 1, before + 2, True), ("events", before + 2, before + 4, False)]
    assert product.counted() == (product.sent - 2) * EACH
    product.send_again(range(sent, product.sent))
    product.work()
    assert product.counted() == product.sent * EACH
    product.counts_no_copy()


def beginnings_are_named_or_refused(product: Product) -> None:
    # deleted before a worker had read them
    end, known = product.log.end(E0), len(product.lost())
    product.send(5)
    product.behead(EVENTS, end + 3)
    product.work()
    assert product.lost()[known:] == [("events", end, end + 3, False)]
    assert product.counted() == (product.sent - 3) * EACH
    product.work()
    assert len(product.lost()) == known + 1

    # the only word of messages that no table contains
    product.behead(DEAD_LETTERS, 1)
    product.work()
    assert product.lost()[known + 1 :] == [("dead-letters", 0, 1, False)]

    # the rows cannot be computed anew
    product.behead(ROWS, flushes(product.broker, ROWS, 0)[-3])
    with pytest.raises(
        HistoryMismatch, match=f"records of the rows are missing, and events before {end + 3} are gone, too"
    ):
        product.work()

    # keys may be missing: by name, and no new log is made in its place
    losses.check_directory(product.log)
    product.behead(DIRECTORY, 1)
    with pytest.raises(HistoryMismatch, match=r"spendstream\.directory before offset 1"):
        losses.check_directory(product.log)
    refused = run_cli(product.directory.with_name("another"), "worker", broker=product.broker.url)
    assert refused.returncode == 2
    assert "has lost the log's name and salt, and its keys, but there are records in spendstream.events 0" in (
        refused.stderr
    )


# --- the whole product ----------------------------------------------------------------------------------------------


def get(started: Server, path: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{started.http}{path}", headers={"x-api-key": started.key})
    try:
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post(started: Server, number: int) -> None:
    """Send ten events again and again until they are acknowledged."""
    events = [make_event(event_id=f"00000000-0000-4000-8000-{10 * number + each:012x}") for each in range(10)]
    deadline = time.monotonic() + PROCESS_PATIENCE
    while True:
        request = urllib.request.Request(
            f"http://{started.http}/v1/ingest",
            to_ndjson(events),
            {"x-api-key": started.key, "Content-Type": "application/x-ndjson"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
                assert answer.status == 202
                return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except (OSError, http.client.HTTPException):
            pass  # the process has ended and comes again
        assert time.monotonic() < deadline, started.log()[-3000:]
        time.sleep(0.2)


def losses_of(started: Server, count: int) -> list[str]:
    """What `/readyz` says is lost, once it is ready and says so much: the API follows the losses beside the tables."""
    found: list[str] = []

    def are_told() -> bool:
        status, body = get(started, "/readyz")
        found[:] = losses_in(body) if status == 200 and "warnings" in body else []
        return status == 200 and len(found) >= count

    wait_until(are_told)
    return found


def shows(started: Server, requests: int) -> bool:
    try:
        status, body = get(started, "/v1/users?limit=1")
    except (OSError, http.client.HTTPException):
        return False
    return status == 200 and json.loads(body)["total"]["requests"] == requests


def test_serve_over_a_broker_that_comes_back_with_less(own_broker: OwnBroker, tmp_path: Path) -> None:
    broker = own_broker().start()
    with server(tmp_path / "data", broker=broker.url, partitions=1) as started:
        for number in range(6):
            post(started, number)
        wait_until(lambda: shows(started, 60))

        # events that were counted: what comes next is counted, too, and the loss has a name
        broker.kill()
        end = cut_off(broker, EVENTS, 0, 3)
        broker.start()
        for number in range(6, 10):
            post(started, number)
        wait_until(lambda: shows(started, 100))
        [warning] = losses_of(started, 1)
        assert warning.startswith(f"events {end} to 5 of partition 0 are gone from the log")
        assert warning.endswith("the tables contain them")
        assert 'spendstream_events_lost{partition="0"}' not in get(started, "/metrics")[1]

        # events that were acknowledged and not counted: they are lost, by name and number
        log = KafkaLog(KafkaAccess(broker.bootstrap))
        before = log.end(E0)
        started.signal("worker", signal.SIGSTOP)
        for number in range(10, 13):
            post(started, number)
        assert log.end(E0) == before + 3
        log.close()
        broker.kill()
        assert cut_off(broker, EVENTS, 0, before) == before
        broker.start()
        started.kill("worker")
        for number in range(13, 15):
            post(started, number)
        wait_until(lambda: shows(started, 120))
        losses = losses_of(started, 2)
        assert losses[1:] == [f"acknowledged events in messages {before} to {before + 2} of partition 0 are LOST"]
        assert 'spendstream_events_lost{partition="0"} 3.0' in get(started, "/metrics")[1]

        # the tables lost their end, too: every process reads them back, and the worker applies what they lack
        broker.kill()
        cut_off(broker, ROWS, 0, flushes(broker, ROWS, 0)[-3])
        cut_off(broker, CLAIMS, 0, flushes(broker, CLAIMS, 0)[-2])
        broker.start()
        for number in (14, 15):
            post(started, number)
        wait_until(lambda: shows(started, 130))

        # a start finds nothing new; what is lost counts when it is sent again
        assert started.stop()[0] == 0
        started.start()
        for number in range(10, 13):
            post(started, number)
        wait_until(lambda: shows(started, 160))
        assert losses_of(started, 2)[1:] == losses[1:]


def delete(data_dir: Path, topic: str, count: int) -> None:
    """Take the first records of a topic out of the file, as a person with a tool does."""
    with closing(sqlite3.connect(data_dir / "log.db")) as db:
        [(number,)] = db.execute("SELECT number FROM partition WHERE topic = ?", (topic,))
        base = number << 40
        assert db.execute("DELETE FROM record WHERE id >= ? AND id < ?", (base, base + count)).rowcount > 0
        db.commit()


def test_a_start_on_the_embedded_log_heals_or_refuses(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        for number in range(3):
            post(started, number)
        wait_until(lambda: shows(started, 30))
        started.stop()
        delete(started.data_dir, ROWS, 1000)
        delete(started.data_dir, CLAIMS, 1)
        started.start()
        post(started, 0)  # copies
        post(started, 3)
        wait_until(lambda: shows(started, 40))
        assert started.entries("tables.rebuilt")
        assert clients.verify(started) == []

        started.stop()
        delete(started.data_dir, DIRECTORY, 1)
        started.launch()
        assert started.process.wait(PROCESS_PATIENCE) == 2
        assert "spendstream.directory before offset 1 are gone" in started.log()
