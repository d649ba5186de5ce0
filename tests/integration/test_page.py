"""The page in a real browser: what somebody sees who signs in, types, clicks and waits."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support import browser as browsers
from tests.support.axe import violations
from tests.support.browser import PHONE, Visit, choose_range, ingest, read, visit
from tests.support.events import ABSENT, make_event
from tests.support.server import KEY, Server, server
from tests.support.tenants import Tenant, Tenants
from tests.support.traffic import month

pytestmark = [pytest.mark.browser, pytest.mark.slow]

UNKNOWN: Final = "lqt_" + "0" * 64
HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "../../healthz",
    "a/b?c#d&e=%2F",
    "ünï çødé",
    "javascript:alert(1)",
)

expect.set_options(timeout=browsers.PATIENCE)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a month of traffic, users with hostile names, and events of nobody; tests leave it as it is."""
    with server(tmp_path_factory.mktemp("busy") / "data") as started:
        ingest(started, month(1500, datetime.now(UTC)))
        ingest(started, [at_now(user_id=name, cost_usd=Decimal("0.000000000001")) for name in HOSTILE])
        last = ingest(
            started,
            [at_now(cost_usd=Decimal("0.123456789012")), at_now(user_id="old", timestamp="2024-02-29T12:00:00Z")],
        )
        read(started, f"/v1/users?limit=1&after={last}")
        yield started


@pytest.fixture(scope="module")
def tenants(busy: Server) -> Tenants:
    """Projects without events, beside the busy one."""
    return Tenants(busy)


@pytest.fixture(scope="module")
def odd(tenants: Tenants) -> Tenant:
    """A project with users whose ids an address or the eye takes for something else."""
    made = tenants.new()
    count_events(made, [at_now(user_id=name, cost_usd=Decimal("0.25")) for name in ODD])
    return made


@pytest.fixture
def fresh(tenants: Tenants) -> Tenant:
    """A project of the test's own, without events."""
    return tenants.new()


