"""What a process counts: batches, events, refusals, and how long a batch takes until the tables contain it."""

from prometheus_client import CollectorRegistry

from server.errors import Refused, Rejection
from server.telemetry.meters import MAX_WAITING, Meters, WaitingBatches


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def test_batches_events_and_acknowledgements_are_counted_by_door() -> None:
    meters = Meters()
    meters.accepted("http", {0: 5}, {0: 100}, 10.0, 10.004)
    meters.accepted("http", {0: 6}, {0: 3}, 11.0, 11.2)
    meters.accepted("grpc", {0: 7}, {0: 1}, 12.0, 12.0)
    registry = meters.registry
    assert value(registry, "spendstream_events_accepted_total", door="http") == 103
    assert value(registry, "spendstream_batches_accepted_total", door="http") == 2
    assert value(registry, "spendstream_events_accepted_total", door="grpc") == 1
    assert value(registry, "spendstream_ack_seconds_count", door="http") == 2
    assert value(registry, "spendstream_ack_seconds_bucket", door="http", le="0.005") == 1


def test_refusals_are_counted_by_reason_and_their_events_by_code() -> None:
    meters = Meters()
    faults = [Rejection(1, None, "model", "missing", "no"), Rejection(2, None, "model", "missing", "no")]
    meters.refused("http", Refused("bad_batch", "no", rejected=faults))
    meters.rejected("http", "syntax")
    meters.refused("grpc", Refused("rate_limited", "no"))
    registry = meters.registry
    assert value(registry, "spendstream_batches_refused_total", door="http", reason="bad_batch") == 1
    assert value(registry, "spendstream_batches_refused_total", door="grpc", reason="rate_limited") == 1
    assert value(registry, "spendstream_batches_refused_total", door="grpc", reason="bad_batch") == 0
    assert value(registry, "spendstream_events_rejected_total", door="http", code="missing") == 2
    assert value(registry, "spendstream_events_rejected_total", door="http", code="syntax") == 1
    assert value(registry, "spendstream_events_rejected_total", door="grpc", code="syntax") == 0


def test_a_batch_is_visible_when_all_its_partitions_are() -> None:
    meters = Meters()
    meters.accepted("http", {0: 5, 1: 9}, {0: 60, 1: 40}, 9.9, 10.0)
    assert meters.waiting.events() == {0: 60, 1: 40}
    assert meters.waiting.since() == {0: 10.0, 1: 10.0}
    meters.seen({0: 5, 1: 8}, 10.12)
    assert meters.waiting.events() == {0: 0, 1: 40}
    assert meters.waiting.since() == {1: 10.0}
    meters.seen({0: 5, 1: 9}, 12.0)
    assert meters.waiting.since() == {}
    registry = meters.registry
    assert value(registry, "spendstream_visible_seconds_count") == 2
    assert value(registry, "spendstream_visible_seconds_bucket", le="0.15") == 1
    assert value(registry, "spendstream_visible_seconds_bucket", le="2.5") == 2


def test_what_the_tables_have_already_does_not_wait() -> None:
    meters = Meters(lambda: {0: 7})
    meters.accepted("http", {0: 7}, {0: 10}, 9.9, 10.0)
    meters.accepted("http", {0: 8}, {0: 20}, 9.9, 10.0)
    assert meters.waiting.events() == {0: 20}
    assert value(meters.registry, "spendstream_visible_seconds_count") == 1


def test_what_waits_is_bounded_and_no_event_of_it_is_forgotten() -> None:
    waiting = WaitingBatches()
    for offset in range(MAX_WAITING + 1000):
        waiting.add(0, offset, 2, 1.0)
    assert waiting.events() == {0: 2 * (MAX_WAITING + 1000)}
    assert len(list(waiting.pop({0: MAX_WAITING + 998}))) == MAX_WAITING - 1
    assert waiting.events() == {0: 2 * 1001}
    assert len(list(waiting.pop({0: MAX_WAITING + 999}))) == 1
    assert waiting.since() == {}
