"""Whom `users`, `quota` and `budgets` ask: the server that is named, the one that runs, or the data directory."""

from pathlib import Path
from typing import Any

import pytest

from server.cli import answer_source
from server.cli.answer_source import answer
from server.cli.remote import Question, Unanswered
from server.errors import Reason, Refused

QUESTION = Question("/v1/quota")


class World:
    """What there is, and who was asked."""

    def __init__(self) -> None:
        self.running: str | None = None
        self.outcome: Exception | None = None
        self.asked: list[tuple[str, str]] = []
        self.read = 0

    async def ask(self, url: str, key: str, question: Question) -> bytes:
        assert question == QUESTION
        self.asked.append((url, key))
        if self.outcome is not None:
            raise self.outcome
        return b"from the server"

    def read_directory(self, flags: dict[str, Any]) -> bytes:
        assert "url" not in flags
        assert "key" not in flags
        self.read += 1
        return b"from the directory"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPENDSTREAM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(answer_source, "ask", made.ask)
    monkeypatch.setattr("server.processes.server_address.find", lambda data_dir: made.running)
    return made


def put(world: World, url: str | None = None, key: str | None = "lqt_x", **more: Any) -> bytes:
    return answer({"url": url, "key": key, "data_dir": None}, QUESTION, world.read_directory, "project web", **more)


def test_a_server_that_is_named_is_asked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.running = "http://running"
    assert put(world, "http://named") == b"from the server"
    assert (world.asked, world.read) == ([("http://named", "lqt_x")], 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("outcome", [Unanswered("no answer from it"), Refused("forbidden", "not you")])
def test_a_server_that_is_named_is_the_only_one(
    world: World, capsys: pytest.CaptureFixture[str], outcome: Exception
) -> None:
    world.outcome = outcome
    with pytest.raises(SystemExit) as ended:
        put(world, "http://named")
    assert (ended.value.code, world.read) == (2, 0)
    assert str(outcome) in capsys.readouterr().err


def test_a_server_that_is_named_needs_a_key(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        put(world, "http://named", None)
    assert (ended.value.code, world.asked, world.read) == (2, [], 0)
    assert "SPENDSTREAM_KEY" in capsys.readouterr().err


def test_without_an_address_the_server_that_runs_is_asked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.running = "http://running"
    assert put(world) == b"from the server"
    assert (world.asked, world.read, capsys.readouterr().err) == ([("http://running", "lqt_x")], 0, "")


@pytest.mark.parametrize(
    ("running", "key", "outcome", "says"),
    [
        (None, "lqt_x", None, "no server runs on "),
        ("http://running", None, None, "answers only with an API key"),
        ("http://running", "lqt_x", Unanswered("no answer from http://running: refused"), "no answer from"),
        *(
            ("http://running", "lqt_x", Refused(reason, f"http://running answers {reason}"), reason)
            for reason in ("unauthenticated", "forbidden", "unavailable", "internal", "rate_limited")
        ),
    ],
)
def test_else_the_directory_is_read_which_is_said(
    world: World,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    running: str | None,
    key: str | None,
    outcome: Exception | None,
    says: str,
) -> None:
    world.running, world.outcome = running, outcome
    assert put(world, None, key) == b"from the directory"
    assert world.read == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"spendstream: using the data directory {tmp_path / 'data'}, project web: ")
    assert says in line


@pytest.mark.parametrize("reason", ["bad_request", "not_found", "conflict", "too_large"])
def test_what_the_directory_would_refuse_too_is_final(
    world: World, capsys: pytest.CaptureFixture[str], reason: Reason
) -> None:
    world.running, world.outcome = "http://running", Refused(reason, "no such thing")
    with pytest.raises(SystemExit) as ended:
        put(world)
    assert (ended.value.code, world.read) == (2, 0)
    assert "no such thing" in capsys.readouterr().err


def test_an_answer_to_another_question_is_none(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def check(body: bytes) -> None:
        raise Refused("forbidden", f"another organization {len(body)}")

    world.running = "http://running"
    assert put(world, check=check) == b"from the directory"
    assert "another organization 15" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        put(world, "http://named", check=check)


def test_on_kafka_it_is_the_log_that_is_read(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPENDSTREAM_BROKER", "kafka://host:9092")
    assert put(world) == b"from the directory"
    assert capsys.readouterr().err.startswith("spendstream: using the log at kafka://host:9092, project web: no server")
