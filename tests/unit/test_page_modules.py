"""The page's modules by themselves, in a real browser: what is exact in Python must be exact there."""

import json
import math
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from playwright.sync_api import Browser, Route

from processor.core.visible import visible
from server.explore.export_formats import FORMULA
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


@pytest.mark.parametrize(
    ("text", "rest", "value"),
    [
        ('{"a":1,"extra":{"x":[1,"}"]},"asOf":"t"}', '{"a":1,"extra":null,"asOf":"t"}', '{"x":[1,"}"]}'),
        ('{"extra":{}}', '{"extra":null}', "{}"),
        ('{"a":{"extra":{"no":1}},"b":"\\"extra\\":{}"}', '{"a":{"extra":{"no":1}},"b":"\\"extra\\":{}"}', None),
        ('{"a":"\\\\","extra":"s,}","z":2}', '{"a":"\\\\","extra":null,"z":2}', '"s,}"'),
        ('{"a":["extra",{"extra":1}],"extra":-1.5e3}', '{"a":["extra",{"extra":1}],"extra":null}', "-1.5e3"),
        ("{}", "{}", None),
    ],
)
def test_a_member_is_cut_out_unparsed(run: Run, text: str, rest: str, value: str | None) -> None:
    found = run("exact.js", "return module.cutMember(argument, 'extra')", text)
    assert (found["rest"], found["value"]) == (rest, value)
    json.loads(found["rest"])


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


CUSTOM = "start=2026-02-01T0{}:00:00Z&end=2026-02-03T00:00:00Z"
SOURCES = (
    ("", True, "last 30 days", "2026-02-01", None),
    ("range=7d", True, "last 7 days", "2026-02-24", None),
    ("range=month", True, "this month", "2026-03-01", None),
    ("range=all", True, "all time", None, None),
    ("range=yesterday", True, "yesterday", "2026-03-01", "2026-03-01"),
    ("range=24h", False, "last 24 hours", "2026-03-01", None),
    (CUSTOM.format(0), True, "2026-02-01 to 2026-02-02", "2026-02-01", "2026-02-02"),
    (CUSTOM.format(1), False, "2026-02-01 01:00 to 2026-02-03 00:00", "2026-02-01", "2026-02-02"),
    ("range=7d&model=gpt-4o", False, "last 7 days", "2026-02-24", None),
    ("range=7d&environment=production", False, "last 7 days", "2026-02-24", None),
    ("range=all&tz=Asia/Kolkata", False, "last 400 days", "2025-01-29", None),
    ("range=yesterday&tz=Asia/Kolkata", False, "yesterday", "2026-03-02", "2026-03-02"),
)
"""Address, whether the tables answer, the words, the first day and the last; None: from the beginning, until now."""


def test_the_overview_asks_the_tables_for_whole_utc_days_of_everything(run: Run) -> None:
    body = """
        const now = Date.parse("2026-03-02T21:30:00Z");
        return argument.map((address) => {
            const made = module.sourceOf(new URLSearchParams(address), now);
            return [made.isTables, made.words, made.first ?? null, made.last];
        });
    """
    found = run("overview_source.js", body, [address for address, *_ in SOURCES])
    for (address, *wanted), said in zip(SOURCES, found, strict=True):
        assert said == wanted, address


def test_days_without_gaps(run: Run) -> None:
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


# --- views on events -------------------------------------------------------------------------------------------------

MODEL = """
    const { model } = await import("/page/series_model.js");
    const starts = argument.days.map((day) => Date.parse(`${day}T00:00:00Z`));
    const series = argument.values.map((value, at) => ({ start: new Date(starts[at]).toISOString(), cost_usd: value }));
    const total = argument.values.reduce((sum, value) => sum + Number(value), 0);
    const values = { cost_usd: String(total) };
    const answer = { groups: [{ key: { model: "m" }, values, series }], other: null, total: { ...values, series } };
    const end = starts.at(-1) + (argument.open ? 3600000 : 86400000);
    const range = { start: starts[0], end, openEnd: argument.open, zone: "UTC" };
    return module.standsOut(model(answer, starts), "cost_usd", { interval: "day", range });
"""


