"""Fuzz both APIs: `make fuzz`, or `python -m tests.fuzz --seconds 3600`. Ends with 1 at the first finding.

Hypothesis makes a finding as small as it can and prints it; put it into tests/fuzz/cases/ as a file.
"""

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz import inputs, otlp_inputs
from tests.fuzz.inputs import Packed
from tests.fuzz.otlp_inputs import Export
from tests.fuzz.target import Target, target

ROUND = 100
"""Inputs of each kind, between two looks at the clock."""


def main() -> int:
    """Fuzz; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    counts: Counter[str] = Counter()
    number = options.seed
    with target() as doors:
        kinds = _kinds(doors, counts)
        while time.monotonic() < deadline:
            for kind in kinds:
                try:
                    _run(kind, number)
                except AssertionError as error:
                    print(f"a finding with --seed {number}: {error}")
                    return 1
            number += 1
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"seed {number - 1}: {sum(counts.values())} inputs, {dict(counts)}, at most {memory} MiB", flush=True)
    return 0


def _kinds(doors: Target, counts: Counter[str]) -> list[tuple[Any, Callable[[Any], None]]]:
    def ndjson(body: bytes) -> None:
        counts[str(doors.post(Packed("identity", body)))] += 1

    def packed(body: Packed) -> None:
        counts[str(doors.post(body))] += 1

    def messages(raw: bytes) -> None:
        counts[doors.call(raw).name] += 1

    def export(found: Export) -> None:
        counts[doors.export(found)] += 1

    return [
        (inputs.ndjson, ndjson),
        (inputs.packed, packed),
        (inputs.messages, messages),
        (otlp_inputs.exports, export),
    ]


def _run(kind: tuple[Any, Callable[[Any], None]], number: int) -> None:
    strategy, check = kind

    @seed(number)
    @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(found: Any) -> None:
        check(found)

    run()


if __name__ == "__main__":
    sys.exit(main())
