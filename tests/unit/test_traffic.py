"""The generator of events says itself what they come to: so does the product, however they are encoded."""

import hashlib
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from processor.core.clock import HOUR
from processor.core.events import codec
from processor.core.events.codec import PayloadFormat
from tests.bench.corpus import Corpus
from tests.support.events import to_json_line, to_proto
from tests.support.tables import NOON
from tests.support.traffic import BATCH, Month, Odd, Plain, Profile, Wide, bulk_line, stream
from tests.support.truth import GroundTruth

CHANCE = random.Random(11)
PROFILES: dict[str, Profile] = {
    "plain": Plain(CHANCE),
    "wide": Wide(CHANCE),
    "odd": Odd(CHANCE, 50, 5, 10),
    "month": Month(CHANCE, datetime(2026, 4, 20, tzinfo=UTC)),
}


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("name", PROFILES)
def test_what_a_profile_counts_is_what_the_product_counts(name: str, payload: PayloadFormat) -> None:
    made = [PROFILES[name].make(number) for number in range(500)]
    sent = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event, _ in made]
    decoded = codec.decode(payload, sent, "partial", NOON)
    assert not decoded.faults
    columns = decoded.columns
    for row, (_, fact) in zip(columns.rows, made, strict=True):
        _, provider, model, *_, status = columns.dims[row["dim"]]
        is_error = int(status in {"error", "timeout", "rate_limited"})
        numbers = (1, is_error, *(int(row[column]) for column in ("input", "output", "cached", "cost")), 0)
        assert (columns.users[row["user"]], provider, model) == (fact.user, fact.provider, fact.model)
        assert (int(row["at"]), numbers) == (fact.at, fact.numbers)


def test_the_bytes_behind_every_figure_do_not_change(tmp_path: Path) -> None:
    """Rows of the benchmark are compared with older ones: the same 2,000 events as ever."""
    corpus = Corpus(tmp_path, 2000)
    assert (
        hashlib.sha256(b"".join(map(b"".join, corpus.lines))).hexdigest()
        == "87627152b5906ec0aaaea8e3ae490928b9116bd56b5851839cd5b6ba73e1ec38"
    )
    assert corpus.truth.unique == 1969


def test_the_wide_one_has_an_hour_for_nearly_every_event_of_a_user() -> None:
    rng = random.Random(1)
    made = list(stream(Wide(rng), rng, 5000))
    truth = GroundTruth()
    truth.count(each.fact for each in made if not each.is_copy)
    hours = {(each.fact.user, each.fact.at // HOUR, each.fact.model, each.event["environment"]) for each in made}
    assert truth.unique == len({each.event["event_id"] for each in made})
    assert 0.005 < 1 - truth.unique / 5000 < 0.015
    assert len(hours) > 0.9 * truth.unique
    assert 1 < len(truth.users) <= 10_001
    assert {day for days in truth.by_day.values() for day in days} == {f"2026-04-{day}" for day in (17, 18, 19, 20)}


def test_a_corpus_is_the_same_over_both_apis(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, BATCH + 1, Wide)
    assert corpus.count == 2 * BATCH
    again = Corpus(tmp_path, 2 * BATCH, Wide)
    assert (again.lines, again.truth) == (corpus.lines, corpus.truth)
    assert corpus.bodies("json") != Corpus(tmp_path, 2 * BATCH).bodies("json")


def test_a_line_in_bulk_is_an_event() -> None:
    line = bulk_line("00000000-0000-4000-8000-000000000001", "u", "2026-04-20T10:00:00Z", 7, 8, 9)
    columns = codec.decode("json", [line], "strict", NOON).columns
    [row] = columns.rows
    assert [int(row[name]) for name in ("input", "output", "cached", "cost")] == [7, 8, 0, 9]
    assert columns.users == ["u"]


def test_copies_come_later_and_are_the_same() -> None:
    rng = random.Random(5)
    seen: dict[str, bytes] = {}
    for made in stream(Plain(rng), rng, 3000, duplicates=0.1):
        line = to_json_line(made.event)
        assert made.is_copy == (made.event["event_id"] in seen)
        assert seen.setdefault(made.event["event_id"], line) == line