def mondays(*values: str) -> tuple[list[str], list[str]]:
    """Days of six weeks from Monday, 2 March 2026, on; these values on Mondays, 1 on all others."""
    first = date(2026, 3, 2)
    days = [first + timedelta(days=at) for at in range(7 * len(values))]
    return [str(day) for day in days], [values[at // 7] if at % 7 == 0 else "1" for at in range(len(days))]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("3", "3.1", "2.9", "3", "6.9"), ("2026-03-30", "is 2.3 times the median of 4 other Mondays")),
        (("3", "3.1", "2.9", "3", "0"), ("2026-03-30", "is 0.0 times the median of 4 other Mondays")),
        (("3", "3.1", "2.9", "3", "3.15"), None),  # within three deviations of 0.05
        (("3", "3", "3", "9"), None),  # three others are too few
        (("0", "0", "0", "0", "5"), None),  # nothing to compare with
    ],
)
def test_a_day_stands_out_against_four_others_of_its_weekday(
    run: Run, values: tuple[str, ...], said: tuple[str, str] | None
) -> None:
    days, shown = mondays(*values)
    found = run("explore_hint.js", MODEL, {"days": days, "values": shown, "open": False})
    assert (found and (found["day"], found["text"])) == said


def test_a_day_that_is_not_over_does_not_stand_out(run: Run) -> None:
    days, shown = mondays("3", "3.1", "2.9", "3", "3", "0.1")
    days, shown = days[:36], shown[:36]
    assert run("explore_hint.js", MODEL, {"days": days, "values": shown, "open": True}) is None


BUILT = "The event store is being built"


def test_a_first_build_that_has_nothing_yet_says_only_how_far_it_is(run: Run) -> None:
    building = {"done": "10", "of": "30000", "secondsLeft": None}
    answer = {"asOf": "1970-01-01T00:00:00.000Z", "lagSeconds": "1795872000", "building": building}
    said = run("freshness.js", 'return module.freshness(argument, "UTC")', answer)
    assert said == f"{BUILT}: 0 % of 30,000 messages."


def test_an_answer_says_up_to_when_it_is_complete(run: Run) -> None:
    body = """
        const at = (text) => Date.parse(text);
        return argument.map(([asOf, lag, now]) => module.freshness({ asOf, lagSeconds: lag }, "UTC", at(now)));
    """
    now = "2026-11-28T14:00:00Z"
    answers = [
        ("2026-11-28T13:59:59.600Z", "0.4", now),
        ("2026-11-28T13:59:18Z", "42", now),
        ("1970-01-01T00:00:00.000Z", "1795872000", now),
        ("2026-11-28T11:00:00Z", "10800", now),
        ("2026-11-28T12:30:00Z", "5410", "2026-11-28T14:00:10Z"),
        ("2026-11-28T14:00:19Z", "1", "2026-11-28T14:00:20Z"),
    ]
    assert run("freshness.js", body, answers) == [
        "Complete up to 2026-11-28 13:59:59 UTC.",
        "Complete up to 2026-11-28 13:59:18 UTC, 42 s behind.",
        "The event store has no event yet: it is being built from the log.",
        f"Complete up to 2026-11-28 11:00:00 UTC, 3 h behind. {BUILT}: later events are not here yet.",
        f"Complete up to 2026-11-28 12:30:00 UTC, 2 h behind. {BUILT}: about 10 s left.",
        "Complete up to 2026-11-28 14:00:19 UTC, 1 s behind.",
    ]


@pytest.mark.parametrize(
    ("measures", "other", "multi"),
    [
        (["cost_usd", "requests"], None, []),
        (["cost_usd"], {"cost_usd": 1}, []),
        (["cost_usd"], None, ["tool"]),
        (["latency_ms:p95"], None, []),
    ],
)
def test_totals_over_time_are_those_of_the_one_answer(
    run: Run, measures: list[str], other: Any, multi: list[str]
) -> None:
    body = """
        const [measures, other, multi] = argument;
        const asked = [];
        const real = window.fetch;
        const series = (value) => [{ start: "2026-03-02T00:00:00.000Z", [measures[0]]: value }];
        const groups = ["a", "b"].map((model) => ({ key: { model }, values: { [measures[0]]: 2 }, series: series(2) }));
        const total = { [measures[0]]: 5, series: series(5) };
        const answer = JSON.stringify({ groups, other, multi, total });
        window.fetch = async (path) => (asked.push(path), new Response(answer));
        try {
            const range = { start: Date.parse("2026-03-02"), end: Date.parse("2026-03-03"), zone: "UTC" };
            const question = { measures, groups: ["model"], interval: "day" };
            const { model } = await module.readMetrics(new URLSearchParams(), range, question);
            return [asked.length, model.hasTotal, model.total.at(measures[0], 0)];
        } finally {
            window.fetch = real;
        }
    """
    assert run("metrics_read.js", body, [measures, other, multi]) == [1, True, "5"]


