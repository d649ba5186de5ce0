"""`/metrics`: what is looked up, and the rules of the Prometheus guide that promtool checks."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from processor.core.kernel.loaded import RUNNING
from server.telemetry.exposition import StateCollector, make_registry
from server.telemetry.meters import Meters

DASHBOARD: Final = Path(__file__).parents[2] / "deploy" / "grafana" / "spendstream.json"
UNITS: Final = ("seconds", "bytes", "ratio", "total", "messages", "events", "organizations", "rows", "users")
ABBREVIATIONS: Final = {"s", "ms", "us", "ns", "sec", "min", "h", "b", "kb", "mb", "gb", "kib", "mib", "milliseconds"}
LABELS: Final = {
    "door": {"http", "grpc", "otlp"},
    "kind": {"call", "span"},
    "code": None,
    "reason": None,
    "price": {"list", "none"},
    "le": None,
    "partition": None,
    "file": {"log", "wal"},
    "state": {"free", "near", "used_up"},
}
"""Every label of ours: its values, or None where types or settings bound them."""


class Known:
    """A state that is what it is told to be."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def lag(self) -> Mapping[int, int]:
        return {0: 3, 1: 0}

    def counted(self) -> tuple[int, int, int, int]:
        return 100, 20, 3, 4

    def sizes(self) -> tuple[int, int]:
        return 70, 9

    def age(self) -> float:
        return 0.25

    def quotas(self) -> Sequence[float]:
        return [0.1, 0.8, 0.99, 1.0]

    def pending(self) -> int:
        return 4096

    def subscribers(self) -> int:
        return 2

    def lost(self) -> Mapping[int, int]:
        return {1: 200}

    def unready(self) -> Sequence[str]:
        return self.reasons


def samples(state: Known, meters: Meters, directory: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(make_registry(state, meters, directory)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_looked_up_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"x" * 100)
    state, meters = Known(), Meters()
    meters.accepted("http", {0: 5}, {0: 60}, 0.0, 0.0)
    found = samples(state, meters, tmp_path)
    assert found["spendstream_ready", ()] == 1
    assert found["spendstream_compiled_kernel", ()] == (RUNNING == "compiled")
    assert found["spendstream_lag_messages", (("partition", "0"),)] == 3
    assert found["spendstream_lag_events", (("partition", "0"),)] == 60
    assert found["spendstream_lag_events", (("partition", "1"),)] == 0
    assert found["spendstream_lag_seconds", (("partition", "0"),)] > 0
    assert found["spendstream_lag_seconds", (("partition", "1"),)] == 0
    assert found["spendstream_table_events_total", ()] == 100
    assert found["spendstream_table_events_duplicate_total", ()] == 20
    assert found["spendstream_table_events_conflicting_total", ()] == 3
    assert found["spendstream_table_events_unpriced_total", ()] == 4
    assert (found["spendstream_view_rows", ()], found["spendstream_view_users", ()]) == (70, 9)
    assert found["spendstream_view_age_seconds", ()] == 0.25
    assert found["spendstream_log_size_bytes", (("file", "log"),)] == 100
    assert found["spendstream_log_size_bytes", (("file", "wal"),)] == 0
    assert found["spendstream_quota_organizations", (("state", "free"),)] == 1
    assert found["spendstream_quota_organizations", (("state", "near"),)] == 2
    assert found["spendstream_quota_organizations", (("state", "used_up"),)] == 1
    assert found["spendstream_quota_used_ratio_max", ()] == 1.0
    assert found["spendstream_pending_bytes", ()] == 4096
    assert found["spendstream_events_lost", (("partition", "1"),)] == 200
    assert found["spendstream_subscribers", ()] == 2


def test_a_process_that_is_not_ready_says_so(tmp_path: Path) -> None:
    state = Known()
    state.reasons = ["the log cannot take events"]
    assert samples(state, Meters(), tmp_path)["spendstream_ready", ()] == 0


def test_names_follow_the_guide(tmp_path: Path) -> None:
    text = generate_latest(make_registry(Known(), Meters(), tmp_path)).decode()
    ours = [family for family in text_string_to_metric_families(text) if family.name.startswith("spendstream_")]
    assert len(ours) >= 15
    for family in ours:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name), family.name
        assert family.documentation.strip(), family.name
        words = set(family.name.split("_"))
        assert not words & ABBREVIATIONS, family.name
        assert not words & {"counter", "gauge", "histogram", "summary"}, f"{family.name}: the type is not for the name"
        assert family.type in {"counter", "gauge", "histogram"}, family.name
        shown = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in shown), family.name
        else:
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
        for sample in shown:
            for label, said in sample.labels.items():
                allowed = LABELS[label]
                assert allowed is None or said in allowed, (family.name, label, said)


def test_every_name_of_the_dashboard_is_there(tmp_path: Path) -> None:
    text = generate_latest(make_registry(Known(), Meters(), tmp_path)).decode()
    there = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    named = {name for each in expressions for name in re.findall(r"(?:spendstream|process)_\w+", each)}
    assert len(named) > 10
    assert named <= there, named - there
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_collector_asks_for_nothing_before_the_first_scrape(tmp_path: Path) -> None:
    assert list(StateCollector(Known(), Meters(), tmp_path).describe()) == []
