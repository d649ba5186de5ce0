"""`make kafka` and `make cluster`, as the guide has them: an event is counted, and Ctrl-C leaves nothing."""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any, Final

import pytest
import yaml

from tests.support.events import make_event, to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import all_gone, is_alive, wait_until
from tools.kafka_jars import ROOT, jars, java

GUIDE: Final = ROOT / "docs" / "guides" / "run-on-kafka.md"
MADE: Final = ROOT / ".venv" / "bin" / "python"

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.usefixtures("_can_be_had"),
    pytest.mark.skipif(which("make") is None or not MADE.exists(), reason="there is no make, or no .venv"),
]


class Typed:
    """A command in a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SPENDSTREAM_", "MAKE"))}
        homes = {name: value for name, value in os.environ.items() if name == "SPENDSTREAM_KAFKA_HOME"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean | homes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out: list[str] = []
        self.log: list[str] = []
        self._readers = [
            threading.Thread(target=lambda stream, lines: lines.extend(stream), args=each, daemon=True)
            for each in ((self.process.stdout, self.out), (self.process.stderr, self.log))
        ]
        for each in self._readers:
            each.start()

    def says(self, form: str, patience: float = PROCESS_PATIENCE) -> str:
        """Wait for a line that matches; return its first group."""

        def found() -> str | None:
            return next((match[1] for line in [*self.out] if (match := re.search(form, line))), None)

        wait_until(lambda: self.process.poll() is not None or found(), patience)
        said = found()
        assert said is not None, "".join([*self.out, *self.log[-40:]])
        return said

    def processes(self) -> list[int]:
        """All of them that this terminal has."""
        found = []
        for each in Path("/proc").iterdir():
            try:
                pid = int(each.name) if each.name.isdigit() else 0
                if pid and os.getsid(pid) == self.process.pid and is_alive(pid):
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found

    def presses_ctrl_c(self) -> None:
        """Everything that it has started has ended then, and it says that all is well or was interrupted."""
        before = self.processes()
        assert len(before) > 1
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(PROCESS_PATIENCE)
        wait_until(lambda: all_gone(before))
        assert self.processes() == []
        assert not [line for line in self.log if "Traceback" in line]

    def close(self) -> None:
        for each in self.processes():
            os.kill(each, signal.SIGKILL)
        self.process.wait(PROCESS_PATIENCE)
        for reader in self._readers:
            reader.join(PROCESS_PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def typed(*command: str) -> Iterator[Typed]:
    made = Typed([*command])
    try:
        yield made
    finally:
        made.close()


def test_make_kafka_and_make_cluster(tmp_path: Path) -> None:
    guide = GUIDE.read_text()
    serve = "SPENDSTREAM_BROKER=kafka://127.0.0.1:9092 make run"
    assert f"make kafka          # PORT=9092; Ctrl-C stops it\n{serve}\n" in guide
    assert "```sh\nmake cluster\n```" in guide
    assert all(f'ARGS="{each}' in guide for each in ("--http-port 0 --grpc-port 0", "--broker kafka://host", "--apis"))
    with typed("make", "kafka", "PORT=0", f"ARGS=--dir {tmp_path / 'broker'}") as broker:
        url = broker.says(r"SPENDSTREAM_BROKER=(kafka://\S+) make run")
        few = f"--apis 1 --workers 1 --http-port 0 --grpc-port 0 --broker {url} --dir {tmp_path / 'cluster'}"
        with typed("make", "cluster", f"ARGS={few}") as cluster:
            said = json.loads(cluster.says(r"^(\{.*\})$"))
            request = _asker(said["apis"]["api-1"]["http"], said["key"])
            accepted = request("/v1/ingest", to_ndjson([make_event(user_id="alice")]))
            assert accepted["accepted"] == 1
            wait_until(lambda: request("/v1/users")["total"]["requests"] == 1)
            assert [row["user_id"] for row in request("/v1/users")["users"]] == ["alice"]
            cluster.presses_ctrl_c()
        broker.presses_ctrl_c()


def test_the_brokers_in_containers_know_every_setting() -> None:
    """A broker ignores those that it does not know."""
    listing = [java(), "-cp", f"{jars()}/*", "kafka.server.KafkaConfig"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=60, check=True)
    known = set(re.findall(r'id="([a-z0-9.]+)"', done.stdout))
    assert len(known) > 200
    services = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())["services"]
    given = {name for service in services.values() for name in service["environment"] if name.startswith("KAFKA_")}
    assert len(given) > 10
    assert {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in given} <= known


def _asker(address: str, key: str) -> Callable[..., Any]:
    def ask(path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://{address}{path}", data=body)
        request.add_header("x-api-key", key)
        request.add_header("Content-Type", "application/x-ndjson")
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as response:
            return json.loads(response.read())

    return ask
