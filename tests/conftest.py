import os

import pytest

from tests.support import examples

pytest_plugins = [
    "tests.support.browser",
    "tests.support.distribution",
    "tests.support.kafka",
    "tests.support.otlp_clients",
]

examples.load()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own SPENDSTREAM_* variables decide nothing here, but whether the compiled kernel is kept out."""
    for name in [name for name in os.environ if name.startswith("SPENDSTREAM_") and name != "SPENDSTREAM_PURE"]:
        monkeypatch.delenv(name)
