"""A command on a terminal of its own: a pseudoterminal of a given width, and all that was written to it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support import cli_host
from tests.support.patience import PROCESS_PATIENCE

ROOT: Final = Path(__file__).resolve().parents[2]

_OWN = re.compile(r"\x1b\[([0-9;]*m|\?25[lh]|2K|1A)")  # colours, and how a live drawing is drawn over the last one
_BLANK = re.compile(r"\s")


def on_terminal(
    arguments: Sequence[str | bytes], variables: Mapping[str, str], columns: int, *, patience: float = PROCESS_PATIENCE
) -> tuple[int, str]:
    """Run `spendstream` with `arguments`; returns the exit code and what it wrote, standard error included."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
        # pytest-xdist has COLUMNS=80 in the environment of its workers, which goes before the terminal's own width.
        others = {name: value for name, value in variables.items() if name != "COLUMNS"}
        process = _start(arguments, {**others, "TERM": "xterm-256color"}, theirs)
        os.close(theirs)
        written = b""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    written += os.read(ours, 1 << 16)
                except OSError:  # nobody holds the other end any more
                    break
        else:
            process.kill()
        return process.wait(PROCESS_PATIENCE), written.decode(errors="surrogateescape")
    finally:
        os.close(ours)


def _start(arguments: Sequence[str | bytes], variables: Mapping[str, str], tty: int) -> Any:
    """Forked, but where Python has to decide at its start what it makes of a locale."""
    if "PYTHONUTF8" not in variables:
        return cli_host.Command(arguments, variables, ROOT, (tty, tty, tty))
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.Popen(command, env=variables, cwd=ROOT, stdin=tty, stdout=tty, stderr=tty, start_new_session=True)


def plain(written: str) -> str:
    """What was written without colours and the redrawing of bars; other control sequences stay."""
    return _OWN.sub("", written)


def squeezed(written: str) -> str:
    """The text without white space, column by column of a table, so that a folded cell is in one piece again."""
    columns: dict[int, str] = {}
    for line in plain(written).splitlines():
        cells = line.split("│")[1:-1] if line.startswith("│") else [line]
        for number, cell in enumerate(cells):
            columns[number] = columns.get(number, "") + cell
    return _BLANK.sub("", "\n".join(columns.values()))
