"""Which tests pytest-xdist gives to one process (`--dist loadgroup`), and in which order.

A file is no floor: integration tests start processes of their own and go one by one to whoever is free, the longest
first. Those that share a server or a browser, which their module starts once, go together; so do all tests of a broker
that is shared; so do the small tests of a file.

xdist hands a group on as a part of the test's id, and pytest 9.2 makes the id of something else, so the scheduler here
is one of our own. Only the processes know the tests, only the scheduler is asked: one of them writes the groups down.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.shared_brokers import shared_by

ALONE: Final = ("tests/integration/", "tests/fuzz/")
"""Directories whose tests go one by one."""

SHARED: Final = frozenset({"chrome", "data", "doors", "filled", "limited", "priced", "running", "worded"})
"""Fixtures that start or make something for the tests of a file, which else each process would do for itself."""

LONG: Final = (
    "test_histories.py",
    "test_event_store_kafka.py",
    "test_kafka_damage.py",
    "test_kafka_shared.py",
    "test_rebuild.py",
    "test_lost_topics.py",
    "test_page_walks.py",
    "test_page_events.py",
    "test_page_everybody.py",
    "test_page_strain.py",
    "test_page.py",
    "test_otlp_faults.py",
    "test_event_store.py",
    "test_keepalive.py",
    "test_leases.py",
    "test_users_topic.py",
    "test_clock.py",
    "test_kafka.py",
    "test_kafka_tls.py",
    "test_several_apis.py",
    "test_crash.py",
    "test_retention.py",
    "test_power.py",
    "test_schemathesis.py",
    "test_otlp_guide.py",
    "test_otlp_clients.py",
    "test_index_files.py",
    "test_terminal.py",
)
"""Files whose tests come first: what begins last should be short."""

_path = pytest.StashKey[Path]()


class Scheduling(LoadScopeScheduling):
    """Gives the tests of a group to one process."""

    _groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:
            self._groups = json.loads(self.config.stash[_path].read_text())
        return self._groups.get(nodeid, nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """In the place of xdist's own."""
    return Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that is to start where the groups are written down."""
    stash = node.config.stash
    if _path not in stash:
        descriptor, name = tempfile.mkstemp(prefix="pytest-groups-")
        os.close(descriptor)
        stash[_path] = Path(name)
    node.workerinput["groups"] = str(stash[_path])


def pytest_unconfigure(config: pytest.Config) -> None:
    if (path := config.stash.get(_path, None)) is not None:
        path.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)  # before -m and -k pick
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    told: dict[str, str] = getattr(config, "workerinput", {})
    if told.get("workerid") == "gw0":  # all of them find the same
        groups = {item.nodeid: group for item in items if (group := _group(item)) is not None}
        Path(told["groups"]).write_text(json.dumps(groups))
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (not _is_alone(item), rank.get(item.path.name, len(rank))))


def _is_alone(item: pytest.Item) -> bool:
    return item.nodeid.startswith(ALONE)


def _group(item: pytest.Item) -> str | None:
    file = item.nodeid.partition("::")[0]
    fixtures = set(getattr(item, "fixturenames", ()))
    if (broker := shared_by(item)) is not None:
        return broker
    return None if _is_alone(item) and not fixtures & SHARED else file
