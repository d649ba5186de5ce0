import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.support.browser", "tests.support.kafka"]

# A shared machine is slow now and then: a test that hangs is caught by its timeout, not by hypothesis' deadline.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own SPENDSTREAM_* variables decide nothing here."""
    for name in [name for name in os.environ if name.startswith("SPENDSTREAM_")]:
        monkeypatch.delenv(name)
