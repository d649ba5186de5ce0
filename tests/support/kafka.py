"""A real broker for tests: the fixtures `kafka`, `own_broker`, `old_kafka`, and a last line that says if there was one.

A test that neither kills nor damages its broker takes `kafka`, and a `prefix` of its own.

Every test that asks for one of them has the marker `kafka`. Where no broker can be had they are skipped, with the
reason; REQUIRE_KAFKA=1 makes that a failure. A broker that can be had and does not start is always a failure.
"""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.old_kafka import old_broker
from tests.support.shared_brokers import MARKER, shared_by
from tools.kafka import Broker, make_archive
from tools.kafka_jars import NoKafka, jars, java

FIXTURES: Final = frozenset({"kafka", "secure_kafka", "own_broker", "old_kafka"})
REQUIRED: Final = "REQUIRE_KAFKA"

OwnBroker = Callable[..., Broker]
"""Takes what `Broker` takes after the directory; the broker is not started yet."""

_missing = pytest.StashKey[str]()
_needed = pytest.StashKey[Counter[str]]()
"""How many tests to come may ask for a shared broker, by its fixture."""
_running = pytest.StashKey[dict[str, Broker]]()
"""The shared brokers that run, by their fixtures."""


@pytest.fixture(scope="session")
def _can_be_had(pytestconfig: pytest.Config) -> None:
    if (reason := pytestconfig.stash.get(_missing, None)) is not None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, and no broker can be had: {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka(_can_be_had: None, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Broker]:
    """One broker for all tests, which leave it running and use topics and groups of their own."""
    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        pytestconfig.stash[_running]["kafka"] = broker
        yield broker


@pytest.fixture(scope="session")
def secure_kafka(
    _can_be_had: None, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Broker]:
    """The same with a listener for TLS and SASL as well."""
    with Broker(tmp_path_factory.mktemp("secure-kafka"), secure=True) as broker:
        pytestconfig.stash[_running]["secure_kafka"] = broker
        yield broker


@pytest.fixture
def prefix() -> str:
    """Of a product of this test alone on the shared broker (SPENDSTREAM_KAFKA_PREFIX)."""
    return f"test-{secrets.token_hex(4)}."


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


@pytest.fixture
def old_kafka(_can_be_had: None, tmp_path: Path) -> Iterator[str]:
    """host:port of a broker that is too old for the product; its own jars are brought when it is asked for first."""
    directory = tmp_path / "old-broker"
    directory.mkdir()
    with old_broker(directory) as bootstrap:
        yield bootstrap


# --- the hooks ------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Stop a shared broker after the last test that asks for it: idle it would take 3 % of a core until the end."""
    yield
    if (name := shared_by(item)) is not None:
        needed = item.config.stash[_needed]
        needed[name] -= 1
        broker = item.config.stash[_running].get(name)
        if needed[name] == 0 and broker is not None:
            broker.stop()


@pytest.hookimpl(tryfirst=True)  # before -m picks by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKER)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Bring the jars, and make their start a cheap one, before the first test: a test's timeout may be too short."""
    config = session.config
    config.stash[_needed] = Counter(name for item in session.items if (name := shared_by(item)) is not None)
    config.stash[_running] = {}
    if config.option.collectonly or not any(item.get_closest_marker(MARKER) for item in session.items):
        return
    try:
        java()
        jars()
        make_archive()
    except NoKafka as error:
        config.stash[_missing] = str(error)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Goes by the reports: the tests may have run in other processes."""
    reports = [report for each in terminalreporter.stats.values() for report in each]
    ours = [report for report in reports if isinstance(report, pytest.TestReport) and MARKER in report.keywords]
    if not ours:
        return
    reasons = {report.longrepr[2] for report in ours if report.skipped and isinstance(report.longrepr, tuple)}
    terminalreporter.write_line(f"Kafka tests: {sum(report.when == 'call' for report in ours)} run")
    for reason in sorted(reasons):
        terminalreporter.write_line(f"Kafka tests were SKIPPED: {reason}; {REQUIRED}=1 makes that a failure")
