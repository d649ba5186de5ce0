"""What commands print of text that came from outside: the text, on a terminal, in a pipe, in any locale."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from processor.core.tables import table_rows
from processor.core.visible import HIDDEN, visible, visible_json
from processor.log.dead_letters import DeadLetter
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import DEAD_LETTERS, EVENTS, ROWS
from tests.support import cli_host
from tests.support.browser import ingest, read
from tests.support.events import make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import KEY, Server, environment, run_cli, server
from tests.support.tables import NOON
from tests.support.terminal import on_terminal, plain, squeezed

MONEY: Final = "1234.567890123456"
LONG: Final = "auth0|5f7c8ec7c33c6c004bbafe82-" + "x" * 100
HOSTILE: Final = (
    "[/]",
    "alice [admin]",
    "[red]bob[/red]",
    "[link=http://example.com]click[/link]",
    ":smile: carol",
    "\x1b[2J\x1b[3A\x1b]8;;x\x07\x1b[31mansi",
    "\x1b]52;c;ZXZpbA==\x07clipboard",
    "\x1b]0;title\x1b\\",
    "\x9b31m\x9d52;c;ZXZpbA==\x9cc1",
    "abc\u202edef\u2066ghi",
    "two\nlines\r",
    "tab\there",
    "nul\x00del\x7f",
    "zero\u200bwidth\ufeff",
    "CORP\\alice",
    LONG,
)
EVIL: Final = "\x1b]52;c;ZXZpbA==\x07[/]\x9b1A\u202e\nevil"

READING: Final = {
    "users": ["users"],
    "quota": ["quota"],
    "budgets": ["budgets", "list"],
    "keys": ["keys", "list"],
    "projects": ["projects", "list"],
    "orgs": ["orgs", "list"],
    "dlq": ["dlq", "list"],
    "verify": ["verify"],
    "export": ["export"],
}
"""Commands that print what is in the log -> how they are called."""
WITHOUT_JSON: Final = {"export"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose every text is hostile: users, models, budgets, a dead letter's reason, a planted row."""
    folder = tmp_path_factory.mktemp("hostile")
    directory = folder / "data"
    log = Log(directory, partitions=1)
    put(log, [make_event(user_id=name, model=name[:256], cost_usd=Decimal(MONEY)) for name in HOSTILE])
    catch_up(directory)
    rows, letters = TopicPartition(ROWS, 0), TopicPartition(DEAD_LETTERS, 0)
    planted = next(key for key in newest_rows(log) if table_rows.decode_key(key)[1] == "user" and b"52;c" in key)
    progress = table_rows.encode_key(0, "progress")
    changed = json.dumps([1] * len(table_rows.decode_value(newest_rows(log)[planted]))).encode()
    log.append([Append(rows, [(planted, changed), (progress, newest_rows(log)[progress])])], NOON)
    log.append([Append(letters, [(DeadLetter(EVENTS, 0, 77, EVIL, NOON).encode(), b"junk")])], NOON)
    log.close()
    for name in HOSTILE:
        scope = ("--user", name) if "\x00" not in name else ("--model", "[/]")
        assert run_cli(directory, "budgets", "set", "--usd", MONEY, "--window", "day", *scope).returncode == 0
    return directory


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose users have hostile names."""
    with server(tmp_path_factory.mktemp("terminal") / "data") as started:
        position = ingest(started, [make_event(user_id=name, cost_usd=Decimal(MONEY)) for name in HOSTILE])
        read(started, f"/v1/users?after={position}")  # once the tables have them: a stream's snapshot does not wait
        yield started


def piped(directory: Path, *arguments: str | bytes, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Forked, in a locale of `LOCALES` from a process that was started in it; in another Python is started."""
    if "LC_ALL" not in variables or variables in LOCALES.values():
        return cli_host.run(arguments, environment(directory) | variables, Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=environment(directory) | variables,
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROCESS_PATIENCE,
        check=False,
    )


