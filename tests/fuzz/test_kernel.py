"""A few seconds of what `python -m tests.fuzz.kernel` does for as long as one likes."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from processor.core.kernel.loaded import RUNNING
from tests.fuzz import twins

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 4.0

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")


def test_the_kernel_and_its_twin_make_the_same_bytes() -> None:
    number = began_with = random.SystemRandom().randrange(2**32)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    while time.monotonic() < began + SECONDS:
        try:
            counts += twins.compare(number)
        except AssertionError as error:
            raise AssertionError(f"python -m tests.fuzz.kernel --seed {number}: {error}") from error
        number += 1
    print(f"seeds {began_with} to {number - 1}: {dict(counts)}")  # shown by `pytest -rP`
    assert counts["json taken"] > counts["json sent"] / 10


def test_under_the_address_sanitizer_nothing_is_touched_that_is_not_ours() -> None:
    asked = ["cc", "-print-file-name=libasan.so"]
    try:
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no C compiler")
    if not Path(library).is_absolute():
        pytest.skip("the C compiler has no address sanitizer")
    command = [sys.executable, "-m", "tests.fuzz.kernel", "--sanitize", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout)
