"""Access logs of a real server: what was asked and answered, never a key or a user's id."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.contract.doors import to_request
from tests.integration.test_metrics import post, request
from tests.support.events import make_event, to_json_line
from tests.support.server import server, wait_until


def test_every_request_and_call_is_logged_and_no_secret(tmp_path: Path) -> None:
    with server(tmp_path / "data", access_log="true") as started:
        assert post(started, [to_json_line(make_event(user_id="ada@example.org"))], started.key) == 202
        assert post(started, [b"{}"], started.key) == 400
        assert request(started, "GET", "/v1/users/nobody%40example.org", x_api_key=started.key)[0] == 404
        assert request(started, "GET", "/nowhere")[0] == 404
        with grpc.insecure_channel(started.grpc) as channel:
            ingest: Any = channel.unary_unary("/spendstream.v1.IngestService/Ingest")
            ingest(to_request([make_event()]), metadata=[("x-api-key", started.key)])
            with pytest.raises(grpc.RpcError):
                ingest(to_request([make_event()]), metadata=[("x-api-key", "lqt_" + "0" * 64)])
        # A line comes after the answer.
        wait_until(lambda: len(started.entries("http.request")) == 4 and len(started.entries("grpc.call")) == 2)
        requests = [
            (each["method"], each["path"], each["status"], each["key"]) for each in started.entries("http.request")
        ]
        prefix = started.key[:12]
        assert requests == [
            ("POST", "/v1/ingest", 202, prefix),
            ("POST", "/v1/ingest", 400, prefix),
            ("GET", "/v1/users/{user_id}", 404, prefix),
            ("GET", "", 404, None),
        ]
        calls = [(each["method"], each["code"], each["key"]) for each in started.entries("grpc.call")]
        assert calls == [("Ingest", "OK", prefix), ("Ingest", "UNAUTHENTICATED", "lqt_" + "0" * 8)]
        assert all(each["ms"] >= 0 for each in started.entries("http.request"))
        for secret in (started.key, "example.org"):
            assert secret not in started.log()


def test_it_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert post(started, [to_json_line(make_event())], started.key) == 202
        assert request(started, "GET", "/healthz")[0] == 200
        started.stop()
        assert started.entries("http.request") == []
