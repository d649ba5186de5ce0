"""Names and settings on a cluster, as far as no broker is needed for them."""

from typing import Final

import msgspec
import pytest

from processor.log.errors import FormatError
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.topic_settings import SettingFault, faults, wanted
from processor.log.kafka.topics import ALL, Meta, TopicLayout, proposal, settled
from processor.log.topics import CLAIMS, COMPACTED, EVENTS, GROUP, ROWS
from processor.settings import Settings, SettingsError, load

DEFAULT: Final = KafkaAccess("broker:9092")
TEAM: Final = KafkaAccess("broker:9092", prefix="team-a.")


def test_the_names_of_today_are_those_of_the_default_prefix() -> None:
    for name in (*ALL, GROUP, f"{GROUP}.tables.3", f"{GROUP}.leases"):
        assert DEFAULT.wire(name) == name
    assert DEFAULT.member(GROUP, "w")["group.id"] == "spendstream"
    assert DEFAULT.reader()["group.id"] == "spendstream-reader"


def test_all_names_of_another_prefix_begin_with_it_and_differ() -> None:
    names = (*ALL, GROUP)
    wires = [TEAM.wire(name) for name in names]
    assert all(wire.startswith("team-a.") for wire in wires)
    assert len(set(wires)) == len(names)
    assert [TEAM.topic(TEAM.wire(name)) for name in ALL] == list(ALL)
    assert TEAM.wire("spendstream.dead-letters") == "team-a.dead-letters"
    assert TEAM.writer(f"{GROUP}.tables.3")["transactional.id"] == "team-a.tables.3"
    assert TEAM.member(GROUP, "w")["group.id"] == "team-a.workers"
    assert TEAM.reader()["group.id"] == "team-a.reader"


@pytest.mark.parametrize("value", ["", ".", "team-a", "-team.", "team a.", "täm.", "x" * 100 + "."])
def test_a_prefix_that_kafka_or_a_reader_would_stumble_over_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPENDSTREAM_KAFKA_PREFIX", value)
    with pytest.raises(SettingsError, match=r"SPENDSTREAM_KAFKA_PREFIX: .*must be 2 to 100 letters"):
        load(Settings)


@pytest.mark.parametrize("topic", ALL)
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_a_topic_as_it_is_made_has_no_fault(topic: str, replicas: int) -> None:
    assert list(faults(topic, replicas, wanted(topic, replicas))) == []
    assert list(faults(topic, replicas, {})) == [], "what a broker does not know is no fault"
    assert wanted(topic, replicas)["cleanup.policy"] == ("compact" if topic in COMPACTED else "delete")


@pytest.mark.parametrize(
    ("topic", "changed", "fault"),
    [
        (ROWS, {"cleanup.policy": "delete"}, SettingFault("cleanup.policy", "delete", "compact", is_fatal=True)),
        (EVENTS, {"cleanup.policy": "compact"}, SettingFault("cleanup.policy", "compact", "delete", is_fatal=True)),
        (CLAIMS, {"retention.ms": "1000"}, SettingFault("retention.ms", "1000", "-1", is_fatal=True)),
        (CLAIMS, {"retention.bytes": "0"}, SettingFault("retention.bytes", "0", "-1", is_fatal=True)),
        (EVENTS, {"retention.ms": "1000"}, SettingFault("retention.ms", "1000", "-1", is_fatal=False)),
        (ROWS, {"retention.ms": "1000"}, SettingFault("retention.ms", "1000", "-1", is_fatal=False)),
        (
            CLAIMS,
            {"max.message.bytes": "33554431"},
            SettingFault("max.message.bytes", "33554431", "33554432", is_fatal=True),
        ),
        (EVENTS, {"min.insync.replicas": "1"}, SettingFault("min.insync.replicas", "1", "2", is_fatal=False)),
        (
            EVENTS,
            {"unclean.leader.election.enable": "true"},
            SettingFault("unclean.leader.election.enable", "true", "false", is_fatal=False),
        ),
    ],
)
def test_what_is_wrong_is_named_and_weighed(topic: str, changed: dict[str, str], fault: SettingFault) -> None:
    assert list(faults(topic, 3, {**wanted(topic, 3), **changed})) == [fault]


def test_larger_than_needed_is_no_fault() -> None:
    found = {**wanted(EVENTS, 3), "max.message.bytes": "67108864", "min.insync.replicas": "3"}
    assert list(faults(EVENTS, 3, found)) == []


def test_the_first_meta_record_counts_and_the_first_number_of_its_log() -> None:
    first = Meta(1, "aa", "id-1")
    _, whole = proposal(None, 4)
    old, other, late = (
        msgspec.json.encode({"format": 1, "salt": "aa", "identity": "id-1"}),
        msgspec.json.encode(Meta(1, "bb", "id-2", 9)),
        msgspec.json.encode(Meta(1, "aa", "id-1", 7)),
    )
    key, added = proposal(first, 6)
    assert key.startswith(b"meta/")
    assert settled([], "s") is None
    assert settled([old], "s") == first
    assert settled([old, other, added, late], "s") == Meta(1, "aa", "id-1", 6)
    made = settled([whole, added], "s")
    assert made is not None
    assert made.partitions == 4
    with pytest.raises(FormatError, match="written by a newer spendstream"):
        settled([msgspec.json.encode(Meta(2, "", ""))], "s")


def test_where_no_record_says_the_number_the_fewest_count() -> None:
    assert TopicLayout({EVENTS: 12, ROWS: 6, CLAIMS: 6}, {}, 1).fewest == 6
    assert TopicLayout({"spendstream.directory": 1}, {}, 1).fewest == 0
