"""The Python twins alone, in a process in which the compiled kernel runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from processor.core.kernel import loaded


@contextmanager
def pure() -> Iterator[None]:
    """Keep the kernel out of every module that chooses between it and Python."""
    users = [
        each
        for name, each in list(sys.modules.items())
        if name.startswith(("processor.", "server.")) and each is not loaded and vars(each).get("kernel") is not None
    ]
    users = [each for each in users if each.kernel is loaded.kernel]
    for each in users:
        vars(each)["kernel"] = None
    try:
        yield
    finally:
        for each in users:
            vars(each)["kernel"] = loaded.kernel
