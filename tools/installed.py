"""Uses an installed spendstream; .ci/run copies this out of the tree and runs it there with -I.

Imports every module, then serves, sends one event, reads the table and stops.
"""

import http.client
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import uuid
from importlib import metadata
from pathlib import Path

PACKAGES = ("protos", "processor", "server")


def main() -> int:
    imported = 0
    for name in PACKAGES:
        package = importlib.import_module(name)
        assert "site-packages" in (package.__file__ or ""), f"{name} came from {package.__file__}"
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                imported += 1
    files = importlib.import_module("server.http_api.static_files").load()
    assert {"index.html", "main.js", "style.css", "uplot.js", "uplot.css"} <= set(files), (
        f"the page has only {set(files)}"
    )
    print(f"{imported} modules of {metadata.metadata('spendstream')['Name']} {metadata.version('spendstream')} import")
    with tempfile.TemporaryDirectory() as directory:
        serve_once(Path(directory) / "data")
    return 0


KEY = "lqt_" + "5" * 64


def serve_once(directory: Path) -> None:
    """Start the installed command, have it count one event, and stop it. Raises if anything is not as it should be."""
    command = [str(Path(sys.executable).with_name("spendstream")), "serve"]
    settings = {"HTTP_BIND": "127.0.0.1:0", "GRPC_BIND": "127.0.0.1:0", "BOOTSTRAP_KEY": KEY, "DATA_DIR": directory}
    variables = {f"SPENDSTREAM_{name}": str(value) for name, value in settings.items()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **variables}) as process:
        assert process.stdout is not None
        try:
            ready = next(json.loads(line) for line in process.stdout if line.startswith(b"{"))
            event = {"event_id": str(uuid.uuid4()), "timestamp": "2026-04-20T10:00:00.000Z", "provider": "openai"}
            event |= {"model": "gpt-4o", "operation": "chat", "status": "success", "user_id": "u"}
            headers = {"x-api-key": KEY, "Content-Type": "application/x-ndjson", "Prefer": "handling=lenient"}
            connection = http.client.HTTPConnection(ready["http"], timeout=30)
            connection.request("POST", "/v1/ingest", json.dumps(event), headers)
            with connection.getresponse() as answer:
                assert json.loads(answer.read()) == {"accepted": 1}, answer.status
                position = answer.headers["x-ingest-position"]
            connection.request("GET", f"/v1/users/u?after={position}", headers=headers)
            with connection.getresponse() as answer:
                assert json.loads(answer.read())["requests"] == 1, answer.status
            connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, process.returncode
    print("one event was sent and counted")


if __name__ == "__main__":
    sys.exit(main())
