"""Which tests pytest-xdist gives to one process (`--dist loadgroup`), and in which order.

A file is no floor: integration tests start processes of their own and go one by one to whoever is free, the longest
first. Those that share what is dear to start go together, and so do the small tests of a file.

xdist's own groups are part of the ids that its processes report, which pytest 9.2 does not let it change any more.
"""

from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ALONE: Final = ("tests/integration/", "tests/fuzz/")
"""Directories whose tests go one by one."""

TOGETHER: Final = ("test_kafka_shared.py", "test_page.py", "test_terminal.py")
"""Files of those directories whose tests share a broker, a browser with a month of traffic, or a terminal."""

LONG: Final = (
    "test_histories.py",
    "test_kafka_damage.py",
    "test_rebuild.py",
    "test_page.py",
    "test_kafka_shared.py",
    "test_leases.py",
    "test_lost_topics.py",
    "test_keepalive.py",
    "test_users_topic.py",
    "test_clock.py",
    "test_several_apis.py",
    "test_retention.py",
    "test_crash.py",
    "test_power.py",
    "test_kafka.py",
    "test_kafka_tls.py",
)
"""Files whose tests come first: what begins last should be short."""


class Scheduling(LoadScopeScheduling):
    """Gives the tests of a group to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """What a test goes together with: those of its file, or nothing."""
    file = nodeid.partition("::")[0]
    return nodeid if file.startswith(ALONE) and not file.endswith(TOGETHER) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """In the place of xdist's own."""
    return Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (not item.nodeid.startswith(ALONE), rank.get(item.path.name, len(rank))))