def nothing_hidden(written: str) -> None:
    """A terminal obeys nothing of it but the ends of lines."""
    assert HIDDEN.findall(re.sub("[\r\n]", "", plain(written))) == []


# --- terminals and pipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, 80) for name in READING] + [(name, n) for name in ("users", "budgets") for n in (20, 200)],
)
def test_on_a_terminal_everything_is_text(data: Path, name: str, columns: int) -> None:
    code, written = on_terminal(READING[name], environment(data), columns)
    assert code == (1 if name == "verify" else 0), written
    nothing_hidden(written)
    assert "Traceback" not in written
    if name in {"users", "budgets"}:
        text = squeezed(written)
        for each in HOSTILE if name == "users" else set(HOSTILE) - {"nul\x00del\x7f"}:
            assert re.sub(r"\s", "", visible(each)) in text, f"{each!r} is cut, or not shown as it is"
        assert text.count(MONEY) + text.count(f"{int(MONEY[:4]):,}{MONEY[4:]}") >= len(HOSTILE) - 1
    if name == "dlq":
        assert re.sub(r"\s", "", visible(EVIL)) in squeezed(written)


@pytest.mark.parametrize("name", READING)
def test_in_a_pipe_everything_is_text(data: Path, name: str) -> None:
    done = piped(data, *READING[name])
    assert done.returncode == (1 if name == "verify" else 0), done.stderr
    if name != "export":  # the lines are a backup: in a pipe they are what was sent
        nothing_hidden(done.stdout.decode().replace("\t", ""))
    nothing_hidden(done.stderr.decode())


@pytest.mark.parametrize("name", sorted(set(READING) - WITHOUT_JSON))
def test_json_is_safe_on_a_terminal_and_keeps_its_values(data: Path, name: str) -> None:
    done = piped(data, *READING[name], "--json")
    assert done.returncode == (1 if name == "verify" else 0), done.stderr
    nothing_hidden(done.stdout.decode())
    answer = json.loads(done.stdout)
    if name == "users":
        code, written = on_terminal([*READING[name], "--json"], environment(data), 80)
        note, _, document = written.partition("\r\n")  # of standard error, which is the same terminal
        assert note.startswith("spendstream: using the data directory ")
        assert (code, json.loads(document)["users"]) == (0, answer["users"])
        nothing_hidden(written)
        assert {row["user_id"] for row in answer["users"]} == set(HOSTILE)
    if name == "dlq":
        assert [letter["reason"] for letter in answer] == [EVIL]


def test_a_pipe_gets_fields_between_tabs_whole_and_exact(data: Path) -> None:
    done = piped(data, "users")
    head, *rows = done.stdout.decode().split("\n")[:-1]
    assert head.split("\t") == ["user", "requests", "errors", "input", "output", "cached", "cost USD", "last seen"]
    fields = [row.split("\t") for row in rows]
    assert {len(row) for row in fields} == {8}
    assert {row[0].encode().decode("unicode_escape") for row in fields} == set(HOSTILE), "escapes are Python's"
    assert {row[0] for row in fields} >= {"[/]", "alice [admin]", LONG, r"CORP\\alice", r"tab\there", r"two\nlines\r"}
    assert [row[6] for row in fields].count(MONEY) == len(HOSTILE) - 1, "the planted row has another sum"
    assert f"{len(HOSTILE)} users: requests {len(HOSTILE)}, errors " in done.stderr.decode()
    few = piped(data, "users", "--limit", "2")
    assert len(few.stdout.splitlines()) == 3
    assert f"2 of {len(HOSTILE)} users are shown" in few.stderr.decode()


def test_no_user_is_an_empty_field(tmp_path: Path) -> None:
    log = Log(tmp_path / "data", partitions=1)
    put(log, [make_event(input_tokens=1_234_567), make_event(user_id="(none)")])
    catch_up(tmp_path / "data")
    log.close()
    rows = [row.split("\t") for row in piped(tmp_path / "data", "users").stdout.decode().splitlines()]
    assert {(row[0], row[3]) for row in rows[1:]} == {("", "1234567"), ("(none)", "512")}


