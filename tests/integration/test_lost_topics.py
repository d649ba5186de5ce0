"""Topics of a log on a real broker that lose their end, the end of a transaction, or all that is in them, in turn.

Each is made anew from the others, or what is gone has a name. No acknowledged event is neither counted nor reported.
"""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from processor.leases.followed_ledger import FollowedLedger
from processor.log.address import LogAddress
from processor.log.dead_letters import letters
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.records import TopicPartition
from processor.log.topics import (
    CHECKPOINTS,
    CLAIMS,
    DEAD_LETTERS,
    DIRECTORY,
    EVENTS,
    LEASES,
    ROWS,
    STATEMENTS,
    USERS,
)
from processor.users_topic import row_publisher
from processor.users_topic.row_publisher import UsersTopicPublisher
from tests.support import clients, users_topic
from tests.support.clients import reader
from tests.support.crowd import Crowd
from tests.support.kafka import OwnBroker
from tests.support.patience import PROCESS_PATIENCE
from tests.support.product import EACH, Product, delete
from tests.support.segments import cut_off, flushes
from tests.support.server import Server, losses_in, run_cli, server, wait_until
from tests.support.tables import NOON
from tools.kafka import Broker

FOLLOW: Final = (ROWS, CLAIMS, DEAD_LETTERS)
"""Topics that follow from the events."""

DEAD: Final = 5
"""The offset of the last message that nobody can read."""

LIMIT: Final = 2000


def short(topic: str) -> str:
    return topic.removeprefix("spendstream.")


# --- without processes ----------------------------------------------------------------------------------------------


