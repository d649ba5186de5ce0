"""Imported by every Python process that has this folder in PYTHONPATH: notes which of our functions are called.

Each is noted with its root, the outermost of our functions that a thread or the event loop was in: a task, a callback
or what a thread was started for. SIGUSR2 writes what was noted since the last one to a file in WHAT_RUNS_FOLDER: path,
first line and name of the function, and the name of its root.
"""

import contextlib
import os
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = os.environ.get("WHAT_RUNS_ROOT", "")
FOLDER = os.environ.get("WHAT_RUNS_FOLDER", "")
OURS = (f"{ROOT}/server/", f"{ROOT}/processor/")
LOOPS = {"Runner.run", "BaseEventLoop.run_forever", "BaseEventLoop.run_until_complete"}
"""asyncio's: what calls these is the whole program."""

called: set[tuple[CodeType, CodeType]] = set()
numbers = count()


def note(frame: FrameType, event: str, _: Any) -> None:
    if event != "call" or not frame.f_code.co_filename.startswith(OURS):
        return
    root = frame.f_code
    above = frame.f_back
    while above is not None and above.f_code.co_qualname not in LOOPS:
        if above.f_code.co_filename.startswith(OURS):
            root = above.f_code
        above = above.f_back
    called.add((frame.f_code, root))


def write(*_: Any) -> None:
    found = called.copy()
    called.clear()
    lines = [
        f"{code.co_filename}\t{code.co_firstlineno}\t{code.co_qualname}\t{root.co_qualname}" for code, root in found
    ]
    file = Path(FOLDER) / f"{os.getpid()}.{next(numbers)}.txt"
    file.with_suffix(".part").write_text("\n".join(lines))
    file.with_suffix(".part").rename(file)


if ROOT and FOLDER:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGUSR2, write)
    threading.setprofile(note)
    sys.setprofile(note)