def test_the_other_tables_in_a_pipe(data: Path) -> None:
    heads = {
        "quota": ["window", "since", "used", "limit", "remaining"],
        "budgets": ["for", "window", "budget USD", "spent USD", "reached", "id"],
        "dlq": ["partition", "offset", "events", "bytes", "when", "retried", "reason"],
        "keys": ["key", "project", "organization", "scopes", "state"],
        "projects": ["project", "organization", "created"],
        "orgs": ["organization", "quota"],
    }
    for name, head in heads.items():
        lines = piped(data, *READING[name]).stdout.decode().splitlines()
        assert lines[0].split("\t") == head, name
        assert {line.count("\t") for line in lines} == {len(head) - 1}, name
    dead = piped(data, "dlq", "list").stdout.decode().splitlines()[1].split("\t")
    assert dead[:4] + dead[5:] == ["0", "77", "unreadable", "4", "", visible(EVIL)]
    used = piped(data, "quota").stdout.decode().splitlines()
    assert [line.split("\t")[0] for line in used[1:]] == ["minute", "hour", "day", "month"]


# --- a running server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 200])
def test_tail_shows_text(running: Server, columns: int) -> None:
    variables = environment(running.data_dir.parent / "elsewhere", {"key": KEY, "url": f"http://{running.http}"})
    code, written = on_terminal(["tail", "--events", "1"], variables | {"LINES": "200"}, columns)
    assert code == 0, written
    nothing_hidden(written)
    text = squeezed(written)
    assert [each for each in HOSTILE if re.sub(r"\s", "", visible(each)) not in text] == []
    assert MONEY in text


def test_tail_in_a_pipe_keeps_the_values(running: Server) -> None:
    done = piped(
        running.data_dir, "tail", "--events", "1", SPENDSTREAM_KEY=KEY, SPENDSTREAM_URL=f"http://{running.http}"
    )
    assert done.returncode == 0, done.stderr
    nothing_hidden(done.stdout.decode())
    assert {json.loads(line)["user"]["user_id"] for line in done.stdout.splitlines()} == set(HOSTILE)


def test_an_export_to_a_file_is_what_was_sent(running: Server, tmp_path: Path) -> None:
    done = piped(running.data_dir, "export", "--output", str(tmp_path / "all.ndjson"))
    assert done.returncode == 0, done.stderr
    exported = (tmp_path / "all.ndjson").read_bytes()
    assert exported == piped(running.data_dir, "export").stdout
    code, written = on_terminal(["export"], environment(running.data_dir), 80)
    assert code == 0
    shown = [line.rstrip("\r") for line in written.split("\n") if line.startswith("{")]
    assert shown == visible_json(exported.decode()).splitlines()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "\x1b]0;evil\x07[/].ndjson"],
        ["users", "--sort", "\x1b[2J"],
        ["users", "--start", "\x9b2J"],
        ["\x1b[2J"],
        ["users", "--\x1b[2J"],
        ["tail", "--sort", "\x1b[2J"],
        ["keys", "revoke", "\x1b]0;evil\x07"],
        ["orgs", "set", "\x1b[2J", "--monthly-quota", "5"],
        ["projects", "create", "a\u202eb"],
        ["budgets", "delete", "\x1b[2J[/]"],
        ["budgets", "set", "--usd", "\x9b2J", "--window", "day"],
        ["export", "--output", "/no/\x1b[2J/where"],
        ["backup", "/dev/null/\x1b[2J"],
        ["users", "--broker", "\x1b[2J"],
        ["worker", "--broker", "\x1b[2J"],
        ["tail", "--key", "k", "--url", "http://127.0.0.1:1/\x9b2J", "--user", "\x1b[2J", "--events", "x\x1b[2J"],
    ],
    ids=lambda arguments: visible(" ".join(arguments)),
)
def test_errors_quote_text(data: Path, arguments: list[str]) -> None:
    code, written = on_terminal(arguments, environment(data), 80)
    assert code == 2, written
    assert "Traceback" not in written
    nothing_hidden(written)


