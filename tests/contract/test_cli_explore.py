"""What `events`, `trace` and `metrics` ask, and what they show of the answers."""

import asyncio
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from rich.cells import cell_len

from processor.core.visible import HIDDEN, visible
from server.cli.commands import main
from server.explore.questions import EventsQuestion, MetricsQuestion, TraceQuestion
from tests.contract.doors import SECRET, Doors
from tests.support.explorer import AS_OF
from tests.support.server import environment
from tests.support.terminal import on_terminal, plain, squeezed

EVENT: Final[dict[str, Any]] = {
    "event_id": "e1",
    "trace_id": "t",
    "span_id": "a",
    "timestamp": "2026-04-20T10:00:00.000Z",
    "model": "gpt-4o",
    "latency_ms": 843.5,
    "input_tokens": 512,
    "output_tokens": 128,
    "cost_usd": 0.0034,
    "status": "success",
    "user_id": "u1",
    "kind": "call",
}
SUMMARY: Final[dict[str, Any]] = {
    "trace_id": "t",
    "name": "plan",
    "start": "2026-04-20T10:00:00.000Z",
    "end": "2026-04-20T10:00:02.000Z",
    "duration_ms": 2000.0,
    "spans": 3,
    "calls": 2,
    "errors": 1,
    "input_tokens": 1024,
    "output_tokens": 256,
    "cached_tokens": 0,
    "cost_usd": 0.0068,
    "user_id": "u1",
    "session_id": None,
    "environment": "production",
    "models": ["gpt-4o"],
    "complete": True,
}


def span(depth: int, parent: int | None, at: float, **changes: Any) -> dict[str, Any]:
    return {**EVENT, "timestamp": f"2026-04-20T10:00:0{at:.3f}Z", "depth": depth, "parent": parent, **changes}


TRACE: Final[dict[str, Any]] = {
    "trace": SUMMARY,
    "spans": [
        span(0, None, 0, kind="span", name="plan", latency_ms=2000, cost_usd=None),
        span(1, 0, 0.5, name="ask", span_id="b"),
        span(2, 1, 0.5, latency_ms=1e-7, span_id="c"),
        span(1, 0, 1.5, status="error", error_code="429", error_message="slow down\x1b[2J", span_id="d"),
    ],
    "truncated": False,
    "total": 4,
}
METRICS: Final = {
    "groups": [
        {
            "key": {"model": "gpt-4o", "tag:team": None},
            "values": {"requests": 3, "cost_usd": 1.000000000001},
            "series": [
                {"start": "2026-04-19T22:00:00.000Z", "requests": 1, "cost_usd": 0.5},
                {"start": "2026-04-20T22:00:00.000Z", "requests": 2, "cost_usd": 0.500000000001},
            ],
        },
        {"key": {"model": "o1", "tag:team": "x"}, "values": {"requests": 1, "cost_usd": None}, "series": []},
    ],
    "other": {"requests": 5, "cost_usd": 2},
    "total": {"requests": 9, "cost_usd": 3.000000000001},
    "multi": [],
}


