"""The README, the quickstart and the guides: what a reader types is run as it stands there, and says what they say."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfile, which
from typing import Any, Final

import pytest

from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import KEY, Server, environment, run_cli, server, wait_until
from tools.kafka import Broker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(which("curl") is None or which("gzip") is None, reason="there is no curl or gzip"),
]

ROOT: Final = Path(__file__).resolve().parents[2]
PLACEHOLDERS: Final = ("lqt_your_api_key_here", "lqt_the_key_of_load", "lqt_...", "lqt_1a2b3c4d")
"""What stands in the documents for a key, or its prefix."""
SPENDSTREAM: Final = ("spendstream", ".venv/bin/spendstream")


def blocks(name: str, *languages: str) -> list[str]:
    """Return the blocks of code of a document."""
    text = (ROOT / name).read_text()
    return [
        code for kind, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if kind in languages
    ]


class Reader:
    """Somebody who types what a document says, beside a server of their own."""

    def __init__(self, running: Server, directory: Path, key: str) -> None:
        self.running = running
        self.directory = directory
        self.variables = {"SPENDSTREAM_KEY": key}

    def types(self, code: str, key: str = "") -> str:
        """Run a block of shell code, with `key` where the document has none; returns what was printed."""
        for placeholder in PLACEHOLDERS:
            code = code.replace(placeholder, key or self.variables["SPENDSTREAM_KEY"])
        lines = [line for line in re.sub(r"\s#\s.*", "", code).strip().splitlines() if line]
        if all(re.match(r"(\.venv/bin/)?spendstream |export ", line) and "|" not in line for line in lines):
            return "".join(map(self._line, lines))
        return self.runs(["bash", "-euo", "pipefail", "-c", self._here(code)])

    def runs(self, command: list[str]) -> str:
        """Run a program; returns what it printed."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = environment(self.running.data_dir, self._ports()) | self.variables
        variables |= {"PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command,
            env=variables,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=PROCESS_PATIENCE,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def program(self, code: str) -> str:
        """Run a block of Python."""
        return self.runs([sys.executable, "-c", self._here(code)])

    def _line(self, line: str) -> str:
        words = shlex.split(self._here(line))
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.variables[name] = value
            return ""
        settings: dict[str, Any] = {
            name.removeprefix("SPENDSTREAM_").lower(): value for name, value in self.variables.items()
        }
        settings |= self._ports()
        done = run_cli(self.running.data_dir, *words[1:], **settings)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def _ports(self) -> dict[str, str]:
        """As if they were the usual ones."""
        return {"http_bind": self.running.http, "grpc_bind": self.running.grpc}

    def _here(self, code: str) -> str:
        return code.replace("127.0.0.1:8080", self.running.http).replace("127.0.0.1:50051", self.running.grpc)

    def gets(self, path: str) -> Any:
        """The answer of the server, without the times at which it was made; asked again while it says 503."""
        request = urllib.request.Request(f"http://{self.running.http}{path}")
        request.add_header("x-api-key", self.variables["SPENDSTREAM_KEY"])
        deadline = time.monotonic() + PROCESS_PATIENCE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as response:
                    return timeless(response.read())
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503 or time.monotonic() > deadline:
                        raise
            time.sleep(0.1)


def timeless(text: str | bytes) -> Any:
    """A JSON object without when it was made."""
    found = json.loads(text)
    return {name: value for name, value in found.items() if name not in {"asOf", "lagSeconds"}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("guides") / "data", key=None, event_store="on") as made:
        yield made


@pytest.fixture
def reader(running: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Reader:
    """One with a project of their own."""
    return Reader(running, tmp_path, running.create_key("--project", request.node.name)["key"])


def test_the_quickstart_and_the_readme(reader: Reader) -> None:
    start, export, send, users, more, demo, load, verify = blocks("docs/quickstart.md", "sh")
    accepted, table = blocks("docs/quickstart.md", "json")
    (banner,) = blocks("docs/quickstart.md", "text")
    assert (start, demo.split()[:2]) == ("make run\n", ["make", "demo"])  # which other tests run
    said = [line.split() for line in banner.splitlines()]
    assert [line.split()[:1] for line in reader.running.banner()[: len(said)]] == [line[:1] for line in said]
    reader.types(export)
    assert json.loads(reader.types(send)) == json.loads(accepted)
    wait_until(lambda: timeless(reader.types(users)) == timeless(table))
    unknown, costs = map(
        json.loads, re.findall(r"^\{.*?\}(?=\{|$)", reader.types(more).replace("}{", "}\n{"), re.MULTILINE)
    )
    assert (unknown["reason"], costs["total"]["requests"]) == ("not_found", 2)
    assert json.loads(reader.types(send)) == json.loads(accepted)
    reader.running.kill_all()
    reader.running.start()
    assert timeless(reader.types(users)) == timeless(table)

    run, ingest = blocks("README.md", "sh")
    assert "make run" in run
    assert json.loads(reader.types(ingest)) == json.loads(blocks("README.md", "json")[0])
    assert json.loads(reader.program(blocks("README.md", "python")[0])) == {"accepted": 1}
    wait_until(lambda: {user["user_id"] for user in reader.gets("/v1/users")["users"]} == {"alice", "bob", None})

    create, *others = load.splitlines()
    key = reader.types(create).strip()
    wait_until(lambda: reader.running.knows(key))
    reader.types("\n".join(others[:2]).replace("20000", "500"), key=key)
    assert others[2].startswith(".venv/bin/spendstream tail")  # which ends with Ctrl-C only
    assert "0 differences" in reader.types(verify)


def test_the_guides_for_sending_reading_and_prices(reader: Reader) -> None:
    send, loadtest = blocks("docs/guides/send-events.md", "sh")
    assert "HTTP/1.1 202" in reader.types(send)
    assert loadtest.startswith("spendstream loadtest")
    assert "accepted: 1" in reader.program(blocks("docs/guides/send-events.md", "python")[0])
    november, after, tables = blocks("docs/guides/read-tables.md", "sh")
    assert timeless(reader.types(november))["users"] == []
    assert {user["user_id"] for user in timeless(reader.types(after))["users"]} == {"alice", "bob"}
    lines = tables.splitlines()
    assert "alice" in reader.types(lines[0])
    assert "default" in reader.types(lines[3] + " --json")

    priced, serve, look = blocks("docs/guides/prices.md", "sh")
    assert json.loads(reader.types(priced)) == {"accepted": 1}
    assert serve.endswith("spendstream serve\n")
    (path,) = re.findall(r"In `GET (/v1/events/\S+)`", (ROOT / "docs/guides/prices.md").read_text())
    event = reader.gets(f"{path}?after={position_of(reader)}")
    assert (event["cost_usd"], event["cost_source"]) == (0.004, "list:genai-prices@0.2.3")
    assert "claude-3-haiku" in reader.types(look)


def position_of(reader: Reader) -> str:
    """The position of a batch that is sent now."""
    send, _ = blocks("docs/guides/send-events.md", "sh")
    (position,) = re.findall(r"^x-ingest-position: (\S+)", reader.types(send), re.MULTILINE | re.IGNORECASE)
    return str(position)


def test_the_guides_for_events(reader: Reader) -> None:
    reader.types(blocks("docs/quickstart.md", "sh")[2])
    reader.gets(f"/v1/events?after={position_of(reader)}")
    find, events, trace, metrics, stream = blocks("docs/guides/find-an-event.md", "sh")
    assert timeless(reader.types(find)) == {"events": [], "nextCursor": None, "total": 0}
    one, many, *_ = events.splitlines()
    assert reader.types(one).splitlines()[0].split("\t")[:3] == ["time", "model", "status"]
    assert reader.types(many).count("\n") == 1
    assert [line.split("\t")[1] for line in reader.types(trace).splitlines()[1:]] == [
        "gpt-4o",
        "text-embedding-3-small",
    ]
    assert reader.types(metrics)
    assert stream.startswith("curl -N ")  # which never ends
    export, files = blocks("docs/guides/events-as-parquet.md", "sh")
    reader.types(export)
    assert (reader.directory / "november.parquet").read_bytes()[:4] == b"PAR1"
    assert files.startswith("duckdb -c")


def test_the_guides_for_keys_quotas_and_budgets(reader: Reader) -> None:
    make, handling, rotate, first_admin, quota, webhook = blocks("docs/guides/keys-and-quotas.md", "sh")
    made = reader.types(make)
    web = re.findall(r"^lqt_[0-9a-f]{64}$", made, re.MULTILINE)
    assert len(web) == 2
    reader.types(handling, key=web[0][:12])
    reader.types(rotate, key=web[1][:12])
    admin = reader.types(first_admin).strip()
    assert '"organization":"default"' in reader.types(quota)
    assert webhook.endswith("spendstream serve\n")

    reader.variables["SPENDSTREAM_KEY"] = admin
    commands, over_http, delete = blocks("docs/guides/budgets.md", "sh")
    assert "user alice\tday\t5\t" in reader.types(commands)
    (budget,) = re.findall(r'"id":"(bud_\w+)"', reader.types(over_http, key=admin))
    reader.types(delete.replace("BUDGET", budget))
    assert "alice" not in reader.types(commands.splitlines()[2])


def test_the_guide_for_the_live_stream(reader: Reader) -> None:
    reader.types(blocks("README.md", "sh")[1])
    wait_until(lambda: [each["user_id"] for each in reader.gets("/v1/users")["users"]] == ["alice"])
    terminal, watch = blocks("docs/guides/live-stream.md", "sh")
    (frames,) = blocks("docs/guides/live-stream.md", "text")
    all_users, two_users = terminal.splitlines()
    assert "alice" in first_lines(reader, all_users, 1)
    assert two_users.endswith("| jq .user.cost_usd")
    (row,) = reader.gets("/v1/users")["users"]
    first = json.loads(first_lines(reader, two_users.partition(" | ")[0], 1))
    assert first["user"]["cost_usd"] == row["cost_usd"]
    shown = frames.partition("update")[0].splitlines()[:6]
    said = first_lines(reader, watch, len(shown)).splitlines()
    assert said[:3] == shown[:3]
    assert [line.partition(": ")[0] for line in shown[3:]] == ["id", "event", "data"]
    (_, _, position), event, (_, _, data) = (line.partition(": ") for line in said[3:])
    assert (event, json.loads(data)["users"]) == (("event", ": ", "snapshot"), [row])
    resume = f"{watch.rstrip()} -H 'Last-Event-ID: {position}'"
    reader.types(blocks("docs/guides/send-events.md", "sh")[0])
    _, event, (_, _, data) = (line.partition(": ") for line in first_lines(reader, resume, 6).splitlines()[3:])
    assert (event[2], {each["user_id"] for each in json.loads(data)["users"]}) == ("update", {"alice", "bob"})
    wrong = resume.replace("-N", "-sw '%{http_code}' -o /dev/null").replace(position, "no id")
    assert reader.types(wrong) == "400"


def quickstart_table() -> Any:
    """What the quickstart says of the users."""
    return timeless(blocks("docs/quickstart.md", "json")[1])


def first_lines(reader: Reader, command: str, count: int) -> str:
    """The first lines that a command prints which goes on until it is stopped."""
    goes_on = f"exec timeout {PROCESS_PATIENCE} bash -c {shlex.quote(command)} 2> /dev/null"
    return reader.types(f"exec 3< <({goes_on}); head -n {count} <&3; kill $! || true")


def test_the_guides_for_backup_restore_and_upgrade(reader: Reader, tmp_path: Path) -> None:
    """Beside a running server, after it has stopped, and in the place of another one."""
    _, _, send, users, *_ = blocks("docs/quickstart.md", "sh")
    reader.types(send)
    wait_until(lambda: timeless(reader.types(users)) == quickstart_table())
    table = reader.gets("/v1/users")
    copy, transfer, check, letters = blocks("docs/guides/back-up-and-restore.md", "sh")
    (before_it,) = blocks("docs/guides/upgrade.md", "sh")
    here = str(tmp_path / "backups")
    assert "0 differences" in reader.types(copy.replace("/backups", here))
    reader.types(before_it.replace("/backups", here))
    export, november, put_back = transfer.splitlines()
    reader.types(export)
    reader.types(november)
    assert " events imported, 0 lines refused" in reader.types(put_back)
    assert reader.gets("/v1/users") == table
    verify, rebuild = check.splitlines()
    assert "0 differences" in reader.types(verify)
    assert blocks("docs/operations.md", "sh")[0].splitlines()[0].split("#")[0].strip() == verify.split("#")[0].strip()
    listed, retried = letters.splitlines()
    assert reader.types(listed).split("\n")[0].split("\t")[:2] == ["partition", "offset"]
    assert "--all" in retried
    reader.types(re.sub(r"--partition.*", "--all", retried))

    running = reader.running
    running.stop()
    assert (running.data_dir / "log.db-wal").stat().st_size == 0, "after a clean stop everything is in log.db"
    reader.types(rebuild)
    running.start()
    assert reader.gets("/v1/users") == table
    restored = tmp_path / "restored"
    restored.mkdir()
    copyfile(tmp_path / "backups" / "before-the-upgrade" / "log.db", restored / "log.db")
    with server(restored, key=None, event_store="on") as other:
        there = Reader(other, tmp_path, reader.variables["SPENDSTREAM_KEY"])
        assert there.gets("/v1/users") == table
        assert "0 differences" in there.types(verify)


def test_the_guide_for_kafka(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    roles, on_this_machine, cluster, containers = blocks("docs/guides/run-on-kafka.md", "sh")
    assert (on_this_machine.split()[:2], cluster) == (["make", "kafka"], "make cluster\n")  # which other tests run
    assert "docker compose" in containers
    broker, *commands = roles.splitlines()
    assert broker.startswith("export SPENDSTREAM_BROKER='kafka://")
    names = [line.split()[1] for line in commands]
    settings: dict[str, Any] = {
        "broker": kafka.url,
        "kafka_prefix": prefix,
        "store_dir": tmp_path / "events",
        "event_store": "on",
    }
    settings |= {"partitions": 2, "kafka_replication": 1, "key": KEY}
    with ExitStack() as running:
        for name in names:
            (tmp_path / name).mkdir()
        api, *_ = [running.enter_context(server(tmp_path / name / "data", name, **settings)) for name in names]
        reader = Reader(api, tmp_path, KEY)
        _, _, send, users, *_ = blocks("docs/quickstart.md", "sh")
        reader.types(send)
        wait_until(lambda: timeless(reader.types(users)) == quickstart_table())
        reader.gets(f"/v1/events?after={position_of(reader)}")
        (program,) = blocks("docs/guides/run-on-kafka.md", "python")
        program = program.replace("localhost:9092", kafka.bootstrap).replace("spendstream.users", f"{prefix}users")
        ends = f"import time\nend = time.monotonic() + {PROCESS_PATIENCE / 2}\n"
        ends += "while len(rows) < 3 and time.monotonic() < end:"
        program = program.replace("while True:", ends) + "consumer.close()\nprint([str(key) for key in rows])\n"
        found = reader.program(program)
        assert {"alice", "bob", "null"} <= set(re.findall(r"\w+", found))
