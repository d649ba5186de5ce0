"""The OpenAPI 3.1 document of the HTTP API. Pure: made once, from the types that decode the requests."""

from http import HTTPStatus
from typing import Any, Final

from processor.core.events.content_coding import MAX_BODY
from processor.core.events.fields import OPERATIONS, PROVIDERS, STATUSES
from processor.view.query import DEFAULT_SORT, SORTS
from server.errors import RETRYABLE, Reason
from server.http_api import openapi_explore, openapi_otlp
from server.http_api.admin import BUDGETS, ROOT
from server.http_api.openapi_explore_schemas import EXPLORE_ANSWERS
from server.http_api.openapi_schemas import POSITION, TEXT, TIME, Schema, components, listed, record, ref
from server.ingest.inflate import ENCODINGS
from server.ingest.intake import MAX_EVENTS
from server.reads.params import DEFAULT_LIMIT, MAX_LIMIT
from server.status import MAX_RETRY_AFTER, NDJSON, TABLE

JSON: Final = "application/json"

EXAMPLE_EVENT: Final = (
    '{"event_id":"550e8400-e29b-41d4-a716-446655440000","trace_id":"trace-abc","span_id":"span-001",'
    '"timestamp":"2026-04-20T10:00:00.000Z","provider":"openai","model":"gpt-4o","operation":"chat","latency_ms":1200,'
    '"input_tokens":512,"output_tokens":128,"cost_usd":0.0034,"status":"success","stream":false,'
    '"environment":"production","user_id":"u1","sdk_version":"1.0.0"}'
)