def at_now(**fields: Any) -> dict[str, Any]:
    """An event of this moment."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return make_event(**{"timestamp": now, **fields})


def count_events(at: Server | Tenant, events: list[dict[str, Any]]) -> None:
    """Send events, and wait until the tables have them: the page that is opened then begins with them."""
    read(at, f"/v1/users?limit=1&after={ingest(at, events)}")


def dollars(text: str) -> str:
    """A sum as the page writes it."""
    whole, _, fraction = text.partition(".")
    return f"${int(whole):,}.{fraction:0<2}"


def signed_in(seen: Visit, at: Server | Tenant) -> Page:
    seen.sign_in(at.key)
    expect(seen.page.get_by_role("heading", name="Who spends what")).to_be_hidden()
    return seen.page


def cli(at: Server | Tenant, *command: str) -> Any:
    """What a command of the command line prints."""
    done = at.cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def users_shown(page: Page) -> list[str]:
    return page.locator("#users tbody th").all_inner_texts()


# --- the tables ------------------------------------------------------------------------------------------------------


def test_it_shows_what_the_reads_say_to_the_last_digit(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        expect(page.locator("#users tbody tr")).to_have_count(50)
        first = (datetime.now(UTC) - timedelta(days=29)).strftime("%Y-%m-%d")
        costs = read(busy, f"/v1/costs?start={first}T00:00:00Z")
        assert page.locator("#t-month").inner_text() == dollars(costs["monthToDate"])
        assert page.locator("#t-today").inner_text() == dollars(costs["daily"][-1]["cost_usd"])
        assert costs["total"]["cost_usd"] in page.locator("#chart-sub").inner_text()
        models = [row.locator("th, td").all_inner_texts() for row in page.locator("#models tbody tr").all()]
        assert [(row[0], row[1], row[2], row[3]) for row in models] == [
            (row["model"], row["provider"], dollars(row["cost_usd"]), f"{int(row['requests']):,}")
            for row in costs["byModel"]
        ]
        assert [row[7].split()[0] for row in models] == [row["errors"] for row in costs["byModel"]]
        for row, shown in zip(costs["byModel"], models, strict=True):
            took = float(row["latencyMs"]["p50"])
            said, unit = shown[8].split(" / ")[0].split()
            assert round(float(said) * {"ms": 1, "s": 1000}[unit]) == pytest.approx(took, rel=0.005, abs=0.5)
        listed = read(busy, f"/v1/users?start={first}&limit=50")
        rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#users tbody tr").all()]
        assert [(row[0], row[1]) for row in rows] == [
            (row["user_id"] or "no user", dollars(row["cost_usd"])) for row in listed["users"]
        ]
        assert page.locator("#users-sub").inner_text().startswith(f"{listed['total']['users']} users")
        page.get_by_text("Show as a table").first.click()
        cells = page.locator("#chart tbody tr", has_text=costs["daily"][-1]["day"]).locator("td")
        expect(cells.first).to_be_visible()
        day = cells.all_inner_texts()
        assert sum(Decimal(text.strip("$")) for text in day) == Decimal(costs["daily"][-1]["cost_usd"])
        page.locator("#chart .u-over").hover(position={"x": 5, "y": 50})
        expect(page.locator("#chart .when")).to_have_text(first)
        legend = page.locator("#chart .legend b").all_inner_texts()
        assert sum(Decimal(text.strip("$")) for text in legend) == sum(
            Decimal(row["cost_usd"]) for row in costs["daily"] if row["day"] == first
        )
        assert (seen.faults, seen.strangers) == ([], [])


def test_periods_and_orders_are_those_of_the_reads(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        choose_range(page, "All time")
        expect(page.locator("#users-sub")).to_contain_text("all time")
        dearest = read(busy, "/v1/users?limit=50")
        expect(page.locator("#users tbody th")).to_have_text([row["user_id"] or "no user" for row in dearest["users"]])
        page.get_by_role("button", name="Last seen").click()
        expect(page.locator("#users th[aria-sort]")).to_have_text("Last seen")
        listed = read(busy, "/v1/users?sort=last_seen&limit=50")
        expect(page.locator("#users tbody th")).to_have_text([row["user_id"] or "no user" for row in listed["users"]])
        total = int(listed["total"]["users"])
        for shown in range(100, total + 50, 50):
            page.get_by_role("button", name="Show more").click()
            expect(page.locator("#users tbody th")).to_have_count(min(shown, total))
        expect(page.get_by_role("button", name="Show more")).to_be_hidden()
        assert users_shown(page)[-1] == "old"
        choose_range(page, "Last 7 days")
        expect(page.locator("#users-sub")).to_contain_text("last 7 days")
        now = datetime.now(UTC)
        first, last = (f"{now - timedelta(days=days):%Y-%m-%d}" for days in (9, 3))
        page.goto(f"{seen.origin}/#/?start={first}T00:00:00.000Z&end={last}T00:00:00.000Z")
        expect(page.locator("#chart-sub")).to_contain_text(f"from {first} to {now - timedelta(days=4):%Y-%m-%d}")
        few = read(busy, f"/v1/users?start={first}&end={last}&sort=last_seen&limit=50")
        expect(page.locator("#users tbody th")).to_have_text([row["user_id"] or "no user" for row in few["users"]])
        spent = read(busy, f"/v1/costs?start={first}T00:00:00Z&end={last}T00:00:00Z")["total"]["cost_usd"]
        assert page.locator("#chart-sub").inner_text().startswith(dollars(spent))
        assert seen.faults == []


def test_a_users_page(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        page.locator("#users tbody a").first.click()
        expect(page.locator("#p-cost")).not_to_be_empty()
        name = page.locator("#person-title").inner_text()
        first = (datetime.now(UTC) - timedelta(days=29)).strftime("%Y-%m-%d")
        user = read(busy, f"/v1/users/{quote(name, safe='')}?start={first}")
        assert page.title() == f"{name} · spendstream"
        assert page.locator("#p-cost").inner_text() == dollars(user["cost_usd"])
        assert page.locator("#p-requests").inner_text() == f"{int(user['requests']):,}"
        assert page.locator("#p-models tbody td.money").all_inner_texts() == [
            dollars(row["cost_usd"]) for row in user["byModel"]
        ]
        page.reload()
        expect(page.locator("#person-title")).to_have_text(name)
        page.go_back()
        expect(page.locator("#users tbody tr")).to_have_count(50)
        page.goto(f"{seen.origin}/#/users/nobody%20here")
        expect(page.get_by_text("This project has no user with this id")).to_be_visible()
        assert [fault for fault in seen.faults if "404" not in fault] == []


def test_hostile_names_are_text(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        for name in HOSTILE:
            page.get_by_label("Search").fill(name)
            expect(page.locator("#users tbody th")).to_have_text([name])
            page.locator("#users tbody a").click()
            expect(page.locator("#person-title")).to_have_text(name)
            expect(page.locator("#p-cost")).to_have_text("$0.000000000001")
            assert (seen.faults, seen.strangers) == ([], []), name
            page.go_back()


ODD: Final = {
    ".": ".",
    "..": "..",
    "%2e": "%2e",
    "./x": "./x",
    "//": "//",
    " ": "␣",
    "\u3000": r"\u3000",
    "\u200b": r"\u200b",
}
"""Users whose ids an address or the eye takes for something else, and what is shown of them."""


def test_every_user_that_is_listed_can_be_opened(chrome: Browser, odd: Tenant) -> None:
    with visit(chrome, odd) as seen:
        page = signed_in(seen, odd)
        for text in ODD.values():
            page.get_by_role("link", name=text, exact=True).click()
            expect(page.locator("#person-title")).to_have_text(text)
            expect(page.locator("#p-cost")).to_have_text("$0.25")
            assert page.title() == f"{text} · spendstream"
            page.reload()
            expect(page.locator("#p-cost")).to_have_text("$0.25")
            assert (seen.faults, seen.strangers) == ([], []), text
            page.go_back()


def test_an_id_is_found_by_what_is_shown_of_it(chrome: Browser, odd: Tenant) -> None:
    with visit(chrome, odd) as seen:
        page = signed_in(seen, odd)
        for text in ("␣", r"\u3000"):
            page.get_by_label("Search").fill(text)
            expect(page.locator("#users tbody th")).to_have_text([text])


def test_all_time_has_no_beginning(chrome: Browser, fresh: Tenant) -> None:
    days = {"0001-01-01": "0.25", "1969-12-31": "0.0625", "1970-01-01": "0.125"}
    count_events(
        fresh, [at_now(user_id=day, cost_usd=Decimal(cost), timestamp=f"{day}T00:00:00Z") for day, cost in days.items()]
    )
    count_events(fresh, [at_now(user_id="now", cost_usd=Decimal("0.5"))])
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        expect(page.locator("#chart-sub")).to_contain_text("$0.50 in the last 30 days")
        choose_range(page, "All time")
        expect(page.locator("#chart-sub")).to_have_text("$0.9375 in all")
        expect(page.locator("#models tbody td.money").first).to_have_text("$0.9375")
        expect(page.locator("#users tbody th")).to_have_text(["now", "0001-01-01", "1970-01-01", "1969-12-31"])
        page.get_by_text("Show as a table").first.click()
        expect(page.locator("#chart tbody tr")).to_have_count(len(days) + 1)
        rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#chart tbody tr").all()]
        assert rows[1:] == [[day, dollars(days[day])] for day in sorted(days, reverse=True)]
        assert rows[0][1] == "$0.50"
        page.locator("#users").get_by_role("link", name="0001-01-01").click()
        expect(page.locator("#p-cost")).to_have_text("$0.25")
        expect(page.locator("#person-sub")).to_contain_text("first event 0001-01-01 00:00")
        assert (seen.faults, seen.strangers) == ([], [])


def test_the_footer_says_what_is_so(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        expect(page.locator("#models thead th").last).to_have_text("Latency")
        assert "atency" not in page.locator("footer").inner_text()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_what_is_wrong_with_it(chrome: Browser, busy: Server) -> None:
    blind = busy.create_key("--scopes", "ingest")["key"]
    with visit(chrome, busy) as seen:
        page = seen.page
        for key, said in (
            ("hunter2", "lqt_ and 64 hexadecimal characters"),
            (UNKNOWN, "not known here, has expired or was revoked"),
            (blind, "may not read"),
        ):
            seen.sign_in(key)
            expect(page.get_by_role("alert")).to_contain_text(said)
            expect(page.get_by_label("API key")).to_be_focused()
            assert page.evaluate("sessionStorage.length") == 0
        assert page.locator("#overview").is_hidden()
        assert page.url == f"{seen.origin}/"
        signed_in(seen, busy)
        expect(page.locator("#users tbody tr").first).to_be_visible()
        assert page.get_by_label("API key").input_value() == ""


def test_the_key_stays_in_the_tab_and_goes_with_sign_out(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        expect(page.locator("#users tbody tr").first).to_be_visible()
        page.reload()
        expect(page.locator("#users tbody tr").first).to_be_visible()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert KEY not in page.content()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        assert "mobile-" not in page.locator("body").inner_text()
        page.reload()
        expect(page.get_by_label("API key")).to_be_visible()


def test_a_key_that_is_revoked_signs_out(chrome: Browser, fresh: Tenant) -> None:
    key = fresh.server.create_key("--scopes", "read", "--project", fresh.name, "--org", fresh.name)["key"]
    count_events(fresh, [at_now(user_id="u")])
    with visit(chrome, fresh) as seen:
        seen.sign_in(key)
        expect(seen.page.locator("#users tbody tr").first).to_be_visible()
        cli(fresh, "keys", "revoke", key)
        expect(seen.page.get_by_role("alert")).to_contain_text("revoked")
        assert seen.page.evaluate("sessionStorage.length") == 0


# --- live ------------------------------------------------------------------------------------------------------------


def test_pain_23_the_first_event_by_the_line_that_the_page_gives(chrome: Browser, fresh: Tenant) -> None:
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        expect(page.get_by_role("heading", name="No events yet")).to_be_visible()
        expect(page.locator("#t-month")).to_have_text("$0.00")
        expect(page.locator("#models table")).to_be_visible()
        expect(page.locator("#users-none")).to_have_text("No events yet.")
        line = page.locator("#first-event").inner_text()
        assert fresh.key not in line
        sent = subprocess.run(
            ["bash", "-c", line.replace("lqt_your_api_key_here", fresh.key)], capture_output=True, check=True
        )
        assert json.loads(sent.stdout) == {"accepted": 1}
        expect(page.locator("#users tbody th")).to_have_text(["first-user"])
        expect(page.locator("#t-today")).to_have_text("$0.0034")
        expect(page.get_by_role("heading", name="No events yet")).to_be_hidden()
        others = page.evaluate("import('/page/examples.js').then((made) => [made.EXAMPLE_PYTHON, made.EXAMPLE_OTLP])")
        python, variables = (text.replace("lqt_your_api_key_here", fresh.key) for text in others)
        subprocess.run([sys.executable, "-c", python], capture_output=True, check=True)
        expect(page.locator("#t-today")).to_have_text("$0.0068")
        instrumented = f"{variables}\nexec {shlex.join([sys.executable, '-c', INSTRUMENTED])}"
        subprocess.run(["bash", "-c", instrumented], capture_output=True, check=True)
        expect(page.locator("#t-errors-sub")).to_contain_text("0 of 3 requests")
        assert (seen.faults, seen.strangers) == ([], [])


INSTRUMENTED: Final = """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
call = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o"}
with provider.get_tracer("example").start_as_current_span("chat gpt-4o", attributes=call):
    pass
