"""Imported by every Python process that has this folder in PYTHONPATH: notes which of our functions are called.

SIGUSR1 forgets what was noted, SIGUSR2 writes it to a file in WHAT_RUNS_FOLDER: path, first line and name of each.
"""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = os.environ.get("WHAT_RUNS_ROOT", "")
FOLDER = os.environ.get("WHAT_RUNS_FOLDER", "")

called: set[CodeType] = set()


def note(frame: FrameType, event: str, _: Any) -> None:
    if event == "call":
        called.add(frame.f_code)


def forget(*_: Any) -> None:
    called.clear()


def write(*_: Any) -> None:
    ours = [code for code in list(called) if code.co_filename.startswith(ROOT)]
    lines = [f"{code.co_filename}\t{code.co_firstlineno}\t{code.co_qualname}" for code in ours]
    file = Path(FOLDER) / f"{os.getpid()}.txt"
    file.with_suffix(".part").write_text("\n".join(lines))
    file.with_suffix(".part").rename(file)


if ROOT and FOLDER:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGUSR1, forget)
        signal.signal(signal.SIGUSR2, write)
    threading.setprofile(note)
    sys.setprofile(note)
