"""A child's tie to its supervisor: when the supervisor is gone, however it went, the child ends at once.

The supervisor holds the write end of a pipe and never writes; the kernel closes it with the process.
"""

import os
import threading
from typing import Final

VARIABLE: Final = "SPENDSTREAM_LIFELINE_FD"
EXIT_ORPHANED: Final = 71


def watch() -> None:
    """Watch the pipe named in the environment, if there is one."""
    named = os.environ.pop(VARIABLE, None)
    if named is not None:
        threading.Thread(target=_wait, args=(int(named),), name="lifeline", daemon=True).start()


def _wait(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os._exit(EXIT_ORPHANED)  # nothing to save: what was acknowledged is durable
