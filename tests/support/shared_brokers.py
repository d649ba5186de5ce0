"""Which tests share a broker that is started once: for the order of the tests and for the broker's end."""

from typing import Final

import pytest

MARKER: Final = "kafka"
OWN: Final = frozenset({"own_broker", "old_kafka"})
"""Fixtures of tests that do not share a broker, though they need one."""


def shared_by(item: pytest.Item) -> str | None:
    """The fixture of the shared broker that a test may ask for, be it only as it runs (`getfixturevalue`)."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if item.get_closest_marker(MARKER) is None or fixtures & OWN:
        return None
    return "secure_kafka" if "secure_kafka" in fixtures else "kafka"
