"""What came over OTLP and needs a look is seen: models without a price, and calls that stand around others."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.support import browser as browsers
from tests.support.browser import visit
from tests.support.otlp import CHAT, TRACE, JsonObject, make_span, request, span_id, to_json
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, server, wait_until

pytestmark = pytest.mark.slow

expect.set_options(timeout=browsers.PATIENCE)

OUTER: Final = CHAT | {"gen_ai.usage.input_tokens": 150, "gen_ai.usage.output_tokens": 30}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("visible") / "data", event_store="on") as started:
        yield started


class Seen:
    """A project of its own on a running server."""

    def __init__(self, running: Server, name: str) -> None:
        self.running = running
        self.key: str = running.create_key("--project", name)["key"]

    @property
    def http(self) -> str:
        return self.running.http

    def get(self, path: str) -> Any:
        """An answer; the event store may only be starting."""
        found: list[Any] = []

        def is_there() -> bool:
            asked = urllib.request.Request(f"http://{self.http}{path}", headers={"x-api-key": self.key})
            try:
                with urllib.request.urlopen(asked, timeout=PROCESS_PATIENCE) as answer:
                    found.append(json.loads(answer.read(), parse_float=Decimal))
            except urllib.error.HTTPError as error:
                if error.code not in {503, 504}:
                    raise
            return bool(found)

        wait_until(is_there, PROCESS_PATIENCE)
        return found[0]

    def send(self, body: JsonObject) -> str:
        """Send spans; returns their position, as a parameter."""
        headers = {"x-api-key": self.key, "Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://{self.http}/v1/traces", to_json(body), headers)
        with urllib.request.urlopen(asked, timeout=PROCESS_PATIENCE) as answer:
            assert answer.read() == b"{}"
            return f"after={quote(answer.headers['x-ingest-position'])}"


def now(number: int, model: str) -> JsonObject:
    start = int(datetime.now(UTC).timestamp()) * 10**9
    return make_span(number, attributes=CHAT | {"gen_ai.request.model": model}, startTimeUnixNano=str(start))


@pytest.mark.browser
def test_models_without_a_price_are_named_wherever_their_requests_are_counted(running: Server, chrome: Browser) -> None:
    before = scraped(running)
    project = Seen(running, "unpriced")
    models = ("gpt-4o", "house-model", "nobody-knows", "nobody-knows")
    after = project.send(request(*(now(number, model) for number, model in enumerate(models, start=1))))

    groups = project.get(f"/v1/metrics?group_by=model&measures=unpriced&{after}")["groups"]
    found = {group["key"]["model"]: group["values"]["unpriced"] for group in groups}
    assert found == {"gpt-4o": 0, "house-model": 1, "nobody-knows": 2}

    day = datetime.now(UTC).date().isoformat()
    done = running.cli("prices", "audit", "--start", day, "--key", project.key, "--json")
    assert done.returncode == 0, done.stderr
    audited = {each["model"]: (each["unpriced"], each["unpriced_tokens"]) for each in json.loads(done.stdout)["models"]}
    assert audited == {"gpt-4o": (0, 0), "house-model": (1, 120), "nobody-knows": (2, 240)}

    assert {price: count - before.get(price, 0) for price, count in scraped(running).items()} == {"list": 1, "none": 3}

    with visit(chrome, project) as seen:
        seen.sign_in(project.key)
        expect(seen.page.locator("#unpriced")).to_have_text(
            "3 of these requests have no price: they are counted, and add nothing to the spend "
            "(nobody-knows 2, house-model 1)."
        )
        assert not seen.faults


def scraped(running: Server) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{running.http}/metrics", timeout=PROCESS_PATIENCE) as answer:
        text = answer.read().decode()
    found = re.findall(r'^spendstream_events_without_cost_total\{price="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {price: float(count) for price, count in found}


def test_a_call_around_one_of_another_request_is_charged_and_marked_in_its_trace(running: Server) -> None:
    project = Seen(running, "nested")
    project.send(request(make_span(2, 1)))
    after = project.send(request(make_span(1, attributes=OUTER)))
    path = f"/v1/traces/{TRACE}?{after}"
    found = project.get(path)
    marked = {each["span_id"]: each.get("nested_model_call", False) for each in found["spans"]}
    assert marked == {span_id(1): True, span_id(2): False}
    assert {each["kind"] for each in found["spans"]} == {"call"}
    # 150 * $2.50 + 30 * $10, and 100 * $2.50 + 20 * $10 a million
    assert (found["trace"]["calls"], found["trace"]["cost_usd"]) == (2, Decimal("0.000675") + Decimal("0.00045"))

    names = ("used", "duplicates", "conflicts")  # of the organization, whose other projects are still now
    before = [project.get(f"/v1/quota?{after}")[name] for name in names]

    # Once more, together: the outer one would be a wrapper now. The first copy decides, and it is no conflict.
    after = project.send(request(make_span(1, attributes=OUTER), make_span(2, 1)))
    again = project.get(f"/v1/traces/{TRACE}?{after}")
    assert (again["spans"], again["trace"]) == (found["spans"], found["trace"])
    quota = [project.get(f"/v1/quota?{after}")[name] for name in names]
    assert [now - then for now, then in zip(quota, before, strict=True)] == [0, 2, 0]


def test_a_call_around_another_of_its_request_is_charged_once(running: Server) -> None:
    project = Seen(running, "wrapped")
    after = project.send(request(make_span(1, attributes=OUTER), make_span(2, 1)))
    found = project.get(f"/v1/traces/{TRACE}?{after}")
    assert {each["span_id"]: each["kind"] for each in found["spans"]} == {span_id(1): "span", span_id(2): "call"}
    assert [each["input_tokens"] for each in found["spans"]] == [150, 100]  # of a wrapper they are information
    assert (found["trace"]["calls"], found["trace"]["cost_usd"]) == (1, Decimal("0.00045"))
    assert not any(each.get("nested_model_call") for each in found["spans"])
