"""Programs that end with the process that started them, without a hook between fork and exec."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STOP_PATIENCE: Final = 20.0
"""Seconds that a program has to stop cleanly."""

_TIED: Final = """
import ctypes, os, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(71)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """`command`, tied as `processor.lifeline` ties a child.

    For a parent with threads that must not fork: gRPC's are stuck in the child then.
    """
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


class NotStarted(Exception):
    """A program ended, or did not answer in time; the text has the end of its log."""


class TiedProgram:
    """A program on a directory, started as often as one likes, that dies with this process, however this one goes.

    A subclass starts it: it sets `process`, whose output goes to `log_path`.
    """

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started last."""
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def stop(self, patience: float = STOP_PATIENCE) -> bool:
        """Stop it cleanly; returns whether it did so in time, and was not killed instead."""
        if self.process is None:
            return True
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone. Does nothing if it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def log(self) -> str:
        """All that it logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
