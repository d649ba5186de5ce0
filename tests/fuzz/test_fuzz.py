"""A few seconds of what `python -m tests.fuzz` does for as long as one likes, and every input that was a finding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given

from tests.fuzz import inputs, otlp_inputs
from tests.fuzz.inputs import Packed
from tests.fuzz.otlp_inputs import Export
from tests.fuzz.target import Target, target
from tests.support.examples import examples

CASES = sorted((Path(__file__).parent / "cases").iterdir())
SOME = examples(60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def doors() -> Iterator[Target]:
    with target() as opened:
        yield opened


def test_any_ndjson(doors: Target) -> None:
    @SOME
    @given(inputs.ndjson)
    def run(body: bytes) -> None:
        doors.post(Packed("identity", body))

    run()


def test_any_packed_body(doors: Target) -> None:
    @SOME
    @given(inputs.packed)
    def run(body: Packed) -> None:
        doors.post(body)

    run()


def test_any_message(doors: Target) -> None:
    @SOME
    @given(inputs.messages)
    def run(raw: bytes) -> None:
        doors.call(raw)

    run()


def test_any_export(doors: Target) -> None:
    @SOME
    @given(otlp_inputs.exports)
    def run(found: Export) -> None:
        doors.export(found)

    run()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_what_was_found(doors: Target, path: Path) -> None:
    """A file's ending says what it is: `.grpc`, or the encoding of an HTTP body."""
    encoding = path.suffix.removeprefix(".")
    if encoding == "grpc":
        doors.call(path.read_bytes())
    else:
        doors.post(Packed(encoding, path.read_bytes()))