"""
"""A program with an instrumentation, which takes all it knows of the server from its environment."""


def test_what_is_ingested_shows_by_itself(chrome: Browser, fresh: Tenant) -> None:
    ingest(fresh, [at_now(user_id="a", cost_usd=Decimal("1.5"))])
    # Far from UTC and from English: days and digits are the server's all the same.
    with visit(chrome, fresh, timezone_id="Pacific/Kiritimati", locale="de-DE") as seen:
        page = signed_in(seen, fresh)
        expect(page.locator("#t-today")).to_have_text("$1.50")
        expect(page.locator("#live")).to_have_text("Live")
        page.evaluate("window.here = true")
        ingest(fresh, [at_now(user_id="b", cost_usd=Decimal("2.000000000001"), status="timeout")])
        expect(page.locator("#t-today")).to_have_text("$3.500000000001")
        expect(page.locator("#users tbody th")).to_have_text(["b", "a"])
        expect(page.locator("#t-pace")).to_have_text("+$2.000000000001 since the page was opened")
        expect(page.locator("#t-errors-sub")).to_contain_text("1 of 2 requests")
        choose_range(page, "All time")
        expect(page.locator("#users-sub")).to_contain_text("all time")
        ingest(fresh, [at_now(user_id="a", cost_usd=Decimal(10)), at_now(user_id=ABSENT, cost_usd=Decimal("0.1"))])
        expect(page.locator("#users tbody th")).to_have_text(["a", "b", "no user"])
        expect(page.locator("#users tbody td.money").first).to_have_text("$11.50")
        page.get_by_role("link", name="a", exact=True).click()
        expect(page.locator("#p-cost")).to_have_text("$11.50")
        ingest(fresh, [at_now(user_id="a", cost_usd=Decimal("0.25"))])
        expect(page.locator("#p-cost")).to_have_text("$11.75")
        assert page.evaluate("window.here") is True, "it was not loaded anew"
        assert (seen.faults, seen.strangers) == ([], [])


def test_it_comes_back_with_the_server(chrome: Browser, tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        it_comes_back(chrome, started)


def it_comes_back(chrome: Browser, fresh: Server) -> None:
    count_events(fresh, [at_now(user_id="a", cost_usd=Decimal("1.5"))])
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        expect(page.locator("#live")).to_have_text("Live")
        fresh.stop()
        expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
        fresh.start()
        ingest(fresh, [at_now(user_id="b", cost_usd=Decimal(2))])
        expect(page.locator("#users tbody th")).to_have_text(["b", "a"])
        expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_hidden()
        expect(page.locator("#live")).to_have_text("Live")


def test_a_project_too_large_to_follow_is_asked(chrome: Browser, fresh: Tenant) -> None:
    count_events(fresh, [at_now(user_id="a", cost_usd=Decimal(1))])
    with visit(chrome, fresh) as seen:
        asked: list[str] = []
        seen.page.on("request", lambda request: asked.append(request.url))

        def more_users(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.text().replace('"users":1,', '"users":20001,'))

        seen.page.route("**/v1/users?*", more_users)
        page = signed_in(seen, fresh)
        expect(page.locator("#live")).to_have_text("Read every 5 seconds")
        ingest(fresh, [at_now(user_id="a", cost_usd=Decimal(2))])
        expect(page.locator("#t-today")).to_have_text("$3.00")
        page.get_by_role("link", name="a", exact=True).click()
        expect(page.locator("#p-cost")).to_have_text("$3.00")
        page.reload()
        expect(page.locator("#p-cost")).to_have_text("$3.00")
        expect(page.locator("#live")).to_have_text("Read every 5 seconds")
        ingest(fresh, [at_now(user_id="a", cost_usd=Decimal(3))])
        expect(page.locator("#p-cost")).to_have_text("$6.00")
        assert not any("/v1/stream" in url for url in asked)
        assert seen.faults == []


def test_ten_thousand_users(chrome: Browser, fresh: Tenant) -> None:
    count_events(fresh, [at_now(user_id=f"user-{n:05}", cost_usd=Decimal(n) / 10**6) for n in range(10_000)])
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        expect(page.locator("#users-sub")).to_have_text("10,000 users, last 30 days")
        for period in ("Last 30 days", "All time"):
            choose_range(page, period)
            expect(page.locator("#users tbody th").first).to_have_text("user-09999")
            page.get_by_label("Search").fill("USER-00007")
            expect(page.locator("#users tbody th")).to_have_text(["user-00007"])
            expect(page.locator("#users tbody td.money")).to_have_text(["$0.000007"])
            page.get_by_label("Search").fill("user-0012")
            expect(page.locator("#users-sub")).to_contain_text("10 found")
            page.get_by_label("Search").fill("nobody")
            expect(page.get_by_text("No user's id contains that")).to_be_visible()
            page.get_by_label("Search").fill("")
            expect(page.locator("#users tbody tr")).to_have_count(50)
        ingest(fresh, [at_now(user_id="user-00000", cost_usd=Decimal(5))])
        expect(page.locator("#users tbody th").first).to_have_text("user-00000")
        assert (seen.faults, seen.strangers) == ([], [])


def test_the_quota_says_when_it_ends(chrome: Browser, fresh: Tenant) -> None:
    cli(fresh, "orgs", "set", fresh.name, "--monthly-quota", "4")
    count_events(fresh, [at_now(user_id="a")])
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        expect(page.locator("#t-quota")).to_have_text("25.0%")
        expect(page.locator("#t-quota-sub")).to_contain_text("1 of 4 events")
        ingest(fresh, [at_now(user_id="a") for _ in range(3)])
        expect(page.locator("#t-quota-sub")).to_contain_text("used up: events are refused until")


# --- everybody -------------------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page, press = seen.page, seen.page.keyboard.press

        def tab_to(wanted: str) -> None:
            for _ in range(60):
                press("Tab")
                if page.locator(wanted).first.evaluate("element => element === document.activeElement"):
                    return
            pytest.fail(f"no way to {wanted} with the tabulator")

        tab_to("#key")
        page.keyboard.type(busy.key)
        press("Enter")
        expect(page.locator("#users tbody tr").first).to_be_visible()
        expect(page.locator("#content")).to_be_focused()
        tab_to("#users thead button >> nth=1")
        press("Enter")
        expect(page.locator("#users th[aria-sort]")).to_have_text("Requests")
        for _ in range(2):
            press("Shift+Tab")
        tab_to("#users tbody a")
        name = page.evaluate("document.activeElement.textContent")
        press("Enter")
        expect(page.locator("#person-title")).to_have_text(name)
        expect(page.locator("#person-title")).to_be_focused()
        press("Shift+Tab")
        expect(page.locator("#back")).to_be_focused()
        press("Enter")
        expect(page.locator("#users tbody tr").first).to_be_visible()
        page.reload()
        press("Tab")
        expect(page.locator("#skip")).to_be_focused()
        press("Enter")
        expect(page.locator("#content")).to_be_focused()
        assert seen.faults == []


def test_the_title_of_a_user_has_the_focus_whatever_ends_meanwhile(chrome: Browser, busy: Server) -> None:
    """A reading of the overview that ended just then hid the user's page for a moment, and the focus was gone."""
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        link = page.locator("#users tbody a").first
        expect(link).to_be_visible()
        page.evaluate(
            """() => new MutationObserver((_, observer) => {
                document.querySelector("#person").hidden = true;
                observer.disconnect();
            }).observe(document.querySelector("#person"), { attributeFilter: ["hidden"] })"""
        )
        link.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#person-body")).to_be_visible()
        expect(page.locator("#person-title")).to_be_focused()
        assert seen.faults == []


