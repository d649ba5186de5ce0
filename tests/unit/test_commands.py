"""What the program says of itself, and about a command line that it cannot run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from processor.settings import Settings, load
from server.cli.commands import main
from server.cli.settings_flags import GROUPS, SECRETS, SEEN_BY_ALL, SettingOption
from server.settings import ServerSettings


def commands(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands and groups, with their names."""
    yield path, command
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, (*path, name))


def help_of(*path: str) -> str:
    done = CliRunner().invoke(main, [*path, "--help"], prog_name="spendstream", terminal_width=120)
    assert done.exit_code == 0, done.output
    return done.output


def flat(text: str) -> str:
    return " ".join(text.split())


ALL = [path for path, _ in commands()]

HEAVY = ("aiohttp", "duckdb", "faust", "grpc", "numpy", "prometheus_client", "pyarrow", "rich", "structlog")
"""What a command loads once it needs it: together a second of CPU."""


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, server.cli.commands; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What flags put into the environment is gone after the test, and no setting is there before."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("SPENDSTREAM_")]:
            del os.environ[name]
        yield


@pytest.mark.parametrize("arguments", [[], ["keys"], ["budgets"], ["dlq"]], ids=" ".join)
def test_without_arguments_the_help_is_shown_on_its_lines(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert len(done.output.splitlines()) > 5
    assert "\\n" not in done.output
    assert done.output == CliRunner().invoke(main, [*arguments, "--help"]).output


def test_an_argument_is_quoted_on_one_line() -> None:
    done = CliRunner().invoke(main, ["keys", "list\nDone\x1b[2J"])
    assert done.exit_code == 2
    assert not {"Done", "\x1b"} & set(done.output.splitlines())
    assert "\x1b" not in done.output


# --- help ------------------------------------------------------------------------------------------------------------


def test_commands_are_under_headings() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if re.fullmatch(r"\w+:", line):
            title = line.removesuffix(":")
        elif title and (name := re.fullmatch(r"  (\w+) +(\S.*)", line)):
            found.setdefault(title, []).append(name[1])
    assert found == {
        "Serving": ["serve", "api", "worker", "store"],
        "Tables": ["users", "quota", "budgets", "tail"],
        "Events": ["events", "trace", "metrics", "prices"],
        "Operations": ["verify", "rebuild", "backup", "export", "import", "dlq", "loadtest", "demo"],
        "Administration": ["keys", "projects", "orgs", "version"],
    }
    shown = [name for name, command in main.commands.items() if not command.hidden]
    assert sorted(name for names in found.values() for name in names) == sorted(shown)
    assert text.count("...") == 1, "but for the usage, each line is a whole sentence"


@pytest.mark.parametrize("role", ["serve", "api", "worker"])
def test_every_setting_is_a_flag_under_one_heading(role: str) -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(ServerSettings.model_fields)
    kind = Settings if role == "worker" else ServerSettings
    text = flat(help_of(role))
    for name in kind.model_fields:
        flag = f"--{name.replace('_', '-')}"
        assert f" {flag} " in text
        assert re.search(rf"env var: SPENDSTREAM_{name.upper()}[;\]]", text), name
    titles = [title for title, group in GROUPS.items() if set(group) & set(kind.model_fields)]
    assert [line.removesuffix(":") for line in help_of(role).splitlines() if re.fullmatch(r"[A-Z].*:", line)] == [
        *titles,
        "Options",
    ]


@pytest.mark.parametrize(
    "shown",
    [
        "--data-dir DIRECTORY ",
        "--partitions INTEGER ",
        "--flush-interval NUMBER ",
        "--http-bind HOST:PORT ",
        "--tls-cert FILE ",
        "--alert-webhook URL ",
        "--handling [partial|strict|lenient] ",
        "--log-level [debug|info|warning|error] ",
        "--insecure / --no-insecure ",
        "--standby / --no-standby ",
        "env var: SPENDSTREAM_PARTITIONS; 1<=x<=1024]",
        "env var: SPENDSTREAM_MAX_LAG; default: 30; x>0]",
        "env var: SPENDSTREAM_STANDBY; default: on]",
        "env var: SPENDSTREAM_INSECURE; default: off]",
    ],
)
def test_types_limits_and_defaults_are_named(shown: str) -> None:
    assert shown in flat(help_of("serve"))


def test_no_secret_is_a_flag_without_its_variable_and_a_warning() -> None:
    named = re.compile(r"(password|secret|(?<!tls_)(?<!kafka_)key)$")
    assert {name for name in ServerSettings.model_fields if named.search(name)} == SECRETS
    seen = 0
    for path, command in commands():
        for option in command.params:
            if isinstance(option, SettingOption):
                secret, variable = option.name in SECRETS, option.variable
            else:
                secret, variable = isinstance(option, click.Option) and option.name == "key", "SPENDSTREAM_KEY"
            if secret:
                record = option.get_help_record(click.Context(command))
                assert record is not None
                assert SEEN_BY_ALL in record[1], path
                assert f"env var: {variable}" in record[1], path
                seen += 1
    assert seen == 3 * 3 + 2 + 11  # serve, api and query; worker and store; --key of the commands that ask a server


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    command = dict(commands())[path]
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            assert "VALUE" not in option.make_metavar(click.Context(command)), option.name
    assert (command.help or "").split("\n\n")[0].count("\n") == 0, "the first sentence is the line in the list"


# --- switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], None),
        (["--insecure"], "true"),
        (["--no-insecure"], "false"),
        (["--insecure", "true"], "true"),
        (["--insecure=false"], "false"),
        (["--insecure", "--log-level", "info"], "true"),
    ],
)
def test_switches_are_switches_and_still_take_a_value(
    given: list[str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(main.commands["serve"], "callback", lambda **flags: seen.append(flags["insecure"]))
    done = CliRunner().invoke(main, ["serve", *given])
    assert (done.exit_code, seen) == (0, [wanted]), done.output


@pytest.mark.parametrize(
    ("variable", "given", "wanted"), [("true", ["--no-standby"], False), ("false", ["--standby"], True)]
)
def test_a_switch_wins_over_its_variable(
    variable: str, given: list[str], wanted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPENDSTREAM_STANDBY", variable)
    seen: list[bool] = []
    monkeypatch.setattr("os.execv", lambda *_: seen.append(load(Settings).standby))
    monkeypatch.setattr("os.umask", lambda _: 0)
    done = CliRunner().invoke(main, ["worker", *given])
    assert (done.exit_code, seen) == (0, [wanted]), done.output


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_wrong_settings_are_named_with_flag_and_variable(tmp_path: Path) -> None:
    wrong = ["--partitions", "0", "--handling", "odd", "--max-lag", "x", "--bootstrap-key", "lqt_secret"]
    done = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path / "data"), *wrong], prog_name="spendstream")
    assert done.exit_code == 2
    for name in ("PARTITIONS", "HANDLING", "MAX_LAG", "BOOTSTRAP_KEY"):
        assert f"  SPENDSTREAM_{name}: " in done.stderr
    assert "lqt_secret" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "each can be a flag, a variable or a line of the TOML file: `spendstream serve --help` lists them"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["users", "--sort", "name"], ["--sort", "cost_usd", "last_seen"]),
        (["users", "--limit", "1001"], ["--limit", "1<=x<=1000"]),
        (["users", "--url", "http://127.0.0.1:1"], ["http://127.0.0.1:1", "SPENDSTREAM_KEY", "--key"]),
        (["quota", "--url", "http://127.0.0.1:1", "--key", "lqt_x"], ["no answer from http://127.0.0.1:1", "--url"]),
        (["uesrs"], ["No such command 'uesrs'", "Did you mean users?"]),
        (["keys", "rovoke"], ["No such command 'rovoke'", "Did you mean revoke?"]),
        (
            ["verify", "--config", "no.toml", "--data-dir", "no"],
            ["there is no file no.toml (--config, SPENDSTREAM_CONFIG)"],
        ),
        (["backup", ""], ["DIR is empty: name a new or empty directory"]),
        (["export", "--output", ""], ["--output is empty: name a file, or - for standard output"]),
        (["budgets", "set", "--usd", "much", "--window", "day"], ["--usd", "25 or 0.50", "'much'"]),
    ],
)
def test_what_is_wrong_where_and_what_to_do(
    arguments: list[str], says: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.output
    for each in says:
        assert each in done.stderr
