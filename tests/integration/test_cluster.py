"""How `make cluster` handles its processes, with stubs in the product's place: they say that they are ready."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import all_gone, is_alive, wait_until
from tools.kafka_jars import ROOT

STUB = """
import json, os, signal, sys, time
role, kind = sys.argv[-1], os.environ.get("STUB", "")
settings = {name: value for name, value in os.environ.items() if name.startswith("SPENDSTREAM_")}
print("pid", os.getpid(), json.dumps(settings), file=sys.stderr, flush=True)
if kind == "wrong":
    sys.exit(2)
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: sys.exit(0))
doors = {door: settings[f"SPENDSTREAM_{door.upper()}_BIND"] for door in ("http", "grpc") if role == "api"}
print("a banner")
print(json.dumps({"event": "ready", "role": role, **doors}), flush=True)
time.sleep(60)
"""


class Cluster:
    """The program, and what it says."""

    def __init__(self, directory: Path, kind: str = "", *arguments: str) -> None:
        stub = directory / "stub.py"
        stub.write_text(STUB)
        program = ["--program", f"{sys.executable} {stub}", "--dir", str(directory / "cluster"), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.cluster", "--broker", "kafka://127.0.0.1:9", *program],
            cwd=ROOT,
            env=os.environ | {"STUB": kind},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.out: list[str] = []
        self.log: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=each, daemon=True)
            for each in ((self.process.stdout, self.out), (self.process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(line.decode().rstrip("\n") for line in stream)

    def ready(self) -> dict[str, Any]:
        wait_until(lambda: any(line.startswith("{") for line in self.out))
        said: dict[str, Any] = json.loads(next(line for line in self.out if line.startswith("{")))
        return said

    def started(self, name: str, times: int = 1) -> list[tuple[int, dict[str, str]]]:
        """Pid and settings of each process that had this name, oldest first, once it was started as many times.

        What a process says goes another way than the ready line of the program, so it may come later.
        """
        wait_until(lambda: len(self._said(name)) >= times)
        return self._said(name)

    def _said(self, name: str) -> list[tuple[int, dict[str, str]]]:
        found = (re.fullmatch(rf"{name} +\| pid (\d+) (.*)", line) for line in list(self.log))
        return [(int(match[1]), json.loads(match[2])) for match in found if match]

    def pids(self) -> list[int]:
        """Of all processes that run, or ran last."""
        names = ("api-1", "api-2", "worker-1", "worker-2", "store-1")
        return [self._said(name)[-1][0] for name in names if self._said(name)]

    def ended(self) -> int:
        code = self.process.wait(PROCESS_PATIENCE)
        for reader in self._readers:
            reader.join(PROCESS_PATIENCE)
        return code


@pytest.fixture
def clusters() -> Iterator[list[Cluster]]:
    made: list[Cluster] = []
    yield made
    for cluster in made:
        cluster.process.kill()
        cluster.ended()


def test_it_tells_the_addresses_and_stops_everything(tmp_path: Path, clusters: list[Cluster]) -> None:
    clusters.append(cluster := Cluster(tmp_path))
    said = cluster.ready()
    assert said["apis"] == {
        "api-1": {"http": "127.0.0.1:8080", "grpc": "127.0.0.1:50051"},
        "api-2": {"http": "127.0.0.1:8081", "grpc": "127.0.0.1:50052"},
    }
    banner = "\n".join(cluster.out)
    assert f"curl http://127.0.0.1:8080/v1/users -H 'x-api-key: {said['key']}'" in banner
    wait_until(lambda: "api-1    | a banner" in cluster.log)
    directories = set()
    for name in ("api-1", "api-2", "worker-1", "worker-2", "store-1"):
        _, settings = cluster.started(name)[0]
        assert settings["SPENDSTREAM_BROKER"] == "kafka://127.0.0.1:9"
        assert settings["SPENDSTREAM_BOOTSTRAP_KEY"] == said["key"]
        directories.add(settings["SPENDSTREAM_DATA_DIR"])
    assert len(directories) == 5

    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0
    assert all_gone(cluster.pids())


def test_the_key_is_kept(tmp_path: Path, clusters: list[Cluster]) -> None:
    keys = set()
    for _ in range(2):
        clusters.append(cluster := Cluster(tmp_path, "", "--apis", "1", "--workers", "1"))
        keys.add(cluster.ready()["key"])
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.ended() == 0
    assert len(keys) == 1


def test_a_process_that_dies_comes_back_where_it_was(tmp_path: Path, clusters: list[Cluster]) -> None:
    clusters.append(cluster := Cluster(tmp_path))
    cluster.ready()
    for name in ("worker-2", "api-2"):
        [(pid, settings)] = cluster.started(name)
        os.kill(pid, signal.SIGKILL)
        _, (again, settings_again) = cluster.started(name, times=2)
        assert is_alive(again)
        assert settings_again == settings
        wait_until(lambda name=name: f"{name:<9}| ready again" in cluster.log)  # type: ignore[misc]


def test_one_that_ignores_sigterm_is_killed_in_time(tmp_path: Path, clusters: list[Cluster]) -> None:
    clusters.append(cluster := Cluster(tmp_path, "stubborn"))
    cluster.ready()
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0
    assert all_gone(cluster.pids())


def test_one_that_says_it_can_never_start_ends_the_cluster(tmp_path: Path, clusters: list[Cluster]) -> None:
    clusters.append(cluster := Cluster(tmp_path, "wrong"))
    assert cluster.ended() == 1
    assert any("cannot start" in line for line in cluster.log)
    assert not cluster.out


@pytest.mark.skipif(sys.platform != "linux", reason="the stub does not watch the pipe that ends it elsewhere")
def test_nothing_is_left_when_it_is_killed(tmp_path: Path, clusters: list[Cluster]) -> None:
    clusters.append(cluster := Cluster(tmp_path))
    cluster.ready()
    wait_until(lambda: len(cluster.pids()) == 5)
    pids = cluster.pids()
    cluster.process.kill()
    wait_until(lambda: all_gone(pids))
