"""A real broker for tests: the fixtures `kafka` and `own_broker`, and a line at the end that says if there was one.

Every test that asks for one of them has the marker `kafka`. Where no broker can be had they are skipped, with the
reason; REQUIRE_KAFKA=1 makes that a failure. A broker that can be had and does not start is always a failure.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tools.kafka import Broker
from tools.kafka_jars import NoKafka, jars, java

MARKER: Final = "kafka"
FIXTURES: Final = frozenset({"kafka", "own_broker"})
REQUIRED: Final = "REQUIRE_KAFKA"

OwnBroker = Callable[..., Broker]
"""Takes what `Broker` takes after the directory; the broker is not started yet."""

_missing = pytest.StashKey[str]()
_ran = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def _can_be_had(pytestconfig: pytest.Config) -> None:
    if (reason := pytestconfig.stash.get(_missing, None)) is not None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and no broker can be had: {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka(_can_be_had: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests, which leave it running and use topics and groups of their own."""
    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def own_broker(_can_be_had: None, tmp_path: Path) -> Iterator[OwnBroker]:
    """Makes brokers of this test alone, to kill and to restart; none is left after it."""
    made: list[Broker] = []

    def make(*arguments: Any, **options: Any) -> Broker:
        made.append(Broker(tmp_path / f"broker-{len(made)}", *arguments, **options))
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


# --- the hooks ------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # before -m picks by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKER)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Bring the jars before the first test: it may take longer than a test's timeout allows."""
    config = session.config
    if config.option.collectonly or not any(item.get_closest_marker(MARKER) for item in session.items):
        return
    config.stash[_ran] = []
    try:
        java()
        jars()
    except NoKafka as error:
        config.stash[_missing] = str(error)


def pytest_runtest_call(item: pytest.Item) -> None:
    if item.get_closest_marker(MARKER):
        item.config.stash[_ran].append(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _ran not in config.stash:
        return
    reason = config.stash.get(_missing, None)
    if reason is None:
        line = f"Kafka tests: {len(config.stash[_ran])} run"
    elif os.environ.get(REQUIRED) == "1":
        line = f"Kafka tests could not run: {reason}"
    else:
        line = f"Kafka tests were SKIPPED: {reason}; {REQUIRED}=1 makes that a failure"
    terminalreporter.write_line(line)
