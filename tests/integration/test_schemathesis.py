"""schemathesis asks a real server everything that the OpenAPI document allows, and much that it does not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.browser import ingest
from tests.support.events import make_event
from tests.support.server import server

ROOT: Final = Path(__file__).parents[2]
SCHEMATHESIS: Final = Path(sys.executable).parent / "schemathesis"
CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
EXAMPLES: Final = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "5"))
"""Requests of each kind for each operation; an hour of it is SCHEMATHESIS_EXAMPLES=2000."""

COMMAND: Final = (
    *("run", "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
    *("--exclude-path", "/v1/stream/users", "--exclude-path", "/v1/stream/events"),  # they have no end
    *("--seed", "1", "--generation-database", "none", "--request-timeout", "30", "--continue-on-failure", "--no-color"),
)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_request_gets_an_answer_that_is_not_in_the_document(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store="on") as started:
        ingest(started, [make_event(user_id="u1"), make_event(user_id=None)])
        key = started.create_key("--scopes", "ingest,read,admin")["key"]
        done = subprocess.run(
            [str(SCHEMATHESIS), *COMMAND, "--header", f"x-api-key: {key}", f"http://{started.http}/openapi.json"],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert "passed" in done.stdout
        assert started.cli("verify").returncode == 0
        assert started.entries("http_request_failed") == []
