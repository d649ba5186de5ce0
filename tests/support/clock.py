"""A wall clock that a test turns, for real processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.cli_host import CLOCK
from tests.support.server import variables

_PATCH: Final = f"""
import os, time
_real, _gettime = time.time_ns, time.clock_gettime_ns

def _turned():
    path = os.environ.get("{CLOCK}")
    if path is None:  # a host of commands, which has none of its own
        return [0, 0]
    with open(path) as file:
        return [int(float(seconds) * 1e9) for seconds in file.read().split()]

def time_ns():
    return _real() + sum(_turned())

def clock_gettime_ns(clock):
    return _gettime(clock) + _turned()[1]

if "{CLOCK}" in os.environ:
    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    time.clock_gettime_ns = clock_gettime_ns
"""


class Clock:
    """The clocks of all processes that are started while it is held.

    `set` turns the wall clock alone: it is wrong from then on, or right again. `let_pass` turns all that a process asks
    for the time that has passed, too. What only measures patience (`time.monotonic`) goes on as it does.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self._wrong = 0.0
        self.passed = 0.0
        """Seconds that have passed besides those that really did."""

    def set(self, seconds: float) -> None:
        """Have the wall clock be wrong by so much, from now on, for everybody."""
        self._wrong = seconds
        self._write()

    def let_pass(self, seconds: float) -> None:
        """Have so much time pass at once."""
        self.passed += seconds
        self._write()

    def _write(self) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_text(f"{self._wrong} {self.passed}")
        draft.rename(self._path)

    @contextmanager
    def held(self, seconds: float = 0.0) -> Iterator["Clock"]:
        """Every Python that starts from here on goes by this clock: it comes as a `sitecustomize`."""
        patch = self._path.with_name("patch")
        patch.mkdir(parents=True, exist_ok=True)
        (patch / "sitecustomize.py").write_text(_PATCH)
        self.set(seconds)
        path = os.pathsep.join(filter(None, [str(patch), os.environ.get("PYTHONPATH")]))
        with variables({"PYTHONPATH": path, CLOCK: self._path}):
            yield self
