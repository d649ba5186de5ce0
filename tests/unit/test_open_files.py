"""The worker's limit of open files."""

import resource
import subprocess
import sys

RAISE = """
import resource
from processor.open_files import raise_limit
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits(soft: int, hard: int) -> list[int]:
    """What a process that begins with these limits has then."""
    done = subprocess.run(
        [sys.executable, "-c", RAISE],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    return list(map(int, done.stdout.split()))


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    assert limits(64, 128) == [128, 128, 128]
    assert limits(128, 128) == [128, 128, 128]
