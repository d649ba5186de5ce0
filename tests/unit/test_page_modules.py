"""The page's modules by themselves, in a real browser: what is exact in Python must be exact there."""

import json
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from playwright.sync_api import Browser, Route

from processor.core.visible import visible
from server.http_api import static_files

pytestmark = pytest.mark.browser

ORIGIN = "http://page.test"

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(chrome: Browser) -> Iterator[Run]:
    """`run(module, body, argument)`: the value of a JavaScript function body that sees `module` and `argument`."""
    files = static_files.load()

    def answer(route: Route) -> None:
        asset = files.get(route.request.url.removeprefix(f"{ORIGIN}/page/"))
        if asset is None:
            route.fulfill(body="<!doctype html>", content_type="text/html")
        else:
            route.fulfill(body=asset.plain, content_type=asset.content_type)

    page = chrome.new_page()
    page.route("**/*", answer)
    page.goto(f"{ORIGIN}/")

    def call(module: str, body: str, argument: object = None) -> Any:
        script = f"async (argument) => {{ const module = await import('/page/{module}'); {body} }}"
        return page.evaluate(script, argument)

    yield call
    page.close()


def test_json_keeps_every_digit(run: Run) -> None:
    text = json.dumps({"a": [2**63, -1, {"b": '1.5 "2" \\ 3'}], "é\u2028": None, "t": True}) + " "
    text = text.replace('"t"', '"cost":0.100000000000,"small":1e-7,"t"')
    assert run("exact.js", "return module.parse(argument)", text) == {
        "a": ["9223372036854775808", "-1", {"b": '1.5 "2" \\ 3'}],
        "é\u2028": None,
        "cost": "0.100000000000",
        "small": "1e-7",
        "t": True,
    }


def test_money_is_exact(run: Run) -> None:
    chance = random.Random(3)
    texts = ["0", "0.000000000001", "-0.5", "1000000", "123456789012345678901234567890.123456789012"]
    texts += [f"{Decimal(chance.getrandbits(90)).scaleb(-12).normalize():f}" for _ in range(500)]
    picos = run("exact.js", "return argument.map((text) => module.pico(text).toString())", texts)
    assert picos == [str(int(Decimal(text) * 10**12)) if len(text) < 40 else text.replace(".", "") for text in texts]
    assert run("exact.js", "return argument.map((text) => module.decimal(module.pico(text)))", texts) == texts
    shown = run("exact.js", "return argument.map(module.dollars)", texts)
    assert shown[:4] == ["$0.00", "$0.000000000001", "−$0.50", "$1,000,000.00"]
    for text, seen in zip(texts, shown, strict=True):
        assert Decimal(seen.replace("$", "").replace(",", "").replace("−", "-")) == Decimal(text)


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [("0", "0", "–"), ("1", "3", "33.3%"), ("5", "5", "100.0%"), ("20000", "3", "100.0%"), ("7", "0", "–")],
)
def test_no_rate_is_above_100_percent(run: Run, part: str, whole: str, said: str) -> None:
    assert run("exact.js", "return module.rate(...argument)", [part, whole]) == said


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        ("0", "0", "–"),
        ("0", "5", "0.0%"),
        ("1", "3", "33.3%"),
        ("2", "3", "66.7%"),
        ("5", "5", "100.0%"),
        ("1", "99999", "<0.1%"),
    ],
)
def test_percent(run: Run, part: str, whole: str, said: str) -> None:
    assert run("exact.js", "return module.percent(...argument)", [part, whole]) == said


EVENTS = (
    'id: 1\nevent: snapshot\ndata: {"users":[]}\n\n: heartbeat\n\nretry: 1000\n'
    "id:2\r\ndata: one\r\ndata:two\r\n\r\nevent: update\ndata: ü\rid\r\r"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_cut_however_they_arrive(run: Run, size: int) -> None:
    pieces = [EVENTS[at : at + size] for at in range(0, len(EVENTS), size)] + ["\n"]
    found = run(
        "stream.js",
        "const parser = new module.Parser(); return argument.flatMap((piece) => parser.push(piece))",
        pieces,
    )
    assert found == [
        {"event": "snapshot", "data": '{"users":[]}', "id": "1"},
        {"event": "message", "data": "one\ntwo", "id": "2"},
        {"event": "update", "data": "ü", "id": ""},
    ]


def quota(used: int, limit: int | None, today: int) -> dict[str, Any]:
    """A quota answer of 10 November 2026, as the page has read it."""
    return {
        "period": "2026-11",
        "limit": None if limit is None else str(limit),
        "used": str(used),
        "remaining": None if limit is None else str(max(0, limit - used)),
        "resetsAt": "2026-12-01T00:00:00.000Z",
        "windows": {
            "day": {"start": "2026-11-10T00:00:00.000Z", "used": str(today)},
            "month": {"start": "2026-11-01T00:00:00.000Z", "used": str(used)},
        },
    }


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (quota(5, None, 5), "no limit"),
        (quota(1000, 1000, 5), "used up: events are refused until 2026-12-01 00:00 UTC"),
        (quota(900, 1000, 50), "used up in 24 h at this pace, 2026-11-11 12:00 UTC"),  # 50 in 12 h, 100 left
        (quota(950, 1000, 600), "used up in 1 h at this pace, 2026-11-10 13:00 UTC"),
        (quota(100, 1000, 5), "enough at this pace; starts anew 2026-12-01 00:00 UTC"),
        (quota(950, 1000, 0), "used up in 12 h at this pace, 2026-11-11 00:00 UTC"),  # the month's: 950 in 9.5 days
        (quota(0, 1000, 0), "unused; starts anew 2026-12-01 00:00 UTC"),
    ],
)
def test_how_long_the_quota_lasts(run: Run, answer: dict[str, Any], said: str) -> None:
    body = 'return module.outlook(argument, Date.parse("2026-11-10T12:00:00Z")).text'
    assert run("quota.js", body, answer) == said