@pytest.mark.parametrize(
    "arguments",
    [
        ["users", "--project", b"\xff"],
        ["users", "--model", b"\xff"],
        ["quota", "--org", b"\xff"],
        ["budgets", "set", "--usd", "1", "--window", "day", "--user", b"\xff"],
        ["budgets", "list", "--project", b"\xff"],
        ["keys", "create", "--project", b"\xff"],
        ["orgs", "set", b"\xff", "--monthly-quota", "5"],
        ["tail", "--key", KEY, "--url", "http://127.0.0.1:1", "--user", b"\xff"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_an_argument_that_is_not_utf8_is_refused(data: Path, arguments: list[str | bytes]) -> None:
    at_start = {"LC_ALL": "C.UTF-8"} if arguments[0] == "users" else {}  # what Python decodes as it starts
    done = piped(data, *arguments, **at_start)
    assert done.returncode == 2, done.stderr
    assert b"not valid UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


# --- locales ---------------------------------------------------------------------------------------------------------

ASCII: Final = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN: Final = {**ASCII, "PYTHONIOENCODING": "latin-1"}
STRICT: Final = {**ASCII, "PYTHONIOENCODING": "ascii:strict"}


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with users and models in several scripts."""
    directory = tmp_path_factory.mktemp("worded") / "data"
    log = Log(directory, partitions=1)
    put(log, [make_event(user_id=name, model=name) for name in ("zoë", "日本", "😀")])
    catch_up(directory)
    [dead] = log.append([Append(TopicPartition(EVENTS, 0), [(None, b"junk")])], NOON)
    letter = DeadLetter(EVENTS, 0, dead, "日本 zoë", NOON)
    log.append([Append(TopicPartition(DEAD_LETTERS, 0), [(letter.encode(), b"junk")])], NOON)
    log.close()
    assert run_cli(directory, "budgets", "set", "--usd", "1", "--window", "day", "--user", "日本").returncode == 0
    return directory


LOCALES: Final = {"ascii": ASCII, "latin-1": LATIN, "strict": STRICT}


@pytest.mark.parametrize(
    ("name", "encoding"), [*((name, "ascii") for name in READING), ("users", "latin-1"), ("users", "strict")]
)
def test_every_command_prints_in_every_locale(worded: Path, name: str, encoding: str) -> None:
    locale = LOCALES[encoding]
    plainly, as_json = [piped(worded, *READING[name], *json_flag, **locale) for json_flag in ([], ["--json"])]
    for done in (plainly, as_json):
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    if name != "export":
        assert as_json.stdout.isascii()
        json.loads(as_json.stdout)
    if name == "users":
        code, written = on_terminal(READING[name], environment(worded) | locale, 80)
        assert code == 0, written
        zoe = "zo\udceb" if locale is LATIN else r"zo\xeb"
        for shown in (zoe, r"\u65e5\u672c", r"\U0001f600"):
            assert shown in written
        lines = plainly.stdout.decode(errors="surrogateescape").splitlines()
        assert {line.split("\t")[0] for line in lines[1:]} == {zoe, r"\u65e5\u672c", r"\U0001f600"}
        users: Any = json.loads(as_json.stdout)["users"]
        assert {row["user_id"] for row in users} == {"zoë", "日本", "😀"}


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_arguments_in_a_locale_without_utf8_are_utf8(worded: Path, locale: dict[str, str]) -> None:
    done = piped(worded, "users", "--json", "--model", "日本".encode(), **locale)
    assert done.returncode == 0, done.stderr
    assert [row["user_id"] for row in json.loads(done.stdout)["users"]] == ["日本"]