_WHY: Final[dict[Reason, str]] = {
    "bad_request": "A parameter, a header or the body is not as expected; `error` says which",
    "unauthenticated": "The key is missing, unknown, revoked or expired",
    "forbidden": "The key lacks the scope, or asks for another project",
    "not_found": "Nothing of that name exists",
    "conflict": "It exists already as something else, or its state does not allow it",
    "too_large": "The body is too large",
    "unavailable": "The log or the directory of keys cannot be reached now; retry the request unchanged",
    "not_yet_visible": "The tables did not contain the position within 5 s",
}
"""What a status means, under the reason that stands for it here: several reasons share one."""
_INGEST: Final[tuple[Reason, ...]] = ("bad_request", "unauthenticated", "forbidden", "too_large", "unavailable")
_READ: Final[tuple[Reason, ...]] = ("bad_request", "unauthenticated", "forbidden", "unavailable", "not_yet_visible")
_OK, _CREATED, _ACCEPTED = (str(each.value) for each in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED))
_AGAIN: Final = {"Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER}}}


def document(version: str) -> dict[str, Any]:
    """Return the document; `version` is the program's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "spendstream",
            "version": version,
            "summary": "Ingest and metering of LLM usage",
            "description": (
                "Takes events of LLM calls, and answers with exact costs by user, model and day, and with the events, "
                "traces and sessions behind them. The gRPC services of spendstream.v1 answer the same. Every error "
                "body has `error`, a sentence for people, and `reason`, a word for programs (schema `Reason`); over "
                "gRPC `google.rpc.ErrorInfo` has that word in upper case."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("ingest", "read", "events", "operate", "admin")],
        "security": [{"key": []}, {"bearer": []}],
        "paths": _paths(),
        "components": {
            "schemas": {**components(), **EXPLORE_ANSWERS, **openapi_otlp.SCHEMAS},
            "parameters": openapi_explore.parameters(),
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _paths() -> dict[str, dict[str, Any]]:
    """Operations by path and method; some paths are read by one and written to by another."""
    found: dict[str, dict[str, Any]] = {"/v1/ingest": {"post": _ingest()}}
    for part in (_reads(), openapi_otlp.paths(), openapi_explore.paths(), _operate(), _admin()):
        for path, methods in part.items():
            found.setdefault(path, {}).update(methods)
    return found


# --- parts -----------------------------------------------------------------------------------------------------------


def _content(schema: Schema, media: str = JSON) -> dict[str, Any]:
    return {media: {"schema": schema}}


def _code(reason: Reason) -> str:
    return str(TABLE[reason].http)


def _failures(*reasons: Reason) -> dict[str, Any]:
    found = {}
    for reason in reasons:
        found[_code(reason)] = {"description": _WHY[reason], "content": _content(ref("Error"))}
        if reason in RETRYABLE:
            found[_code(reason)]["headers"] = _AGAIN
    return found


def _operation(
    tag: str, summary: str, ok: dict[str, Any], *reasons: Reason, status: str = _OK, **more: Any
) -> dict[str, Any]:
    return {"tags": [tag], "summary": summary, **more, "responses": {status: ok, **_failures(*reasons)}}


def _query(name: str, schema: Schema, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _path(name: str, text: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": text}


_MOMENT: Final[Schema] = {"anyOf": [{"type": "string", "format": "date"}, TIME]}
_AFTER: Final = _query("after", POSITION, "An `x-ingest-position`: wait up to 5 s until the tables contain it")
_OWN: Final = _query("projectId", TEXT, "A project of the key's organization; default: the key's own")
_PROJECT: Final = _query("projectId", TEXT, "The key's own project; another one is refused")


def _span(unit: str) -> list[dict[str, Any]]:
    return [
        _query("start", _MOMENT, f"Start of the range, inclusive; whole UTC {unit}"),
        _query("end", _MOMENT, f"End of the range, exclusive; whole UTC {unit}"),
    ]


# --- ingest ----------------------------------------------------------------------------------------------------------


def _ingest() -> dict[str, Any]:
    limits = {"RateLimit": {"schema": TEXT}, "RateLimit-Policy": {"schema": TEXT}}
    accepted = {
        "description": "Every valid event is durable; a duplicate counts as accepted",
        "headers": {"x-ingest-position": {"schema": POSITION, "description": "For `after` of a read"}, **limits},
        "content": _content(ref("Receipt")),
    }
    made = _operation("ingest", "Send usage events", accepted, *_INGEST, status=_ACCEPTED)
    made["responses"][_code("unsupported_type")] = {
        "description": f"The content type is not {NDJSON}, or the encoding is not supported",
        "headers": {"Accept": {"schema": TEXT}, "Accept-Encoding": {"schema": TEXT}},
        "content": _content(ref("Error")),
    }
    made["responses"][_code("rate_limited")] = {
        "description": "The key's rate or the organization's monthly quota is used up; nothing was charged",
        "headers": {**_AGAIN, **limits},
        "content": _content(ref("LimitError")),
    }
    return made | {
        "description": (
            f"One JSON object a line, at most {MAX_EVENTS}, in a body of at most {MAX_BODY >> 20} MiB when inflated. "
            f"Each line is an `Event`: providers {', '.join(PROVIDERS)}; operations {', '.join(OPERATIONS)}; statuses "
            f"{', '.join(STATUSES)}. Lines that are not valid are listed in `rejected`; the others are accepted."
        ),
        "security": [{"key": []}],
        "parameters": [
            {
                "name": "Prefer",
                "in": "header",
                "schema": {"enum": ["handling=strict", "handling=lenient"]},
                "description": (
                    "RFC 7240. strict: one bad line refuses the batch; lenient: fill in what SDKs leave out. Else the "
                    "handling of the key counts, then that of the server"
                ),
            },
            {"name": "Content-Encoding", "in": "header", "schema": {"enum": list(ENCODINGS)}},
        ],
        "requestBody": {
            "required": True,
            "description": "Lines of `Event`",
            "content": {NDJSON: {"schema": TEXT, "x-line-schema": ref("Event"), "example": EXAMPLE_EVENT + "\n"}},
        },
    }


# --- reads -----------------------------------------------------------------------------------------------------------


def _reads() -> dict[str, Any]:
    filters = [
        _query("model", {"type": "string", "minLength": 1}, "Only this model"),
        _query("environment", {"type": "string", "minLength": 1}, "Only this environment"),
        _query(
            "unattributed", {"enum": ["true", "false"]}, "Only the row of unattributed events, those without a user"
        ),
        _query("sort", {"enum": list(SORTS), "default": DEFAULT_SORT}, "Descending, then by user_id"),
        _query(
            "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}, "Users a page"
        ),
        _query("cursor", {"type": "string", "minLength": 1}, "`nextCursor` of the page before"),
    ]
    stream = [
        _query("user_id", listed(TEXT), "Only these users; may be repeated"),
        _PROJECT,
        _AFTER,
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": TEXT,
            "description": "Resume after this `id`, without a gap",
        },
    ]
    return {
        "/v1/users": {
            "get": _read("List the users of the project and what they cost", "UserPage", *_span("days"), *filters)
        },
        "/v1/users/": {
            "get": _read(
                "Get one user by a query parameter, for the ids `.` and `..`, which cannot be in a path",
                "UserDetail",
                _query("user_id", {"type": "string", "minLength": 1}, "The user") | {"required": True},
                *_span("days"),
            )
            | {"responses": _answered("UserDetail", *_READ, "not_found")}
        },
        "/v1/users/{user_id}": {
            "get": _read(
                "Get one user, by model and by day", "UserDetail", _path("user_id", "The user"), *_span("days")
            )
            | {"responses": _answered("UserDetail", *_READ, "not_found")}
        },
        "/v1/costs": {
            "get": _read("Get the project's costs by model and day, and a forecast", "Costs", *_span("hours"))
        },
        "/v1/quota": {"get": _read("Get the organization's monthly quota, and what is left of it", "Quota")},
        "/v1/stream/users": {
            "get": _operation(
                "read",
                "Follow users as they change: server-sent events `snapshot`, `update`, `budget` (`BudgetReached`)",
                {"description": "An endless stream of events", "content": _content(TEXT, "text/event-stream")},
                *_READ,
                parameters=stream,
            )
        },
    }


def _read(summary: str, name: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    ok = _answered(name)[_OK]
    return _operation("read", summary, ok, *_READ, parameters=[*parameters, _PROJECT, _AFTER])


def _answered(name: str, *reasons: Reason) -> dict[str, Any]:
    return {_OK: {"description": "What the tables contain", "content": _content(ref(name))}, **_failures(*reasons)}


# --- operations ------------------------------------------------------------------------------------------------------


def _operate() -> dict[str, Any]:
    ready = _open("Get whether events can be made durable and the tables follow", _content(ref("Readiness")))
    ready["responses"][_code("unavailable")] = {
        "description": "Not ready, and why",
        "content": _content(ref("Readiness")),
    }
    return {
        "/healthz": {"get": _open("Get that the process is alive", _content(ref("Health")))},
        "/readyz": {"get": ready},
        "/metrics": {"get": _open("Get the metrics of the process, for Prometheus", _content(TEXT, "text/plain"))},
        "/openapi.json": {"get": _open("Get this document", _content({"type": "object"}))},
    }


def _open(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    return _operation("operate", summary, {"description": "The present state", "content": content}, security=[])


# --- the admin API ---------------------------------------------------------------------------------------------------


def _admin() -> dict[str, Any]:
    name, key = _path("name", "Its name"), _path("id", "The key's id, or its prefix as listed")
    return {
        f"{ROOT}/orgs": {"get": _manage("List the organizations", _list("organizations", "Organization"))},
        f"{ROOT}/orgs/{{name}}": {
            "put": _manage("Set an organization's monthly quota", ref("Organization"), name, body="QuotaBody")
        },
        f"{ROOT}/projects": {"get": _manage("List the projects", _list("projects", "Project"))},
        f"{ROOT}/projects/{{name}}": {"put": _manage("Create a project", ref("Project"), name, body="ProjectBody")},
        f"{ROOT}/keys": {
            "get": _manage("List the keys, without their secrets", _list("keys", "Key")),
            "post": _manage("Create a key, which is shown this once", ref("NewKey"), body="KeyBody", status=_CREATED),
        },
        f"{ROOT}/keys/{{id}}": {
            "patch": _manage("Set how a key's batches are handled by default", ref("Key"), key, body="KeyChangeBody")
        },
        f"{ROOT}/keys/{{id}}/rotate": {
            "post": _manage(
                "Rotate a key: create its successor", ref("NewKey"), key, body="RotateBody", status=_CREATED
            )
        },
        f"{ROOT}/keys/{{id}}/revoke": {
            "post": _manage("Revoke a key, everywhere within a second", ref("Key"), key, body="EmptyBody")
        },
        BUDGETS: {
            "get": _read("List the project's budgets, and what is spent of them", "BudgetList"),
            "put": _manage(
                "Set a budget; it replaces the one for the same user, model and window",
                ref("Budget"),
                _OWN,
                body="BudgetBody",
            ),
        },
        f"{BUDGETS}/{{id}}": {
            "delete": _manage("Delete a budget", ref("Budget"), _path("id", "Its id"), _OWN, missing=True)
        },
    }


def _list(name: str, shape: str) -> Schema:
    return record(**{name: listed(ref(shape))})


def _manage(
    summary: str,
    schema: Schema,
    *parameters: dict[str, Any],
    body: str | None = None,
    status: str = _OK,
    missing: bool = False,
) -> dict[str, Any]:
    ok = {
        "description": "Success; the change is durable",
        "headers": {"Cache-Control": {"schema": {"const": "no-store"}}},
        "content": _content(schema),
    }
    reasons: list[Reason] = ["bad_request", "unauthenticated", "forbidden", "unavailable"]
    reasons += ["not_found", "conflict", "too_large"] if body else ["not_found"] if missing else []
    made = _operation("admin", summary, ok, *reasons, status=status, parameters=list(parameters))
    return made | ({"requestBody": {"content": _content(ref(body))}} if body else {})