def test_the_rest_of_the_models_is_one_series_and_nothing_is_lost(run: Run) -> None:
    rows = [{"day": f"2026-11-0{1 + n % 2}", "model": f"m{n:02}", "cost_usd": f"0.{n:012}"} for n in range(1, 21)]
    body = """
        const { pico } = await import("/page/exact.js");
        return module.stack(argument, (row) => row.model, pico).map((each) =>
            [each.name, ...[each.total, each.value("2026-11-01"), each.value("2026-11-02")].map(String)]);
    """
    series = run("chart.js", body, rows)
    assert [name for name, *_ in series] == [f"m{n}" for n in range(20, 13, -1)] + ["Other models"]
    assert sum(int(total) for _, total, _, _ in series) == sum(range(1, 21))
    assert all(int(total) == int(first) + int(second) for _, total, first, second in series)


def test_days_and_periods(run: Run) -> None:
    body = "return ['7', '30', 'month', 'all'].map((name) => module.firstDay(name, argument) ?? null)"
    assert run("period.js", body, "2026-03-02") == ["2026-02-24", "2026-02-01", "2026-03-01", None]
    assert run("chart.js", "return module.everyDay(...argument)", ["2024-02-28", "2024-03-01"]) == [
        "2024-02-28",
        "2024-02-29",
        "2024-03-01",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice", "alice"),
        ("a  b", "a  b"),
        ("日本 \u0646\u200c\u0645 👨\u200d👩", "日本 \u0646\u200c\u0645 👨\u200d👩"),
        (" ", "␣"),
        ("  ", "␣␣"),
        (" gpt-4o ", "␣gpt-4o␣"),
        ("\u3000", "\\u3000"),
        ("\u3164", "\\u3164"),
        ("\u200d", "\\u200d"),
        ("\xa0\u2800", "\\xa0\\u2800"),
        ("\n", "\\n"),
        ("a\tb\x00\x1b\x9b", "a\\tb\\x00\\x1b\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\U000e0041x\ufeff", "\\U000e0041x\\ufeff"),
    ],
)
def test_names_can_be_seen(run: Run, text: str, shown: str) -> None:
    assert run("names.js", "return module.shown(argument)", text) == shown


def test_names_are_shown_as_in_a_terminal(run: Run) -> None:
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0080))]
    shown = run("names.js", "return argument.map((each) => module.shown(`x${each}x`).slice(1, -1))", characters)
    assert [(hex(ord(each)), visible(each)) for each in characters] == [
        (hex(ord(each)), seen) for each, seen in zip(characters, shown, strict=True)
    ]


def test_a_chart_of_two_thousand_years_has_the_days_with_events(run: Run) -> None:
    def days(there: list[str], first: str | None, last: str) -> Any:
        body = "return module.daysOf(argument[0].map((day) => ({ day })), argument[1] ?? undefined, argument[2])"
        return run("chart.js", body, [there, first, last])

    assert days(["0001-01-01", "1970-01-01", "2026-11-28"], None, "2026-11-28") == [
        "0001-01-01",
        "1970-01-01",
        "2026-11-28",
    ]
    assert days(["2026-11-26"], None, "2026-11-28") == ["2026-11-26", "2026-11-27", "2026-11-28"]
    assert days(["2026-11-28"], "2026-11-27", "2026-11-28") == ["2026-11-27", "2026-11-28"]
    assert days([], None, "2026-11-28") == ["2026-11-28"]
    decade = days(["2017-01-01", "2026-12-31"], None, "2026-12-31")
    assert (len(decade), decade[0], decade[-1]) == (3652, "2017-01-01", "2026-12-31")


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        ("0001-01-01", "2026-11-28", ["0500", "1000", "1500", "2000"]),
        ("1969-12-31", "2026-11-28", ["1970", "1980", "1990", "2000", "2010", "2020"]),
        ("2020-05-01", "2026-11-28", ["2021", "2022", "2023", "2024", "2025", "2026"]),
        ("9990-05-01", "9999-12-31", [str(year) for year in range(9991, 10_000)]),
    ],
)
def test_years_on_an_axis(run: Run, first: str, last: str, shown: list[str]) -> None:
    body = """
        const [low, high] = argument.map((day) => Date.parse(day) / 1000);
        return module.years(low, high).map((at) => new Date(at * 1000).toISOString());
    """
    assert run("chart.js", body, [first, last]) == [f"{year}-01-01T00:00:00.000Z" for year in shown]