def test_an_overview_that_is_left_before_it_is_read_is_not_busy(chrome: Browser, busy: Server) -> None:
    """It stood as busy behind the other views until somebody came back to it."""
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        expect(page.locator("#users tbody a").first).to_be_visible()
        expect(page.locator("[aria-busy]")).to_have_count(0)
        # The next reading does not begin yet, and is one that another view can still prevent.
        page.evaluate("() => { window.later = setTimeout; setTimeout = (f, ms) => later(f, ms + 1000); }")
        page.evaluate("location.hash = '#/?range=7d'")
        expect(page.locator("#overview[aria-busy]")).to_have_count(1)
        page.evaluate("location.hash = '#/prompts'")
        expect(page.locator("#view-prompts")).to_be_visible()
        page.evaluate("() => { setTimeout = later; }")
        expect(page.locator("[aria-busy]")).to_have_count(0)
        page.evaluate("location.hash = '#/'")
        expect(page.locator("#users tbody a").first).to_be_visible()
        expect(page.locator("[aria-busy]")).to_have_count(0)


@pytest.mark.parametrize(("scheme", "size"), [("light", browsers.DESKTOP), ("dark", PHONE)], ids=["desktop", "phone"])
def test_axe_finds_nothing(chrome: Browser, odd: Tenant, fresh: Tenant, scheme: str, size: dict[str, int]) -> None:
    """With few users: axe takes as long as there are rows."""
    options: dict[str, Any] = {"watch": False, "bypass_csp": True, "color_scheme": scheme, "viewport": size}
    with visit(chrome, odd, **options) as seen:
        page = seen.page
        assert violations(page) == []
        seen.sign_in(UNKNOWN)
        expect(page.get_by_role("alert")).not_to_be_empty()
        assert violations(page) == []
        signed_in(seen, odd)
        expect(page.locator("#users tbody tr").first).to_be_visible()
        page.get_by_text("Show as a table").first.click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
        page.locator("#users tbody a").first.click()
        expect(page.locator("#p-cost")).not_to_be_empty()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with visit(chrome, fresh, **options) as seen:
        signed_in(seen, fresh)
        expect(seen.page.get_by_role("heading", name="No events yet")).to_be_visible()
        assert violations(seen.page) == []


