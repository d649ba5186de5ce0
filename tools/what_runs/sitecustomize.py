"""Imported by every Python process that has this folder in PYTHONPATH: notes which of our functions and lines run.

Each function is noted with its root, the outermost of our functions that a thread or the event loop was in: a task, a
callback or what a thread was started for, by the class of its object. SIGUSR2 writes what was noted since the last one
to a file in WHAT_RUNS_FOLDER: path, first line and name of the function, the name of its root, and the lines that ran.
"""

import contextlib
import os
import signal
import sys
import threading
from collections import defaultdict
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = os.environ.get("WHAT_RUNS_ROOT", "")
FOLDER = os.environ.get("WHAT_RUNS_FOLDER", "")
OURS = (f"{ROOT}/server/", f"{ROOT}/processor/")
LOOPS = {"Runner.run", "BaseEventLoop.run_forever", "BaseEventLoop.run_until_complete"}
"""asyncio's: what calls these is the whole program."""

called: set[tuple[CodeType, str]] = set()
ran: defaultdict[CodeType, set[int]] = defaultdict(set)
numbers = count()


def name_of(root: FrameType) -> str:
    """Return the name of a root: a method that several classes share is one of each."""
    code = root.f_code
    if code.co_argcount and code.co_varnames[0] == "self" and "<locals>" not in code.co_qualname:
        owner = root.f_locals.get("self")
        if owner is not None:
            return f"{type(owner).__name__}.{code.co_name}"
    return code.co_qualname


def note(frame: FrameType, event: str, _: Any) -> Any:
    """Note a call, and have the lines of it noted."""
    if event != "call" or not frame.f_code.co_filename.startswith(OURS):
        return None
    root = frame
    above = frame.f_back
    while above is not None and above.f_code.co_qualname not in LOOPS:
        if above.f_code.co_filename.startswith(OURS):
            root = above
        above = above.f_back
    called.add((frame.f_code, name_of(root)))
    return note_line


def note_line(frame: FrameType, event: str, _: Any) -> Any:
    """Note a line that runs."""
    if event == "line":
        ran[frame.f_code].add(frame.f_lineno)
    return note_line


def write(*_: Any) -> None:
    """Write what was noted since the last time, and begin anew."""
    found, lines = called.copy(), {code: sorted(each) for code, each in list(ran.items())}
    called.clear()
    ran.clear()
    rows = [
        "\t".join([code.co_filename, str(code.co_firstlineno), code.co_qualname, root, *map(str, lines.get(code, []))])
        for code, root in found
    ]
    file = Path(FOLDER) / f"{os.getpid()}.{next(numbers)}.txt"
    file.with_suffix(".part").write_text("\n".join(rows))
    file.with_suffix(".part").rename(file)


if ROOT and FOLDER:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGUSR2, write)
    threading.settrace(note)
    sys.settrace(note)
