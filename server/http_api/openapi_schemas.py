"""The schemas of the OpenAPI document: the event from the table of its fields, answers as `read_json` writes them."""

from typing import Any, Final, get_args

import msgspec

from processor.core.events.event import HANDLINGS, Code, JsonEvent
from processor.core.events.fields import FIELDS, rule
from server.alerts.budgets import MAX_THRESHOLD, MAX_THRESHOLDS, MAX_USD, WINDOWS
from server.errors import Reason
from server.http_api.admin import BudgetBody, EmptyBody, KeyBody, KeyChangeBody, ProjectBody, QuotaBody, RotateBody
from server.status import TABLE

Schema = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{name}"

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
DOLLARS: Final[Schema] = {"type": "number", "minimum": 0, "description": "US dollars, an exact decimal"}
RATIO: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
DAY: Final[Schema] = {"type": "string", "format": "date"}
FLAG: Final[Schema] = {"type": "boolean"}
POSITION: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9_.~-]+$"}


def ref(name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": REFERENCE.format(name=name)}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also allows null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def record(optional: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    """Return the schema of an object with these members and no others; those in `optional` may be absent."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


SUMS: Final = {
    "requests": COUNT,
    "errors": COUNT,
    "input_tokens": COUNT,
    "output_tokens": COUNT,
    "cached_tokens": COUNT,
    "cost_usd": DOLLARS,
    "unpriced": COUNT,
}
_USER: Final = {"user_id": nullable(TEXT), **SUMS, "first_seen": nullable(TIME), "last_seen": nullable(TIME)}
_MODEL: Final = {"provider": TEXT, "model": TEXT}
_MILLIS: Final[Schema] = {"type": "number", "minimum": 0, "description": "Milliseconds; from 1 ms on less than 5 % off"}
_LATENCY: Final = record(p50=_MILLIS, p95=_MILLIS, p99=_MILLIS, measured=COUNT)
_WINDOW: Final = record(start=TIME, used=COUNT, limit=nullable(COUNT))
_KEY: Final = {
    "id": TEXT,
    "prefix": TEXT,
    "project": TEXT,
    "organization": TEXT,
    "scopes": listed({"enum": ["ingest", "read", "admin"]}),
    "allOrganizations": FLAG,
    "created": TIME,
    "expires": nullable(TIME),
    "revoked": nullable(TIME),
    "rateLimit": nullable(COUNT),
    "handling": nullable({"enum": list(HANDLINGS)}),
    "replacedBy": nullable(TEXT),
    "state": {"enum": ["active", "revoked", "expired"]},
}

_OF: Final = {"user_id": nullable(TEXT), "model": nullable(TEXT), "window": {"enum": list(WINDOWS)}}
_PERCENT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": MAX_THRESHOLD}
_BUDGET: Final = {"id": TEXT, **_OF, "usd": DOLLARS, "thresholds": listed(_PERCENT), "created": TIME}
_REACHED: Final = {
    "id": TEXT,
    "budget": TEXT,
    **_OF,
    "start": TIME,
    "end": TIME,
    "usd": DOLLARS,
    "threshold": _PERCENT,
    "spent": DOLLARS,
    "at": TIME,
}

ANSWERS: Final[dict[str, Schema]] = {
    "Rejection": record(
        line={"type": "integer", "minimum": 1, "description": "Counts from 1 in the body as sent"},
        event_id=nullable(TEXT),
        field=nullable(TEXT),
        code={"enum": list(get_args(Code))},
        message=TEXT,
    ),
    "Receipt": record(
        ("rejected",), accepted={"type": "integer", "minimum": 1, "maximum": 100}, rejected=listed(ref("Rejection"))
    ),
    "Reason": {
        "enum": list(get_args(Reason)),
        "description": "The reason of an error, for programs. The list is closed.\n\n"
        + "\n".join(f"- `{reason}` ({each.http}): {each.meaning}" for reason, each in TABLE.items()),
    },
    "Error": {
        "type": "object",
        "properties": {
            "error": {"type": "string", "minLength": 1, "description": "What is wrong, for people"},
            "reason": ref("Reason"),
            "rejected": listed(ref("Rejection")),
        },
        "required": ["error", "reason"],
    },
    "LimitError": {
        "type": "object",
        "properties": {
            "error": TEXT,
            "reason": {"enum": ["rate_limited", "quota_exceeded"]},
            "limit": COUNT,
            "used": COUNT,
            "resetsAt": TIME,
        },
        "required": ["error", "reason", "limit", "used", "resetsAt"],
    },
    "User": record(**_USER),
    "UserPage": record(
        users=listed(ref("User")), total=record(users=COUNT, **SUMS), nextCursor=nullable(TEXT), asOf=TIME
    ),
    "UserDetail": record(
        **_USER, byModel=listed(record(**_MODEL, **SUMS)), byDay=listed(record(day=DAY, **SUMS)), asOf=TIME
    ),
    "Costs": record(
        byModel=listed(
            record(**_MODEL, tokens=COUNT, **SUMS, avgCost=DOLLARS, cacheHitRate=RATIO, latencyMs=nullable(_LATENCY))
        ),
        daily=listed(record(day=DAY, **SUMS)),
        dailyByModel=listed(record(day=DAY, **_MODEL, cost_usd=DOLLARS, requests=COUNT, errors=COUNT)),
        total=record(**SUMS),
        monthToDate=DOLLARS,
        forecast30d=DOLLARS,
        cacheHitRate=RATIO,
        asOf=TIME,
    ),
    "Quota": record(
        organization=TEXT,
        period={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
        limit=nullable(COUNT),
        used=COUNT,
        remaining=nullable(COUNT),
        resetsAt=TIME,
        windows=record(minute=_WINDOW, hour=_WINDOW, day=_WINDOW, month=_WINDOW),
        duplicates=COUNT,
        conflicts=COUNT,
    ),
    "Budget": record(**_BUDGET),
    "BudgetReached": record(**_REACHED),
    "BudgetList": record(
        budgets=listed(
            record(
                **_BUDGET,
                start=TIME,
                end=TIME,
                spent=DOLLARS,
                remaining=DOLLARS,
                reached=listed(ref("BudgetReached")),
            )
        ),
        asOf=TIME,
    ),
    "Health": record(status={"const": "ok"}),
    "Readiness": record(
        ("error", "reason", "reasons", "warnings"),
        status={"enum": ["ready", "unready"]},
        error=TEXT,
        reason={"const": "unavailable"},
        reasons=listed(TEXT),
        warnings=listed(TEXT),
    ),
    "Organization": record(organization=TEXT, monthlyQuota=nullable(COUNT)),
    "Project": record(project=TEXT, organization=TEXT, created=TIME),
    "Key": record(**_KEY),
    "NewKey": record(
        ("replaces",), key={"type": "string", "pattern": "^lqt_[0-9a-f]{64}$"}, **_KEY, replaces=ref("Key")
    ),
}


def _event(found: Schema) -> Schema:
    """Return the schema of an event: that of its type, and what only the table of fields has."""
    for field in FIELDS:
        member = found["properties"][field.name]
        match field.kind:
            case "uuid":
                member |= {"format": "uuid"}
            case "timestamp":
                member |= {"format": "date-time"}
            case "cost":
                member |= {"type": "number", "minimum": field.least, "maximum": field.most}
        said = f"{field.description} ({rule(field)})" if field.kind in _IN_WORDS or field.is_cut else field.description
        member["description"] = said
    of_calls = [field.name for field in FIELDS if field.required and field.span is not None]
    found["required"] = [name for name in found["required"] if name not in of_calls]
    found["if"] = {"properties": {"kind": {"const": "span"}}, "required": ["kind"]}
    found["then"] = {"required": [field.name for field in FIELDS if field.span == "required"]}
    found["else"] = {"required": of_calls}
    found["description"] = (
        "One line of the body. Unknown fields are kept with the event; null is the same as absent. A `kind` or a "
        "`name` of another form is kept as an unknown field."
    )
    return found


_IN_WORDS: Final = {"uuid", "timestamp", "cost"}
"""Kinds of fields whose rule a schema cannot express in full."""


def components() -> dict[str, Schema]:
    """Return every named schema."""
    bodies = (JsonEvent, QuotaBody, ProjectBody, KeyBody, KeyChangeBody, RotateBody, EmptyBody, BudgetBody)
    _, found = msgspec.json.schema_components(bodies, ref_template=REFERENCE)
    found["Event"] = _event(found.pop("JsonEvent"))
    budget = found["BudgetBody"]["properties"]
    budget["usd"] = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_USD, "description": "US dollars, exact"}
    budget["thresholds"] |= {"items": _PERCENT, "minItems": 1, "maxItems": MAX_THRESHOLDS}
    for name in ("user_id", "model"):
        budget[name]["description"] = f"Only this {name.removesuffix('_id')}; left out or null: all"
    return {**found, **ANSWERS}
