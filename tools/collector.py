"""A real OpenTelemetry Collector on this machine, on 127.0.0.1 only.

    with Collector(Path("/tmp/collector"), exporting("http://127.0.0.1:8080", key)) as collector:
        ...  # collector.http is "http://127.0.0.1:PORT", collector.grpc is "127.0.0.1:PORT"

It is built once by Go from tools/otel_collector, whose go.sum has the checksums of all it is made of, and kept beside
the OTLP clients (tools/otlp_clients.py). As a program: `python -m tools.collector [--url URL] [--dir DIR]`, with the
key in SPENDSTREAM_KEY; `--fetch` only builds it.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tools.kafka import free_ports, until_signalled
from tools.otlp_clients import NoClients, made_once
from tools.tied_process import NotStarted, TiedProgram, tied

SOURCES: Final = Path(__file__).resolve().parent / "otel_collector"
HOST: Final = "127.0.0.1"
START_PATIENCE: Final = 60.0
BUILD_PATIENCE: Final = 900.0
Config = dict[str, Any]


class NoCollector(Exception):
    """This machine cannot build the Collector; the text says what to install."""


def binary() -> Path:
    """The Collector, built first if it is not there; may take minutes. Raises `NoCollector`."""
    sources = [SOURCES / name for name in ("go.mod", "go.sum", "main.go")]
    try:
        return made_once("collector", sources, _build) / "collector"
    except NoClients as error:
        raise NoCollector(str(error)) from None


def _build(directory: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise NoCollector("the Collector is built by Go 1.26 or newer: there is no `go` on PATH")
    directory.mkdir()
    command = [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(directory / "collector"), "."]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False, timeout=BUILD_PATIENCE)
    if done.returncode:
        raise NoCollector(f"the Collector could not be built:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def exporting(url: str, key: str, *, over_grpc: bool = False) -> Config:
    """A Collector that keeps what it has taken on disk, fsynced, until `url` has it, however long that takes.

    `url` is of HTTP (http://host:port), or host:port for gRPC.
    """
    exporter: Config = {
        "endpoint": url,
        "headers": {"x-api-key": key},
        "sending_queue": {"storage": "file_storage"},
        "retry_on_failure": {"initial_interval": "100ms", "max_interval": "1s", "max_elapsed_time": 0},
    }
    if over_grpc:
        exporter["tls"] = {"insecure": True}
    name = "otlp_grpc" if over_grpc else "otlp_http"
    return {
        "extensions": {"file_storage": {"directory": "queue", "create_directory": True, "fsync": True}},
        "exporters": {name: exporter},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": [name]}},
        },
    }


class Collector(TiedProgram):
    """A Collector on a directory, started as often as one likes; it keeps its ports as long as this object lives.

    `config` lacks the receiver, which is added; paths in it are relative to the directory. The process dies with this
    one, however this one goes. `before` is put before the command (`taskset -c 1`).
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        *,
        before: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        super().__init__(self.directory / "collector.log")
        self._http_port, self._grpc_port = free_ports(2)
        self._before = list(before)
        self._variables = {**os.environ, **(variables or {})}
        self._config = _with_receiver(config, self._http_port, self._grpc_port)

    @property
    def http(self) -> str:
        """OTEL_EXPORTER_OTLP_ENDPOINT for HTTP."""
        return f"http://{HOST}:{self._http_port}"

    @property
    def grpc(self) -> str:
        """host:port for gRPC."""
        return f"{HOST}:{self._grpc_port}"

    def start(self, patience: float = START_PATIENCE) -> Self:
        """Start it, for the first time or again, and wait until it answers. Raises `NoCollector`, `NotStarted`."""
        assert not self.is_running, "it runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.json"
        config.write_text(json.dumps(self._config, indent=1))
        command = tied([*self._before, str(binary()), "--config", f"file:{config}"])
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NotStarted(f"the Collector was late or ended; the end of {self.log_path}:\n{self.log()[-3000:]}")
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=5)
        with contextlib.closing(connection):
            try:  # HTTP is served last
                connection.request("POST", "/v1/traces", b"{}", {"Content-Type": "application/json"})
                return connection.getresponse().status == 200
            except OSError:
                return False

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill() if not self.stop() else None


def _with_receiver(config: Config, http_port: int, grpc_port: int) -> Config:
    protocols = {"http": {"endpoint": f"{HOST}:{http_port}"}, "grpc": {"endpoint": f"{HOST}:{grpc_port}"}}
    made = {**config, "receivers": {"otlp": {"protocols": protocols}}}
    quiet = {"logs": {"level": "warn"}, "metrics": {"level": "none"}}
    made["service"] = {"telemetry": quiet, **made["service"]}
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.collector", description="An OpenTelemetry Collector.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where it sends to (http://127.0.0.1:8080)")
    parser.add_argument("--dir", type=Path, default=Path(".otlp/data"), help="its queue and its log (.otlp/data)")
    parser.add_argument("--fetch", action="store_true", help="only build it")
    given = parser.parse_args(arguments)
    try:
        if given.fetch:
            print(binary())
            return 0
        collector = Collector(given.dir, exporting(given.url, os.environ.get("SPENDSTREAM_KEY", ""))).start()
    except (NoCollector, NotStarted) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The Collector is ready: HTTP {collector.http}, gRPC {collector.grpc}", flush=True)
    until_signalled(lambda: not collector.is_running)
    return 0 if collector.stop() else 1


if __name__ == "__main__":
    sys.exit(main())
