"""Real OTLP clients and a real Collector for tests: the markers `otlp_clients` and `collector`.

What they need is brought before the first test that has one of them. Where it cannot be had such tests are skipped,
with the reason; REQUIRE_OTLP_CLIENTS=1 makes that a failure.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from tools.collector import NoCollector, binary
from tools.otlp_clients import NoClients, javascript_client, python_client

REQUIRED: Final = "REQUIRE_OTLP_CLIENTS"
BRINGS: Final[dict[str, tuple[Callable[[], Any], ...]]] = {
    "otlp_clients": (python_client, lambda: python_client(is_older=True), javascript_client),
    "collector": (binary,),
}

_missing = pytest.StashKey[dict[str, str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Bring what is needed before the first test: a test's timeout may be too short."""
    missing = session.config.stash.setdefault(_missing, {})
    if session.config.option.collectonly:
        return
    for marker, brings in BRINGS.items():
        if not any(item.get_closest_marker(marker) for item in session.items):
            continue
        try:
            for bring in brings:
                bring()
        except (NoClients, NoCollector) as error:
            missing[marker] = str(error)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, reason in item.config.stash.get(_missing, {}).items():
        if item.get_closest_marker(marker):
            if os.environ.get(REQUIRED) == "1":
                pytest.fail(f"{REQUIRED}=1, and there is none: {reason}", pytrace=False)
            pytest.skip(reason)
