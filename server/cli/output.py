"""The output of commands. All of it passes through here or through `sheet`: text from outside never becomes markup or
control characters.
"""

import io
import json
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from processor.core.visible import visible, visible_json
from processor.uncaught import print_exception


def prepare() -> None:
    """Make both streams print any text in any locale, and unexpected exceptions as text.

    A character that the locale's encoding does not have is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = print_exception


def _stream(*, err: bool) -> TextIO:
    return sys.stderr if err else sys.stdout


# --- lines -----------------------------------------------------------------------------------------------------------


def say(*lines: str, err: bool = False) -> None:
    """Print each of `lines` as one line, on standard output or on standard error."""
    stream = _stream(err=err)
    stream.write("".join(f"{visible(line)}\n" for line in lines))
    stream.flush()


def print_json(value: Any, *, err: bool = False) -> None:
    """Print one JSON document, indented."""
    print_encoded([json.dumps(value, indent=2).encode()], err=err)


def print_encoded(documents: Iterable[bytes], *, err: bool = False) -> None:
    """Print encoded JSON documents, one a line; their values stay exact."""
    stream = _stream(err=err)
    ascii_only = (stream.encoding or "").lower().replace("-", "").replace("_", "") != "utf8"
    texts = (document.decode(errors="replace") for document in documents)
    stream.write("".join(f"{visible_json(text, ascii_only=ascii_only)}\n" for text in texts))
    stream.flush()


class TerminalLines(io.RawIOBase):
    """A binary file for lines of JSON that shows them on the terminal of standard output."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write whole lines."""
        sys.stdout.write(visible_json(bytes(data).decode(errors="replace")))
        return len(data)
