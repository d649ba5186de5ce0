"""Which tests pytest-xdist gives to one process (`--dist loadgroup`), and in which order.

A file is no floor: integration tests start processes of their own and go one by one to whoever is free, the longest
first. Those that share a server or a browser, which their module starts once, go together; so do all tests of a broker
that is shared; so do the small tests of a file.
"""

from typing import Final

import pytest

ALONE: Final = ("tests/integration/", "tests/fuzz/")
"""Directories whose tests go one by one."""

SHARED: Final = frozenset({"chrome", "running", "doors"})
"""Fixtures that start something for the tests of a file."""

OWN: Final = frozenset({"own_broker", "old_kafka"})
"""Fixtures of tests that do not share a broker, though they need one."""

LONG: Final = (
    "test_kafka_shared.py",
    "test_kafka_damage.py",
    "test_keepalive.py",
    "test_rebuild.py",
    "test_histories.py",
    "test_leases.py",
    "test_users_topic.py",
    "test_page.py",
    "test_several_apis.py",
    "test_clock.py",
    "test_retention.py",
    "test_power.py",
    "test_crash.py",
)
"""Files whose tests come first: what begins last should be short."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups, which it does in each of its processes
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (group := _group(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (not _is_alone(item), rank.get(item.path.name, len(rank))))


def _is_alone(item: pytest.Item) -> bool:
    return item.nodeid.startswith(ALONE)


def _group(item: pytest.Item) -> str | None:
    file = item.nodeid.partition("::")[0]
    fixtures = set(getattr(item, "fixturenames", ()))
    if item.get_closest_marker("kafka") and not fixtures & OWN:
        return "secure_kafka" if "secure_kafka" in fixtures else "kafka"
    return None if _is_alone(item) and not fixtures & SHARED else file
