"""`/metrics` of a real server: exact counts of known traffic, and nothing that says whose it was."""

import http.client
from pathlib import Path
from typing import Any, Final

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.doors import to_request
from tests.support.events import make_event, to_json_line
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, server, wait_until

UNKNOWN: Final = "lqt_" + "0" * 64


def request(at: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    connection = http.client.HTTPConnection(at.http, timeout=PROCESS_PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def post(at: Server, lines: list[bytes], key: str) -> int:
    media = "application/x-ndjson"
    return request(at, "POST", "/v1/ingest", b"\n".join(lines), x_api_key=key, Content_Type=media)[0]


def metrics(at: Server) -> dict[str, float]:
    """Every sample by its name and labels, as they are written."""
    status, content_type, text = request(at, "GET", "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_known_traffic_is_counted_exactly(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert started.cli("orgs", "set", "default", "--monthly-quota", "10").returncode == 0
        first = [make_event() for _ in range(5)]
        other = {**first[0], "cost_usd": 77}
        assert post(started, [to_json_line(event) for event in first], started.key) == 202
        assert post(started, [to_json_line(first[1]), to_json_line(other), b"{}", b"no json"], started.key) == 202
        assert post(started, [b"{}"], started.key) == 400
        assert post(started, [to_json_line(first[0])], UNKNOWN) == 401
        with grpc.insecure_channel(started.grpc) as channel:
            ingest: Any = channel.unary_unary("/spendstream.v1.IngestService/Ingest")
            ingest(to_request([make_event() for _ in range(3)]), metadata=[("x-api-key", started.key)])
        wait_until(lambda: metrics(started)["spendstream_table_events_total"] == 8)
        wait_until(lambda: metrics(started)["spendstream_lag_events,partition=0"] == 0)
        wait_until(lambda: metrics(started)["spendstream_visible_seconds_count"] == 3)  # noted after they are visible
        found = metrics(started)
        expected = {
            "spendstream_ready": 1,
            "spendstream_events_accepted_total,door=http": 7,
            "spendstream_events_accepted_total,door=grpc": 3,
            "spendstream_batches_accepted_total,door=http": 2,
            "spendstream_batches_accepted_total,door=grpc": 1,
            "spendstream_events_rejected_total,code=missing,door=http": 2,
            "spendstream_events_rejected_total,code=syntax,door=http": 1,
            "spendstream_batches_refused_total,door=http,reason=bad_batch": 1,
            "spendstream_batches_refused_total,door=http,reason=unauthenticated": 1,
            "spendstream_batches_refused_total,door=grpc,reason=unauthenticated": 0,
            "spendstream_ack_seconds_count,door=http": 2,
            "spendstream_ack_seconds_count,door=grpc": 1,
            "spendstream_visible_seconds_count": 3,
            "spendstream_table_events_total": 8,
            "spendstream_table_events_duplicate_total": 2,
            "spendstream_table_events_conflicting_total": 1,
            "spendstream_table_events_unpriced_total": 0,
            "spendstream_lag_messages,partition=0": 0,
            "spendstream_lag_seconds,partition=0": 0,
            "spendstream_view_users": 1,
            "spendstream_pending_bytes": 0,
            "spendstream_subscribers": 0,
            "spendstream_quota_organizations,state=near": 1,
            "spendstream_quota_used_ratio_max": 0.8,
        }
        assert {name: found.get(name) for name in expected} == expected
        assert found["spendstream_log_size_bytes,file=log"] + found["spendstream_log_size_bytes,file=wal"] > 0
        assert found["process_resident_memory_bytes"] > 0


def test_the_event_store_is_among_them(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store=True) as started:
        assert post(started, [to_json_line(make_event()) for _ in range(3)], started.key) == 202
        wait_until(lambda: metrics(started).get("spendstream_store_lag_messages,partition=0") == 0)
        found = metrics(started)
        assert found["spendstream_store_lag_seconds"] < 10
        assert found["spendstream_store_build_of_messages"] == 0


def test_it_names_nobody_and_speaks_openmetrics(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert post(started, [to_json_line(make_event(user_id="ada@example.org"))], started.key) == 202
        wait_until(lambda: metrics(started)["spendstream_table_events_total"] == 1)
        text = request(started, "GET", "/metrics")[2]
        for secret in ("ada@example.org", "default", started.key, "gpt"):
            assert secret not in text
        status, content_type, text = request(started, "GET", "/metrics", Accept="application/openmetrics-text")
        assert status == 200
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
