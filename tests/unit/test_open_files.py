"""The worker's limit of open files."""

import subprocess
import sys

RAISE = """
import resource
from processor.open_files import raise_limit
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits(soft: int, hard: int) -> list[int]:
    """What a process that begins with these limits has then."""
    shell = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'  # this process has threads: nothing to run at a fork
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", RAISE]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return list(map(int, done.stdout.split()))


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    assert limits(64, 128) == [128, 128, 128]
    assert limits(128, 128) == [128, 128, 128]
