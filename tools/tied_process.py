"""Commands that end with the process that started them, without a hook between fork and exec."""

import os
import sys
from collections.abc import Sequence
from typing import Final

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
