"""Compare the compiled kernel with its twin on mutated events, spans, tables and segments: `make fuzz-kernel`.

`--sanitize` builds a kernel with the address sanitizer and runs in a process of its own with it: then a read or a write
outside a buffer ends the process, too. Ends with 1 at the first finding, which `--seed` shows again.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final

NAME: Final = "processor.core.kernel.compiled"


def main() -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kernel", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--sanitize", action="store_true", help="with the address sanitizer")
    parser.add_argument("--kernel", type=Path, help="a kernel that was built elsewhere")
    options = parser.parse_args()
    if options.sanitize:
        return _sanitized(options.seconds, options.seed)
    if options.kernel is not None:
        load(options.kernel)
    return compare(options.seconds, options.seed)


def load(path: Path) -> None:
    """Have everything use the kernel of a file. To be called before anything of the product is imported."""
    spec = spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(module)
    import processor.core.kernel as package

    vars(package)["compiled"] = module


def compare(seconds: float, seed: int) -> int:
    """Compare for so long; the exit code."""
    from processor.core.kernel.loaded import RUNNING
    from tests.fuzz import chosen_twins, column_twins, message_twins, segment_twins, span_twins, table_twins, twins

    if RUNNING == "pure":
        print("there is no compiled kernel: build it by `make setup`, where a C compiler is")
        return 1
    counts: Counter[str] = Counter()
    began = shown = time.monotonic()
    number = seed
    while time.monotonic() < began + seconds:
        try:
            counts += twins.compare(number)
            counts += message_twins.compare(number)
            counts += table_twins.compare(number)
            counts += span_twins.compare(number)
            counts += column_twins.compare(number)
            counts += segment_twins.compare(number)
            counts += chosen_twins.compare(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed shows it again
            traceback.print_exception(error)
            print(f"a finding with --seed {number}: {error!r}", flush=True)
            return 1
        number += 1
        if time.monotonic() > shown + 60:
            shown = time.monotonic()
            print(f"seed {number - 1}: {dict(counts)}", flush=True)
    print(f"seeds {seed} to {number - 1}: {dict(counts)}")
    return 0


def _sanitized(seconds: float, seed: int) -> int:
    from tools.build_kernel import build

    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as directory:
        built = build(root, Path(directory), sanitize=True)
        asked = ["cc", "-print-file-name=libasan.so"]
        library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        variables = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
        command = [sys.executable, "-m", "tests.fuzz.kernel", "--kernel", str(built)]
        command += ["--seconds", str(seconds), "--seed", str(seed)]
        return subprocess.run(command, cwd=root, env={**os.environ, **variables}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