def test_each_topic_comes_back_or_has_a_name(
    own_broker: OwnBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one broker, with a product for each topic."""
    monkeypatch.setattr(row_publisher, "CHECK_EVERY", 1.0)
    broker = own_broker().start()
    products = {
        topic: Product(broker, tmp_path / short(topic) / "worker", f"{short(topic)}.")
        for topic in (*FOLLOW, USERS, EVENTS)
    }
    for product in products.values():
        product.send(3)
        assert product.send_junk() == 3
        product.send(1)
        assert product.send_junk() == DEAD
        product.work()
    what_follows_from_the_events_comes_back(broker, products)
    rows_of_users_are_published_again(products[USERS])
    events_letters_and_keys_have_a_name(products[EVENTS], tmp_path)


def what_follows_from_the_events_comes_back(broker: Broker, products: Mapping[str, Product]) -> None:
    def check(topic: str, what: str) -> None:
        """Everything is as if nothing had happened, for a worker that has no ids either, and copies do not count."""
        product = products[topic]
        product.reopen()
        product.forget_ids()
        product.send_again(range(product.sent))
        product.work(commit=False)
        assert product.counted() == product.sent * EACH, what
        assert sorted(letter.dead.offset for letter in letters(product.log, 0)) == [3, DEAD], what
        assert product.differences(product.directory.parent) == [], what
        assert product.lost() == [], what

    users = products[USERS]
    with staging(users):
        wait_until(lambda: len(said(users)) == 4 * EACH)
        users.send(2)
        users.work(commit=False)
        wait_until(lambda: len(said(users)) == 6 * EACH)
        truth = said(users)
        assert sum(row["requests"] for row in truth.values()) == users.counted() == 6 * EACH

        # the end of a topic, and the end of the transaction before, so that nothing behind it can be read
        for product in products.values():
            product.log.close()
        broker.kill()
        for topic, product in products.items():
            if topic in (*FOLLOW, USERS):
                cut_off(broker, product.access.wire(topic), 0, product.flushes(topic)[-2] - 1)
        broker.start()
        for topic in FOLLOW:
            check(topic, f"end of {topic}")
        say_again(users, truth, "the end of the topic, under a worker that runs")
        users.reopen()
        users.behead(USERS, users.log.end(TopicPartition(USERS, 0)))
        say_again(users, truth, "the beginning of the topic")

    # all of it
    for topic in FOLLOW:
        product = products[topic]
        product.delete(topic, CHECKPOINTS)  # the second one has no records on Kafka
        with capture_logs() as told:
            KafkaLog(product.access).close()
        named = [set(entry["topics"]) for entry in told if entry["event"] == "topic.missing"]
        assert named == [{product.access.wire(topic), product.access.wire(CHECKPOINTS)}]
        check(topic, f"all of {topic}")


def said(product: Product) -> dict[tuple[str, str | None], dict[str, Any]]:
    """The newest row of every user in the topic."""
    return users_topic.consume(product.broker.bootstrap, product.access.wire(USERS)).rows


def say_again(product: Product, truth: Mapping[tuple[str, str | None], dict[str, Any]], what: str) -> None:
    """Wait until the topic says the truth, while nothing new happens."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while (found := said(product)) != truth:
        assert time.monotonic() < deadline, f"{what}: {len(found)} of {len(truth)} users"
        time.sleep(0.2)


@contextmanager
def staging(product: Product) -> Iterator[None]:
    thread = UsersTopicPublisher(
        LogAddress(product.directory, product.access), 1, lambda: [0], lambda: NOON, FollowedLedger()
    )
    thread.start()
    try:
        yield
    finally:
        thread.finish()


def rows_of_users_are_published_again(product: Product) -> None:
    product.delete(USERS)
    product.reopen()
    assert said(product) == {}
    with staging(product):
        wait_until(lambda: len(said(product)) == 6 * EACH)
    assert sum(row["requests"] for row in said(product).values()) == 6 * EACH


def events_letters_and_keys_have_a_name(product: Product, tmp_path: Path) -> None:
    end = product.log.end(TopicPartition(EVENTS, 0))
    product.delete(EVENTS)
    product.reopen()
    product.work(commit=False)
    assert product.counted() == 4 * EACH
    assert product.lost() == [("events", 0, end, True)]

    # letters whose messages are gone as well cannot be written again
    product.delete(DEAD_LETTERS)
    product.reopen()
    product.forget_ids()
    product.send_again(range(4))
    product.send(1)
    product.work(commit=False)
    assert product.counted() == 5 * EACH, "what comes after the loss counts, and copies do not"
    assert product.lost()[1:] == [("dead-letters", 0, 2, False)]
    product.work(commit=False)
    assert len(product.lost()) == 2, "reported once"

    # the directory: no new log takes its place, not at the second start either, which finds the topic
    product.delete(DIRECTORY)
    for role in ("worker", "api"):
        refused = run_cli(tmp_path / role, role, broker=product.broker.url, kafka_prefix=product.access.prefix)
        assert refused.returncode == 2, refused.stderr
        assert product.access.wire(DIRECTORY) in refused.stderr
        assert "has lost the log's name and salt, and its keys" in refused.stderr


# --- the leases -----------------------------------------------------------------------------------------------------


@contextmanager
def metered(broker: Broker, directory: Path) -> Iterator[tuple[Server, list[Server]]]:
    """A worker and two API processes, whose organisation may send `LIMIT` events this month."""
    settings: dict[str, Any] = {"broker": broker.url, "partitions": 2}
    with ExitStack() as stack:
        worker = stack.enter_context(server(directory / "worker", "worker", start=False, **settings))
        apis = [
            stack.enter_context(server(directory / f"api-{number}", "api", start=False, **settings))
            for number in range(2)
        ]
        start(worker, apis)
        said = apis[0].cli("orgs", "set", "default", "--monthly-quota", str(LIMIT))
        assert said.returncode == 0, said.stderr
        yield worker, apis


def start(worker: Server, apis: list[Server]) -> None:
    for each in (worker, *apis):
        each.launch()
    for each in (worker, *apis):
        each.wait_ready()


def ask(api: Server, path: str, key: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{api.http}{path}", headers={"x-api-key": key})
    try:
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def knows(api: Server, key: str) -> bool:
    return ask(api, "/v1/users?limit=1", key)[0] == 200


def ends_at(access: KafkaAccess, topic: str) -> int:
    with closing(KafkaLog(access, create=False)) as log:
        return log.end(TopicPartition(topic, 0))


async def test_no_quota_is_overrun_when_leases_or_statements_are_lost(own_broker: OwnBroker, tmp_path: Path) -> None:
    broker = own_broker().start()
    with metered(broker, tmp_path) as (worker, apis):
        for api in apis:
            async with reader(api) as tables:
                while (await tables.get("/v1/quota"))["limit"] != LIMIT:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)
        crowd = Crowd(apis, LIMIT, seed=17, largest=10, pause=0.5)

        def later(harm: Callable[[], None], at: int) -> Callable[[], bool]:
            """Do harm in a thread of its own once so many events are taken; over when more are taken after that."""
            begun: list[threading.Thread] = []
            taken = 0

            def is_over() -> bool:
                nonlocal taken
                if not begun and len(crowd.taken) >= at:
                    begun.append(threading.Thread(target=harm))
                    begun[0].start()
                if not begun or begun[0].is_alive():
                    taken = len(crowd.taken)
                    return False
                return len(crowd.taken) > taken

            return is_over

        # under a worker and API processes that go on by the leases they have: ends, and the end of a transaction
        def lose_half() -> None:
            broker.kill()
            marks = flushes(broker, LEASES, 0)
            cut_off(broker, LEASES, 0, marks[len(marks) // 2] - 1)
            cut_off(broker, STATEMENTS, 0, 3)
            broker.start()

        await crowd.run(later(lose_half, LIMIT // 4), PROCESS_PATIENCE)
        assert LIMIT // 4 <= len(crowd.taken) <= LIMIT

        # under nobody: the next ones find neither topic, and a directory without the key that was made last
        made = json.loads(apis[0].cli("keys", "create", "--json").stdout)
        for api in apis:
            wait_until(partial(knows, api, made["key"]))
        for each in (*apis, worker):
            each.kill_all()
        access = KafkaAccess(broker.bootstrap)
        end = ends_at(access, DIRECTORY)
        broker.kill()
        cut_off(broker, DIRECTORY, 0, end - 1)
        broker.start()
        delete(access, LEASES, STATEMENTS)
        await asyncio.to_thread(start, worker, apis)
        for api in apis:
            assert not knows(api, made["key"])
            _, body = ask(api, "/readyz", api.key)
            [warning] = losses_in(body)
            assert warning.startswith(f"records {end - 1} to {end - 1} of the directory are gone from the log")
        crowd.over.clear()
        await crowd.run(crowd.has_used_up, PROCESS_PATIENCE)

        used = await crowd.settled(tmp_path / "all.ndjson")
        assert len(crowd.taken) <= used <= min(LIMIT, len(crowd.taken | crowd.doubtful))
        assert used >= 0.99 * LIMIT, "what was lost is no reason to refuse what is left"
        assert clients.verify(apis[0]) == []
