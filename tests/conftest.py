import gc
import os
from collections.abc import Iterator

import pytest
import structlog

from tests.support import examples

pytest_plugins = [
    "tests.support.browser",
    "tests.support.distribution",
    "tests.support.kafka",
    "tests.support.loops",
    "tests.support.otlp_clients",
]

examples.load()

structlog.configure(
    # As structlog has it, but for tracebacks: one with colours and variables takes a tenth of a second.
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave thousands of tests and all that they import out of every search for garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own SPENDSTREAM_* variables decide nothing here, but whether the compiled kernel is kept out."""
    for name in [name for name in os.environ if name.startswith("SPENDSTREAM_") and name != "SPENDSTREAM_PURE"]:
        monkeypatch.delenv(name)
