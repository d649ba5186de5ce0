"""The commands that talk to a running server, as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from server.cli.commands import main
from tests.support.server import KEY, Server, environment, run_cli, server, wait_until
from tests.support.terminal import on_terminal


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("cli") / "data") as started:
        yield started


def command(*arguments: str, at: Server, key: str | None = KEY) -> "subprocess.CompletedProcess[str]":
    """Run a command that only knows the address and the key."""
    settings: dict[str, Any] = {"key": key} if key else {}
    return run_cli(at.data_dir.parent / "elsewhere", *arguments, **settings)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_loadtest_then_tail_then_quota(running: Server, scheme: str) -> None:
    target = f"{scheme}://{running.http if scheme == 'http' else running.grpc}"

    def quota() -> dict[str, Any]:
        done = running.cli("quota", "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    before = quota()["used"]
    done = command("loadtest", "--target", target, "--events", "550", "--users", "20", "--json", at=running)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["events"], result["accepted"], result["rejected"], result["lost"]) == (550, 550, 0, 0)
    assert result["eventsPerSecond"] > 0
    assert 0 < result["latencyMs"]["p50"] <= result["latencyMs"]["p99"] <= result["latencyMs"]["max"]

    said = command("loadtest", "--target", target, "--events", "100", "--rate", "1000", at=running)
    assert said.returncode == 0, said.stderr
    assert "100 of 100 events accepted" in said.stdout
    assert "p99" in said.stdout
    wait_until(lambda: quota()["used"] == before + 650)  # a snapshot does not wait for the tables

    tailed = command("tail", "--url", f"http://{running.http}", "--events", "1", "--json", at=running)
    assert tailed.returncode == 0, tailed.stderr
    rows = [json.loads(line) for line in tailed.stdout.splitlines()]
    assert {row["event"] for row in rows} == {"snapshot"}
    assert all(row["user"]["user_id"].startswith("loadtest-") for row in rows)
    one = command(
        "tail", "--url", f"http://{running.http}", "--events", "1", "--user", rows[0]["user"]["user_id"], at=running
    )
    assert [json.loads(line)["user"]["user_id"] for line in one.stdout.splitlines()] == [rows[0]["user"]["user_id"]]

    answer = quota()
    assert (answer["organization"], answer["used"]) == ("default", before + 650)
    shown = running.cli("quota")
    assert shown.returncode == 0, shown.stderr
    assert [line.split("\t")[2] for line in shown.stdout.splitlines() if line.startswith("month")] == [
        str(answer["used"])
    ]
    assert "resets" in shown.stderr


def test_quota_shows_the_limit_of_an_organization(running: Server) -> None:
    made = running.cli("orgs", "set", "acme", "--monthly-quota", "5")
    assert made.returncode == 0, made.stderr
    answer = json.loads(running.cli("quota", "--org", "acme", "--json").stdout)
    assert (answer["limit"], answer["used"], answer["remaining"]) == (5, 0, 5)


def in_process(data_dir: Path, *arguments: str, key: str | None = None) -> Result:
    """Run a command in this process: it is the server that is another one."""
    variables = {name: None for name in os.environ if name.startswith("SPENDSTREAM_")}
    return CliRunner().invoke(
        main, arguments, env={**variables, "SPENDSTREAM_DATA_DIR": str(data_dir), "SPENDSTREAM_KEY": key}
    )


def test_users_quota_and_budgets_ask_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: str, key: str | None = None) -> Result:
        done = in_process(data, *arguments, key=key)
        assert done.exit_code == 0, done.output
        return done

    monkeypatch.setattr("os.umask", lambda _: 0)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    with server(data) as started:
        url = f"http://{started.http}"
        asked("loadtest", "--target", url, "--events", "200", "--users", "3", "--seed", "1", key=KEY)
        admin = json.loads(asked("keys", "create", "--scopes", "admin,read", "--json").stdout)["key"]

        # the server that is named, from where there is no data directory; what it may be asked is by the key
        day = ("budgets", "set", "--usd", "0.010", "--window", "day")
        wait_until(lambda: in_process(elsewhere, "quota", "--url", url, key=admin).exit_code == 0)
        made = in_process(elsewhere, *day, "--url", url, key=admin)
        assert (made.exit_code, made.stderr) == (0, "")
        assert "the project, 0.01 USD a day, notified at 80 %, 100 %" in made.stdout
        refused = in_process(elsewhere, *day, "--url", url, key=KEY)
        assert refused.exit_code == 2
        assert "403 forbidden: This API key lacks the scope 'admin'" in refused.stderr
        assert not elsewhere.exists()

        # the server that runs on the data directory; without a key the directory, which says the same
        wait_until(lambda: json.loads(asked("users", "--json").stdout)["total"]["requests"] == 200)
        wait_until(lambda: json.loads(asked("users", "--json", key=KEY).stdout)["total"]["requests"] == 200)
        wait_until(lambda: asked("budgets", "list", key=KEY).stdout.count("\t100 %\t") == 1)
        for arguments in (("users", "--limit", "2"), ("quota",), ("budgets", "list")):
            named = in_process(elsewhere, *arguments, "--url", url, "--json", key=KEY)
            found, read = asked(*arguments, "--json", key=KEY), asked(*arguments, "--json")
            assert (named.exit_code, named.stderr, found.stderr) == (0, "", "")
            assert read.stderr.startswith(f"spendstream: using the data directory {data}, ")
            assert url in read.stderr
            told = [json.loads(each.stdout) for each in (named, found, read)]
            for each in told:
                for name in ("asOf", "windows"):
                    each.pop(name, None)
            assert told[0] == told[1] == told[2]
            if arguments != ("quota",):  # the windows of which go on
                assert asked(*arguments, key=KEY).stdout == asked(*arguments).stdout

        # what a key may not, the owner of the directory may; what the server does not have, the directory has not
        fallen = asked("budgets", "set", "--usd", "7", "--window", "month", key=KEY)
        assert "403 forbidden" in fallen.stderr
        wait_until(lambda: len(json.loads(asked("budgets", "list", "--json", key=KEY).stdout)["budgets"]) == 2)
        gone = in_process(data, "budgets", "delete", "nothing", key=admin)
        assert (gone.exit_code, "using" in gone.stderr) == (2, False)
        assert "This project has no such budget" in gone.stderr
        assert asked("budgets", "delete", made.stdout.partition(":")[0], key=admin).stderr == ""
        other = in_process(data, "quota", "--org", "acme", "--url", url, key=KEY)
        assert other.exit_code == 2
        assert "'default', not of 'acme'" in other.stderr

        # a server that was killed left its note, which is not believed
        started.kill_all()
        read = asked("users", "--json", key=KEY)
        assert "no server runs on " in read.stderr
        assert json.loads(read.stdout)["total"]["requests"] == 200
        lost = in_process(data, "users", "--url", url, key=KEY)
        assert lost.exit_code == 2
        assert f"no answer from {url}: " in lost.stderr


@pytest.mark.parametrize("name", ["tail", "loadtest"])
def test_what_is_wrong_is_said_without_a_traceback(running: Server, name: str) -> None:
    url = "--url" if name == "tail" else "--target"
    wrong = command(name, url, f"http://{running.http}", at=running, key="lqt_" + "0" * 64)
    assert wrong.returncode == 2
    assert "401" in wrong.stderr
    assert "Invalid API key" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    missing = command(name, url, f"http://{running.http}", at=running, key=None)
    assert missing.returncode == 2
    assert "--key" in missing.stderr


def test_loadtest_refuses_an_address_it_cannot_speak_to(running: Server) -> None:
    wrong = command("loadtest", "--target", "ftp://x", at=running)
    assert wrong.returncode == 2
    assert "--target must be" in wrong.stderr
    denied = command("loadtest", "--target", f"grpc://{running.grpc}", at=running, key="lqt_" + "0" * 64)
    assert denied.returncode == 2
    assert "UNAUTHENTICATED" in denied.stderr


def test_tail_goes_on_after_the_server_was_lost(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        variables = environment(tmp_path / "elsewhere", {"key": KEY, "url": f"http://{started.http}"})
        with subprocess.Popen(
            [sys.executable, "-m", "server", "tail", "--json", "--events", "3"],
            env=variables,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                sent = command("loadtest", "--target", f"http://{started.http}", "--events", "1", at=started)
                assert sent.returncode == 0, sent.stderr
                first = json.loads(process.stdout.readline())["user"]
                started.kill_all()
                started.start()
                sent = command(
                    "loadtest", "--target", f"http://{started.http}", "--events", "1", "--users", "1", at=started
                )
                assert sent.returncode == 0, sent.stderr
                second = json.loads(process.stdout.readline())
                assert second["event"] == "update"
                assert second["user"] != first
            finally:
                process.kill()


def test_the_terminal_has_a_table(running: Server) -> None:
    """With a terminal there is a live table instead of lines."""
    variables = environment(running.data_dir.parent / "elsewhere", {"key": KEY, "url": f"http://{running.http}"})
    code, text = on_terminal(["tail", "--events", "1"], variables, 120)
    assert code == 0, text
    assert "cost USD" in text
    assert "users" in text
