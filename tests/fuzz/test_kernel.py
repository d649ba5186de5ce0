"""A few seconds of what `python -m tests.fuzz.kernel` does for as long as one likes."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from processor.core.kernel.loaded import RUNNING
from tests.fuzz import chosen_twins, column_twins, kernel, message_twins, segment_twins, span_twins, table_twins, twins
from tests.support.examples import tries
from tests.support.patience import PROCESS_PATIENCE
from tools.build_kernel import CACHE

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = tries(40) / 10
"""Of each comparison, at least: four in the profile `default`."""
KEPT: Final = {CACHE: os.environ[CACHE]} if CACHE in os.environ else {}
"""Where the C of this kernel may be, and is put; no test has it in its environment."""

Enough = Callable[[Counter[str]], bool]

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")


def _compare(compare: Callable[[int], Counter[str]], enough: Enough) -> None:
    """Compare for a few seconds from a seed that nobody chose, and until enough was met of what is to be compared.

    How much comes in a few seconds depends on what else the machine does.
    """
    number = began_with = random.SystemRandom().randrange(2**32)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    while time.monotonic() < began + SECONDS or not enough(counts):
        assert time.monotonic() < began + SECONDS + PROCESS_PATIENCE, counts
        try:
            counts += compare(number)
        except Exception as error:
            raise AssertionError(f"python -m tests.fuzz.kernel --seed {number}: {error!r}") from error
        number += 1
    print(f"seeds {began_with} to {number - 1}: {dict(counts)}")  # shown by `pytest -rP`


def _some_of(*names: str) -> Enough:
    return lambda counts: all(counts[name] > 0 for name in names)


def test_the_kernel_and_its_twin_make_the_same_bytes() -> None:
    def enough(counts: Counter[str]) -> bool:
        are_read = (counts[f"{each} read"] > counts[f"{each} kept"] / 4 for each in ("json", "protobuf"))
        return counts["json taken"] > counts["json sent"] / 10 and all(are_read)

    _compare(twins.compare, enough)


def test_the_kernel_and_its_twin_make_the_same_messages() -> None:
    _compare(message_twins.compare, _some_of("messages made", "requests cut"))


def test_the_kernel_and_its_twin_make_the_same_tables() -> None:
    _compare(table_twins.compare, _some_of("events applied"))


def test_the_kernel_and_its_twin_make_the_same_of_spans() -> None:
    _compare(span_twins.compare, lambda counts: counts["spans made"] > counts["spans sent"] / 20)


def test_the_kernel_and_its_twin_read_the_same_columns() -> None:
    _compare(column_twins.compare, _some_of("costs read", "tags read", "damaged costs left", "damaged tags refused"))


def test_the_kernel_and_its_twin_write_the_same_segments() -> None:
    _compare(segment_twins.compare, _some_of("rows written", "rows taken", "entries sorted", "damage refused"))


def test_the_kernel_and_its_twin_read_the_same_rows() -> None:
    _compare(chosen_twins.compare, _some_of("rows read", "texts found", "damaged columns left"))


@pytest.mark.parametrize("kind", [AssertionError, ValueError])
def test_a_finding_names_its_seed(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: int) -> Counter[str]:
        raise kind("no plan")

    monkeypatch.setattr(twins, "compare", fails)
    assert kernel.compare(SECONDS, 20261129) == 1
    assert "--seed 20261129" in capsys.readouterr().out


def test_under_the_address_sanitizer_nothing_is_touched_that_is_not_ours() -> None:
    asked = ["cc", "-print-file-name=libasan.so"]
    try:
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no C compiler")
    if not Path(library).is_absolute():
        pytest.skip("the C compiler has no address sanitizer")
    command = [sys.executable, "-m", "tests.fuzz.kernel", "--sanitize", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **KEPT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout)
