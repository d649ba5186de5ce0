"""`spendstream prices`: the lists in a terminal, as lines and as JSON."""

import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from server.cli.commands import main
from server.prices.builtin import builtin_list

NAME = f"genai-prices@{builtin_list().version}"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPENDSTREAM_PRICES", raising=False)
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error."""
    before = dict(os.environ)
    try:
        main.main(["prices", *arguments], standalone_mode=False)
        ended = 0
    except SystemExit as exited:
        ended = int(exited.code or 0)
    finally:  # flags go into the environment
        os.environ.clear()
        os.environ.update(before)
    captured = capsys.readouterr()
    assert ended == code, captured.err
    return captured.out, captured.err


def rows(text: str) -> list[dict[str, str]]:
    titles, *lines = (line.split("\t") for line in text.splitlines())
    return [dict(zip(titles, line, strict=True)) for line in lines]


def exact(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


CALL = ("cost", "--provider", "openai", "--model", "gpt-4o", "--input", "1000", "--cached", "400", "--output", "200")


def test_cost(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *CALL)
    assert [(row["part"], row["tokens"], row["per_million"], row["cost_usd"]) for row in rows(out)] == [
        ("input", "600", "2.5", "0.0015"),
        ("cached", "400", "1.25", "0.0005"),
        ("cache_write", "0", "", ""),
        ("cache_write_1h", "0", "", ""),
        ("output", "200", "10", "0.002"),
        ("reasoning", "0", "10", "0"),
    ]
    assert err == f"total: cost_usd 0.004\nby {NAME}: openai gpt-4o\n"
    found = exact(run(capsys, *CALL, "--json")[0])
    assert (found["cost_usd"], found["cost_source"], found["reason"]) == (Decimal("0.004"), f"list:{NAME}", None)
    dated = ("cost", "--provider", "openai", "--model", "o3", "--input", "1", "--output", "0", "--json", "--at")
    assert exact(run(capsys, *dated, "2025-06-09")[0])["cost_usd"] == Decimal("0.00001")
    assert exact(run(capsys, *dated, "2025-06-10T00:00:00Z")[0])["cost_usd"] == Decimal("0.000002")
    assert "--at " in run(capsys, *dated, "soon", code=2)[1]


def test_cost_of_what_is_kept_for_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    call = ("cost", "--model", "claude-sonnet-4-5", "--input", "1000", "--output", "0", "--cache-write", "350")
    out, err = run(capsys, *call, "--cache-write-1h", "100")
    found = {row["part"]: (row["tokens"], row["per_million"], row["cost_usd"]) for row in rows(out)}
    assert found["input"] == ("650", "3", "0.00195")
    assert found["cache_write"] == ("250", "3.75", "0.0009375")
    assert found["cache_write_1h"] == ("100", "6", "0.0006")
    assert "total: cost_usd 0.0034875" in err
    assert "is unpriced" in run(capsys, *call, "--cache-write-1h", "351", code=1)[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("--model", "nobody-knows"), "unknown_model"),
        (("--operation", "tts"), "operation"),
        (("--cache-write", "1"), "part_without_price"),
        (("--provider", "my-proxy"), "unknown_model"),
        (("--provider", "perplexity", "--model", "sonar"), "no_price"),
    ],
)
def test_cost_of_what_is_unpriced(changes: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, *CALL, *changes, code=1)
    assert "is unpriced: " in err
    assert "total" not in err
    found = exact(run(capsys, *CALL, *changes, "--json", code=1)[0])
    assert (found["cost_usd"], found["cost_source"], found["reason"]) == (None, None, reason)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("--cached", "1001"), "--cached and --cache-write are 1,001 tokens, more than the 1,000 of --input"),
        (("--cache-write", "601"), "--cached and --cache-write are 1,001 tokens, more than the 1,000 of --input"),
        (("--reasoning", "201"), "--reasoning is 201 tokens, more than the 200 of --output"),
        (
            ("--cache-write", "3", "--cache-write-1h", "4"),
            "--cache-write-1h is 4 tokens, more than the 3 of --cache-write",
        ),
        (("--cache-write", "1"), "the list has no price for cache_write"),
        (("--cache-write", "1", "--cache-write-1h", "1"), "the list has no price for cache_write_1h"),
        (("--input", "9007199254740991"), "it would cost more than 1,000,000 dollars"),
    ],
)
def test_cost_says_which_part_is_wrong(changes: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *CALL, *changes, code=1)
    assert err == f"gpt-4o is unpriced: {says}\n"
    assert all(int(row["tokens"]) >= 0 for row in (rows(out) if out else []))
    found = exact(run(capsys, *CALL, *changes, "--json", code=1)[0])
    assert found["reason"] == "part_without_price"
    assert all(each["tokens"] >= 0 for each in found["parts"])


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "list", "--provider", "openai", "--model", "GPT-5.4*")
    found = {row["model"]: row for row in rows(out)}
    assert found["gpt-5.4"] == {
        "list": NAME,
        "provider": "openai",
        "model": "gpt-5.4",
        "input": "2.5",
        "cached": "0.25",
        "cache_write": "",
        "cache_write_1h": "",
        "output": "15",
        "reasoning": "",
        "varies": "tier",
        "rounded": "",
    }
    assert set(found) >= {"gpt-5.4-mini", "gpt-5.4-nano"}
    assert f"{NAME}, made on {builtin_list().date}\n" in err
    every = [exact(line) for line in run(capsys, "list", "--json")[0].splitlines()]
    assert len(every) == sum(len(provider.models) for provider in builtin_list().providers)
    rounded = [each for each in every if each["rounded"]]
    assert {each["provider"] for each in rounded} == {"openrouter", "huggingface_together"}
    dated = run(capsys, "list", "--provider", "openai", "--model", "o3", "--at", "2025-01-01", "--json")[0]
    assert exact(dated)["prices"]["input"] == 10


def test_list_says_which_prices_are_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "list", "--provider", "openrouter", "--model", "google/gemini-2.5-flash")
    (row,) = rows(out)
    assert (row["cache_write"], row["rounded"]) == ("0.083333", "cache_write")
    assert "1 models, 1 priced by tokens, 1 with prices rounded to 6 decimals" in err


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(run(capsys, "show", "deepseek-chat", "--provider", "deepseek")[0])
    assert [(row["hours"], row["input"], row["output"]) for row in found] == [
        ("", "0.135", "0.55"),
        ("00:30-16:30", "0.27", "1.1"),
    ]
    found = rows(run(capsys, "show", "claude-sonnet-4-6-20260301", "--provider", "anthropic")[0])
    assert [(row["from"], row["above"], row["output"]) for row in found] == [
        ("", "", "15"),
        ("", "200000", "22.5"),
        ("2026-03-13T00:00:00.000Z", "", "15"),
    ]
    several = [exact(line) for line in run(capsys, "show", "gpt-4o", "--json")[0].splitlines()]
    assert {each["provider"] for each in several} >= {"openai", "github-copilot"}
    assert "not priced by tokens alone" in run(capsys, "show", "gpt-realtime", "--provider", "openai")[1]
    assert "no list knows the model x of openai" in run(capsys, "show", "x", "--provider", "openai", code=2)[1]


def test_own_prices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('[[price]]\nmodel = "gpt-4o"\ninput = 1\noutput = 1\ncached = 1\n')
    with_own = ("--prices", str(own))
    found = exact(run(capsys, *CALL, *with_own, "--json")[0])
    assert found["cost_usd"] == Decimal("0.0012")
    assert found["cost_source"].startswith("list:mine@")
    first = rows(run(capsys, "list", *with_own)[0])[0]
    assert (first["list"].partition("@")[0], first["provider"], first["model"]) == ("mine", "", "gpt-4o")
    assert rows(run(capsys, "list", "--prices", "off")[0]) == []
    own.write_text("[[price]]\nmodel = 'm'\ninputs = 1\n")
    assert "price 1 ('m'): unknown key 'inputs'" in run(capsys, *CALL, *with_own, code=2)[1]


def test_a_terminal_gets_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, _ = run(capsys, *CALL)
    assert "total" in out
    assert "by genai-prices@" in out
