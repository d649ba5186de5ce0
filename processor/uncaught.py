"""Exceptions that nothing catches, printed as text: also what comes from outside in them."""

import sys
import traceback
from types import TracebackType

from processor.core.visible import visible_lines


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception on standard error, its control characters escaped: a `sys.excepthook`."""
    sys.stderr.write(visible_lines("".join(traceback.format_exception(kind, error, trace))))