def test_budgets_and_how_they_fill(chrome: Browser, fresh: Tenant) -> None:
    cli(fresh, "budgets", "set", "--project", fresh.name, "--usd", "1", "--window", "day", "--user", HOSTILE[0])
    with visit(chrome, fresh) as seen:
        page = signed_in(seen, fresh)
        section = page.get_by_role("region", name="Budgets", exact=True)
        row = section.get_by_role("row").nth(1)
        expect(row).to_contain_text("$0.00")
        expect(section).to_contain_text("1 set, none used up")
        ingest(fresh, [at_now(user_id=HOSTILE[0], cost_usd=Decimal("0.812345678901"))])
        expect(row).to_contain_text("$0.812345678901")
        expect(row).to_contain_text("81.2%")
        expect(row.get_by_role("cell").last).to_have_text("80%")
        ingest(fresh, [at_now(user_id=HOSTILE[0], cost_usd=Decimal(1))])
        expect(row.get_by_role("cell").last).to_have_text("100%")
        expect(section).to_contain_text("1 of 1 used up")
        choose_range(page, "Last 7 days")
        row.get_by_role("link").click()
        expect(page.get_by_role("heading", name=HOSTILE[0])).to_be_visible()
        assert page.url.endswith("?range=7d")
        assert (seen.faults, seen.strangers) == ([], [])


