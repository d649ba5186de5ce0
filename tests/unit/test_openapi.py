"""The OpenAPI document: valid, complete, and true of what the doors answer."""

import json
from typing import Any, Final

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from processor.core.events.fields import NAMES
from server.http_api.openapi import EXAMPLE_EVENT, document
from server.http_api.openapi_schemas import ANSWERS, components
from server.http_api.routes import create_app
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Answer, open_doors
from tests.support.events import make_event, to_json_line

DOCUMENT: Final = document("1.0")
UNDOCUMENTED: Final = {"/", "/docs"}
"""Pages for people, and what belongs to them."""


def is_valid(answer: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(answer)


def test_it_is_an_openapi_document() -> None:
    OpenAPIV31SpecValidator(json.loads(json.dumps(DOCUMENT))).validate()


async def test_every_route_is_in_it_and_nothing_else() -> None:
    async with open_doors(apis=["http"]) as doors:
        app = create_app(doors.services, desk=object(), registry=CollectorRegistry())  # type: ignore[arg-type]
        routes = {
            (route.method.lower(), route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    there = {
        (method, path)
        for method, path in routes
        if path not in UNDOCUMENTED and not path.startswith(("/page/", "/docs/"))
    }
    told = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert there == told


def test_the_event_has_every_field_and_says_which_it_needs() -> None:
    event = components()["Event"]
    assert set(event["properties"]) == NAMES
    optional = {name for name in NAMES if name not in event["required"]}
    assert optional == {
        *("parent_span_id", "ttft_ms", "cached_tokens", "error_code", "error_message", "finish_reason", "user_id"),
        *("session_id", "tags", "tools_used", "eval_scores", "prompt_hash", "kind", "name", "cache_write_tokens"),
        "reasoning_tokens",
        *event["else"]["required"],
    }
    of_calls = ["provider", "model", "operation", "input_tokens", "output_tokens", "cost_usd", "stream"]
    assert event["else"]["required"] == of_calls
    span = {name: value for name, value in json.loads(EXAMPLE_EVENT).items() if name not in of_calls}
    is_valid({**span, "kind": "span", "name": "plan"}, "Event")
    schema = {"$ref": "#/components/schemas/Event", "components": DOCUMENT["components"]}
    for wrong in (span, {**span, "kind": "call", "name": "plan"}, {**span, "kind": "span"}):
        assert not Draft202012Validator(schema).is_valid(wrong)
    is_valid(json.loads(EXAMPLE_EVENT), "Event")
    is_valid(json.loads(to_json_line(make_event())), "Event")


@pytest.mark.parametrize(
    ("field", "value"),
    [("provider", "acme"), ("input_tokens", -1), ("cost_usd", 1_000_001), ("model", ""), ("latency_ms", "slow")],
)
def test_the_events_rules_are_in_it(field: str, value: Any) -> None:
    schema = {"$ref": "#/components/schemas/Event", "components": DOCUMENT["components"]}
    event = {**json.loads(EXAMPLE_EVENT), field: value}
    assert [error.path[0] for error in Draft202012Validator(schema).iter_errors(event)] == [field]


async def test_the_example_is_taken() -> None:
    content = DOCUMENT["paths"]["/v1/ingest"]["post"]["requestBody"]["content"]
    [(media, shown)] = content.items()
    async with open_doors(apis=["http"]) as doors:
        answer = await doors.post(shown["example"].encode(), Content_Type=media)
        assert answer.status == 202
        is_valid(answer.json, "Receipt")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/users", "UserPage"),
        ("/v1/users/u", "UserDetail"),
        ("/v1/users/?user_id=..", "UserDetail"),
        ("/v1/costs", "Costs"),
        ("/v1/budgets", "BudgetList"),
        ("/healthz", "Health"),
        ("/readyz", "Readiness"),
    ],
)
async def test_answers_are_as_it_says(path: str, name: str) -> None:
    async with open_doors(apis=["http"]) as doors:
        answer = await doors.get(path)
        assert answer.status == 200
        is_valid(answer.json, name)
        is_documented("get", path.partition("?")[0].replace("/v1/users/u", "/v1/users/{user_id}"), answer)
        doors.health.reasons.append("the log cannot take events")
        unready = await doors.get("/readyz")
        assert unready.status == 503
        is_valid(unready.json, "Readiness")


async def test_refusals_are_as_it_says() -> None:
    async with open_doors(apis=["http"]) as doors:
        line = to_json_line(make_event())
        for wanted, answer in (
            (202, await doors.post(line + b"\n{}")),
            (400, await doors.post(b"{}")),
            (401, await doors.post(line, x_api_key=None)),
            (403, await doors.post(line, x_api_key=READ_ONLY)),
            (413, await doors.post(b"x" * (21 << 20))),
            (415, await doors.post(line, Content_Type="text/plain")),
            (415, await doors.post(line, Content_Encoding="br")),
        ):
            assert answer.status == wanted
            is_documented("post", "/v1/ingest", answer)
        for wanted, path, key in (
            (400, "/v1/quota?sort=name", SECRET),
            (401, "/v1/quota", "lqt_" + "0" * 64),
            (403, "/v1/quota", INGEST_ONLY),
            (403, "/v1/quota?projectId=other", SECRET),
        ):
            answer = await doors.get(path, x_api_key=key)
            assert answer.status == wanted
            is_documented("get", "/v1/quota", answer)


def is_documented(method: str, path: str, answer: Answer) -> None:
    told = DOCUMENT["paths"][path][method]["responses"][str(answer.status)]
    [(media, content)] = told["content"].items()
    assert answer.headers["Content-Type"].partition(";")[0] == media
    Draft202012Validator({**content["schema"], "components": DOCUMENT["components"]}).validate(answer.json)


def test_no_shape_is_there_in_vain() -> None:
    text = json.dumps(DOCUMENT)
    for name in ANSWERS:
        assert f'"#/components/schemas/{name}"' in text, name


async def test_the_document_and_its_page_are_served() -> None:
    async with open_doors(apis=["http"]) as doors:
        answer = await doors.get("/openapi.json")
        assert answer.status == 200
        assert answer.json["openapi"] == "3.1.0"
        page = await doors.get("/docs")
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'; script-src 'self'" in page.headers["Content-Security-Policy"]
        for name in ("swagger-ui.js", "swagger-ui.css", "docs.js"):
            assert f'"/docs/{name}"'.encode() in page.body
            assert (await doors.get(f"/docs/{name}")).status == web.HTTPOk.status_code
        assert b"http://" not in page.body
        assert b"https://" not in page.body