def test_no_cell_is_run_by_a_spreadsheet(run: Run) -> None:
    """Beginnings as in an export of the server's (`export_formats.FORMULA`)."""
    cells = [f"{each}1+1" for each in FORMULA]
    rows = run("csv.js", "return argument.map((cell) => module.csv([[cell]]))", cells)
    assert all(row.lstrip('"').startswith("'") for row in rows)
    assert run("csv.js", "return module.csv([argument])", ["-1.5", "a=b", None]) == "-1.5,a=b,\r\n"


FIND = """
    const answered = window.fetch;
    const held = new Map();
    window.fetch = async (path, { signal }) => {
        const id = path.split("/").at(-1);
        if (path.startsWith("/v1/users/") && id === "held") await new Promise((resume) => held.set(id, resume));
        return new Response(path.startsWith("/v1/traces") ? '{"traces":[]}' : '{"sessions":[]}');
    };
    const view = new AbortController();
    const first = module.find("held", view.signal, () => {});
    while (!held.size) await new Promise((resume) => setTimeout(resume));
    if (argument === "left") view.abort();
    const second = argument === "left" ? null : await module.find("other", view.signal, () => {});
    held.get("held")();
    const found = [await first, second, location.hash];
    window.fetch = answered;
    location.hash = "";
    return found;
"""


@pytest.mark.parametrize(
    ("after", "found"), [("left", [False, None, ""]), ("another search", [False, True, "#/users/other"])]
)
def test_a_search_that_is_over_goes_nowhere(run: Run, after: str, found: list[Any]) -> None:
    """Its last answer comes when its view has been left, or when something else has been searched for."""
    assert run("find.js", FIND, after) == found


# --- whether a difference is larger than chance ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (2.2281388519649385, 10, 0.05),
        (3.169272672616951, 10, 0.01),
        (1.983971518449634, 100, 0.05),
        (2.5758293035489004, 1e7, 0.01),  # a normal
    ],
)
def test_the_p_of_a_t_is_that_of_the_tables(run: Run, t: float, freedom: float, p: float) -> None:
    assert run("significance.js", "return module.studentP(argument[0], argument[1])", [t, freedom]) == pytest.approx(
        p, rel=1e-5
    )


def test_welch_and_proportions_by_hand(run: Run) -> None:
    sides = [{"mean": 20.8, "sd": 2.8, "n": 15}, {"mean": 23.0, "sd": 1.4, "n": 15}]
    t = (20.8 - 23.0) / (2.8**2 / 15 + 1.4**2 / 15) ** 0.5
    freedom = (2.8**2 / 15 + 1.4**2 / 15) ** 2 / ((2.8**2 / 15) ** 2 / 14 + (1.4**2 / 15) ** 2 / 14)
    by_formula = run("significance.js", "return module.studentP(argument[0], argument[1])", [t, freedom])
    assert run("significance.js", "return module.welch(...argument)", sides) == pytest.approx(by_formula, rel=1e-12)
    rates = [{"hits": 30, "n": 100}, {"hits": 30, "n": 100}]
    assert run("significance.js", "return module.proportions(...argument)", rates) == pytest.approx(1)
    rates = [{"hits": 40, "n": 400}, {"hits": 68, "n": 400}]
    z = (0.17 - 0.1) / (0.135 * 0.865 * (2 / 400)) ** 0.5
    two_sided = math.erfc(z / 2**0.5)
    assert run("significance.js", "return module.proportions(...argument)", rates) == pytest.approx(two_sided, rel=1e-4)


def test_holm_holds_for_all_that_is_shown(run: Run) -> None:
    found = run("significance.js", "return module.holm(argument)", [0.01, None, 0.04, 0.03, 0.005])
    assert found == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), pytest.approx(0.02)]
    # Five measures of which one would be "significant" by itself: together it is not.
    assert run("significance.js", "return Math.min(...module.holm(argument))", [0.009, 0.2, 0.4, 0.6, 0.8]) > 0.01