async def run(doors: Doors, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Standard output and standard error of a command that succeeds."""
    words = [*arguments, "--url", doors.url, "--key", SECRET]
    await asyncio.to_thread(main.main, words, standalone_mode=False)
    captured = capsys.readouterr()
    return captured.out, captured.err


async def show(doors: Doors, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command shows on a wide terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys.stdout, "isatty", lambda: True)
        return (await run(doors, capsys, *arguments))[0]


async def test_events(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.add(EVENT, {**EVENT, "event_id": "e2", "status": "error", "error_code": "500", "cost_usd": None})
    out, err = await run(doors, capsys, "events")
    titles, first, second = out.splitlines()
    assert titles.split("\t")[:2] == ["time", "model"]
    assert first.split("\t")[2:] == ["error: 500", "843.5", "512", "128", "", "u1", "t", "e2"]
    assert second.split("\t")[6] == "0.0034"
    assert err == f"the event store has what arrived until {AS_OF['asOf']}\n"
    [question] = doors.explorer.asked
    assert isinstance(question, EventsQuestion)
    assert question.limit == 20


async def test_filters_are_flags(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "a", "--model", "b", "--not", "tag=team:x", "--kind", "all", "--min-cost-usd", "0.1"]
    out, err = await run(doors, capsys, "events", *words, "--user-id", "", "--order", "asc", "--start", "2026-04-20")
    assert out.count("\n") == 1
    assert "no event matches" in err
    [question] = doors.explorer.asked
    assert isinstance(question, EventsQuestion)
    filters = question.filters
    assert (filters.equal, filters.no_tags) == ({"model": ("a", "b"), "user_id": (None,)}, (("team", "x"),))
    assert (filters.kinds, filters.min_cost, question.order) == ("all", 10**11, "asc")


async def test_json_is_what_the_server_answers(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.add(EVENT)
    doors.explorer.answers = {TraceQuestion: TRACE, MetricsQuestion: METRICS}
    for command, path in (
        (["events", "--limit", "7"], "/v1/events?limit=7"),
        (["trace", "t"], "/v1/traces/t"),
        (["metrics", "--group-by", "model"], "/v1/metrics?group_by=model"),
    ):
        out, err = await run(doors, capsys, *command, "--json")
        assert json.loads(out) == (await doors.get(path)).json
        assert err == ""


async def test_a_trace_in_a_pipe(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.answers = {TraceQuestion: TRACE}
    out, err = await run(doors, capsys, "trace", "..")
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["depth", "step", "start", "ms", "tokens", "cost USD", "status", "span"]
    assert [line[:2] for line in lines[1:]] == [["0", "plan"], ["1", "ask (gpt-4o)"], ["2", "gpt-4o"], ["1", "gpt-4o"]]
    assert lines[4][5:] == ["0.0034", "error: 429: slow down\\\\x1b[2J".replace("\\\\", "\\"), "d"]
    assert err.startswith(
        "3 steps, 2 calls, 1 error; 2,000 ms from 2026-04-20T10:00:00.000Z\n1,024 + 256 tokens, 0.0068 USD"
    )
    [question] = doors.explorer.asked
    assert question == TraceQuestion(project="default", trace_id="..", extra=False)


async def test_a_trace_on_a_terminal(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.answers = {TraceQuestion: TRACE}
    out = await show(doors, capsys, "trace", "t")
    for line in ("│ plan ", "│ ├─ ask (gpt-4o)", "│ │  └─ gpt-4o", "│ └─ gpt-4o", "━" * 24, "slow down"):
        assert line in out
    assert "\x1b[2J" not in out


@pytest.mark.slow
async def test_a_deep_trace_on_a_terminal(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    spans = [span(depth, depth - 1 if depth else None, 0) for depth in range(2000)]
    doors.explorer.answers = {TraceQuestion: {**TRACE, "spans": spans, "truncated": True, "total": 60_000}}
    out = await show(doors, capsys, "trace", "t")
    assert "1999 └─ gpt-4o" in out
    assert "2,000 of 60,000 steps are shown" in out


async def test_metrics_in_a_pipe(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.answers = {MetricsQuestion: METRICS}
    words = ["--group-by", "model", "--group-by", "tag:team", "--measure", "requests", "--measure", "cost_usd"]
    out, err = await run(doors, capsys, "metrics", *words)
    assert out.splitlines() == [
        "model\ttag:team\trequests\tcost_usd",
        "gpt-4o\t\t3\t1.000000000001",
        "o1\tx\t1\t",
        "(other)\t\t5\t2",
    ]
    assert err.startswith("total: requests 9, cost_usd 3.000000000001\n")
    out, _ = await run(doors, capsys, "metrics", *words, "--interval", "day", "--tz", "Europe/Berlin")
    assert out.splitlines() == [
        "model\ttag:team\tstart\trequests\tcost_usd",
        "gpt-4o\t\t2026-04-19T22:00:00.000Z\t1\t0.5",
        "gpt-4o\t\t2026-04-20T22:00:00.000Z\t2\t0.500000000001",
    ]
    question = doors.explorer.asked[-1]
    assert isinstance(question, MetricsQuestion)
    assert (question.group_by, question.interval, question.tz) == (("model", "tag:team"), "day", "Europe/Berlin")


async def test_metrics_on_a_terminal(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.answers = {MetricsQuestion: METRICS}
    out = await show(doors, capsys, "metrics")
    assert "█" * 30 in out
    assert "█" * 10 + " " in out
    out = await show(doors, capsys, "metrics", "--interval", "day")
    assert "▅█" in out


async def test_csv_has_the_fields_of_a_pipe(doors: Doors, capsys: pytest.CaptureFixture[str]) -> None:
    doors.explorer.add({**EVENT, "user_id": '=1+1,"x"', "status": "success"})
    doors.explorer.answers = {TraceQuestion: TRACE, MetricsQuestion: METRICS}
    for words in (["events"], ["trace", "t"], ["metrics", "--group-by", "model", "--interval", "day"]):
        piped, _ = await run(doors, capsys, *words)
        out, err = await run(doors, capsys, *words, "--csv")
        rows = list(csv.reader(io.StringIO(out, newline="")))
        fields = [[text.removeprefix("'") for text in row] for row in rows]
        assert fields == [line.split("\t") for line in piped.splitlines()]
        assert f"until {AS_OF['asOf']}" in err
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            assert (await run(doors, capsys, *words, "--csv"))[0] == out
    events, _ = await run(doors, capsys, "events", "--csv")
    assert list(csv.reader(io.StringIO(events, newline="")))[1][7] == """'=1+1,"x\""""
    out, _ = await run(doors, capsys, "metrics", "--group-by", "model", "--measure", "cost_usd", "--csv")
    assert out.splitlines()[-2:] == ["(other),,2", "total,,3.000000000001"]


PICTURES: Final = (
    (["events"], "0.0034"),
    (["trace", "t"], "━"),
    (["metrics"], "█"),
    (["metrics", "--interval", "day"], "▅"),
)
"""Commands, and what a part of their picture is."""


@pytest.mark.parametrize("columns", [40, 80, 200])
async def test_pictures_fit_a_real_terminal_and_are_text(doors: Doors, columns: int, tmp_path: Path) -> None:
    name = "\x1b[2Jplan\u202e [red]x[/red]\nend"
    spans = [{**TRACE["spans"][0], "name": name}, *TRACE["spans"][1:]]
    doors.explorer.add({**EVENT, "user_id": name})
    doors.explorer.answers = {TraceQuestion: {**TRACE, "spans": spans}, MetricsQuestion: METRICS}
    variables = environment(tmp_path) | {"SPENDSTREAM_KEY": SECRET, "SPENDSTREAM_URL": doors.url}
    for words, picture in PICTURES:
        code, written = await asyncio.to_thread(on_terminal, words, variables, columns)
        assert code == 0, written
        lines = plain(written).splitlines()
        assert max(map(cell_len, lines)) <= columns, words
        assert HIDDEN.findall("".join(lines)) == []
        assert picture in written
        if words[0] != "metrics":
            assert re.sub(r"\s", "", visible(name)) in squeezed(written)


async def test_what_ends_a_command(doors: Doors, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    for words, says in (
        (["events", "--not", "model"], "--not must be FILTER=TEXT"),
        (["events", "--start", "2020-01-01"], "400 range_too_wide"),
        (["trace", "nothing"], "404 not_found"),
        (["metrics", "--measure", "median"], "400 bad_request: measures"),
        (["metrics", "--json", "--csv"], "--json and --csv are two forms"),
    ):
        with pytest.raises(SystemExit):
            await run(doors, capsys, *words)
        assert says in capsys.readouterr().err
    for more, says in (
        (["--data-dir", str(tmp_path)], "no server runs on"),
        (["--url", doors.url], "answers only with an API key"),
        (["--url", "http://127.0.0.1:1", "--key", "x"], "no answer from"),
    ):
        with pytest.raises(SystemExit):
            await asyncio.to_thread(main.main, ["events", *more], standalone_mode=False)
        assert says in capsys.readouterr().err