def test_light_and_dark_by_hand(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy, color_scheme="light") as seen:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = seen.page.evaluate(ground)
        button = seen.page.get_by_role("button", name="Theme")
        for name, differs in (("light", False), ("dark", True)):
            button.click()
            expect(button).to_have_text(f"Theme: {name}")
            assert (seen.page.evaluate(ground) != light) is differs
        seen.page.reload()
        assert seen.page.evaluate(ground) != light
        expect(button).to_have_text("Theme: dark")


def test_the_policy_holds(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = signed_in(seen, busy)
        page.evaluate("""() => {
            const image = document.createElement("img");
            image.src = "https://elsewhere.example/pixel.gif";
            document.body.append(image);
        }""")
        refused = page.evaluate("""async () => {
            const tries = [
                () => { document.body.innerHTML = "<b>markup</b>"; },
                () => { document.createElement("script").src = "data:text/javascript,window.owned=1"; },
                () => { document.createElement("script").text = "window.owned = 1"; },
                () => fetch("https://elsewhere.example/"),
            ];
            let count = 0;
            for (const attempt of tries) try { await attempt(); } catch { count += 1; }
            return count;
        }""")
        assert refused == 4
        assert page.evaluate("window.owned") is None
        assert seen.strangers == []


# --- the pages of the API --------------------------------------------------------------------------------------------


def test_the_api_is_shown_and_can_be_tried(chrome: Browser, busy: Server) -> None:
    with visit(chrome, busy) as seen:
        page = seen.page
        page.goto(f"{seen.origin}/docs")
        expect(page.locator("#docs .title")).to_contain_text("spendstream")
        expect(page.locator("#docs .opblock")).to_have_count(38)
        page.locator(".opblock-summary", has_text="/healthz").click()
        page.locator(".opblock.is-open .execute").click()
        expect(page.locator(".opblock.is-open .live-responses-table tbody .response-col_status").first).to_contain_text(
            "200"
        )
        assert (seen.faults, seen.strangers) == ([], [])
