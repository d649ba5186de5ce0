"""Which tests share a broker that is started once: for the order of the tests and for the broker's end."""

from typing import Final

import pytest

MARKER: Final = "kafka"
OWN: Final = frozenset({"own_broker", "old_kafka"})
"""Fixtures of tests that need a broker, and share none unless they ask for it, too."""


def shared_by(item: pytest.Item) -> str | None:
    """The fixture of the shared broker that a test may ask for, be it only as it runs (`getfixturevalue`)."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if "secure_kafka" in fixtures:
        return "secure_kafka"
    if "kafka" not in fixtures and (item.get_closest_marker(MARKER) is None or fixtures & OWN):
        return None
    return "kafka"
