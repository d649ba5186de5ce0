"""The fields of an event, one row each: what the checks, the OpenAPI document and the reference are made of.

To add a field, add its row (and its line in `Event` of ingest.proto and in `event.Event`, which tests compare with the
table). A new kind also needs its rule in `event`, its type here and its check in `proto_event`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta, Raw, Struct

from processor.core.money import MAX_COST

Kind = Literal[
    "uuid", "text", "timestamp", "choice", "count", "millis", "cost", "flag", "tags", "strings", "scores"
]  # fmt: skip
"""What a field holds: `count` is a whole number, `millis` a number of milliseconds, `cost` a decimal number of dollars,
`tags` strings by name, `scores` numbers by name."""

Lenient = Literal["unknown", "custom", "zero", "false", "unpriced", "by_error_code", "with_input"]
"""What `lenient` handling makes of a field that others reject or take as it is; see `_LENIENT`."""

Span = Literal["required", "optional", "custom", "name", "false", "nothing"]
"""What a span, a step that is no call to a model, has in a field: `name` and `custom` stand for a missing one,
`nothing` is 0 or missing; see `_SPAN`."""

MAX_INT: Final = 2**53 - 1
MAX_FLOAT: Final = 1.7976931348623157e308
MAX_TEXT: Final = 256
MAX_TAGS: Final = 64
MAX_ERROR_MESSAGE: Final = 500

PROVIDERS: Final = ("openai", "anthropic", "google", "custom")
OPERATIONS: Final = ("chat", "embed", "image", "tts", "custom")
STATUSES: Final = ("success", "error", "timeout", "rate_limited", "cancelled")
ERRORS: Final = frozenset({"error", "timeout", "rate_limited"})
"""The statuses that count as errors in the tables."""

EventKind = Literal["call", "span"]
KINDS: Final[tuple[EventKind, ...]] = ("call", "span")

IGNORED: Final = "project_id"
"""A name that is neither a field nor kept as an unknown one: the key decides the project."""

UNLIMITED: Final = None


class Field(Struct, frozen=True):
    """A row of the table."""

    name: str
    kind: Kind
    number: int
    """Of the field in the protobuf message `Event`."""
    description: str
    """One line, for the OpenAPI document and the reference."""
    required: bool = False
    least: int = 0
    """The fewest characters of a text; the least number."""
    most: float | None = UNLIMITED
    """The most characters of a text or entries of an object; the greatest number. None: no limit but the event's."""
    values: tuple[str, ...] = ()
    """Of a choice."""
    is_cut: bool = False
    """A text with more than `most` characters is cut and not rejected."""
    is_empty_absent: bool = False
    """An empty text is the same as none."""
    lenient: Lenient | None = None
    span: Span | None = None
    """What becomes of the field in a span; None: what becomes of it in a call."""
    is_lax: bool = False
    """A value of another form is kept as an unknown field, and the event has none: senders used the name before."""
    since: int = 4
    """The first version of the log's message (`message.VERSION`) in which the name is a field; in earlier ones it is an
    unknown field."""


def _name(name: str, number: int, description: str, least: int = 1, span: Span | None = None) -> Field:
    return Field(
        name, "text", number, description, required=True, least=least, most=MAX_TEXT, lenient="unknown", span=span
    )


def _text(name: str, number: int, description: str, *, is_empty_absent: bool = False) -> Field:
    return Field(name, "text", number, description, most=MAX_TEXT, is_empty_absent=is_empty_absent)


def _choice(
    name: str,
    number: int,
    description: str,
    values: tuple[str, ...],
    lenient: Lenient = "custom",
    span: Span | None = None,
) -> Field:
    return Field(name, "choice", number, description, required=True, values=values, lenient=lenient, span=span)


def _tokens(name: str, number: int, description: str) -> Field:
    return Field(name, "count", number, description, required=True, most=MAX_INT, lenient="zero", span="optional")


FIELDS: Final[tuple[Field, ...]] = (
    Field("event_id", "uuid", 1, "Unique within the key's project: a second copy is not counted", required=True),
    _name("trace_id", 2, "The trace that the call belongs to"),
    _name("span_id", 3, "The call's span in its trace"),
    Field("parent_span_id", "text", 4, "The span that the call was made in"),
    Field("timestamp", "timestamp", 5, "When the call was made, not more than 24 h in the future", required=True),
    _choice("provider", 6, "The provider that serves the model", PROVIDERS, span="custom"),
    _name("model", 7, "The model that was called", span="name"),
    _choice("operation", 8, "What the model was called for", OPERATIONS, span="custom"),
    Field("latency_ms", "millis", 9, "How long the call took", required=True, most=MAX_FLOAT, lenient="zero"),
    Field("ttft_ms", "millis", 10, "Time to the first token", most=MAX_FLOAT),
    _tokens("input_tokens", 11, "Tokens of the prompt"),
    _tokens("output_tokens", 12, "Tokens of the answer"),
    Field("cached_tokens", "count", 13, "Input tokens that came from a cache", most=MAX_INT, lenient="with_input"),
    Field(
        "cost_usd",
        "cost",
        14,
        "US dollars, as a decimal",
        required=True,
        most=MAX_COST,
        lenient="unpriced",
        span="nothing",
    ),
    _choice("status", 15, "How the call ended", STATUSES, "by_error_code"),
    _text("error_code", 16, "The provider's code of the error"),
    Field("error_message", "text", 17, "The provider's message of the error", most=MAX_ERROR_MESSAGE, is_cut=True),
    _text("finish_reason", 18, "Why the model stopped"),
    Field("stream", "flag", 19, "Whether the answer was streamed", required=True, lenient="false", span="false"),
    _name("environment", 20, "Where the call was made: production, staging, ..."),
    _text("user_id", 21, "The user that the call is attributed to", is_empty_absent=True),
    _text("session_id", 22, "The user's session", is_empty_absent=True),
    Field("tags", "tags", 23, "The sender's own labels", most=MAX_TAGS),
    Field("tools_used", "strings", 24, "The tools that the model called"),
    Field("eval_scores", "scores", 25, "Scores of the answer"),
    _text("prompt_hash", 26, "The version of the prompt"),
    _name("sdk_version", 27, "Name and version of the sender's SDK", least=0),
    Field("kind", "choice", 28, "A call to a model, or a span: another step", values=KINDS, is_lax=True, since=5),
    Field(
        "name",
        "text",
        29,
        "What the step is called",
        least=1,
        most=MAX_TEXT,
        span="required",
        is_lax=True,
        since=5,
    ),
    Field("cache_write_tokens", "count", 30, "Input tokens that were written to a cache", most=MAX_INT, since=5),
    Field("reasoning_tokens", "count", 31, "Output tokens that the model spent on reasoning", most=MAX_INT, since=5),
)
"""In the published order: of several faults of an event the one of the first field is reported."""

NAMES: Final = frozenset(field.name for field in FIELDS)

RULES: Final = 5
"""The rules that new events are read by: those of the newest message that has fields of its own."""


def fields_of(rules: int) -> tuple[Field, ...]:
    """The fields of events of messages of a version, in the order of the table."""
    return tuple(field for field in FIELDS if field.since <= rules)


RECENT: Final = NAMES - {field.name for field in fields_of(RULES - 1)}
"""Names that messages of version 4 have as those of unknown fields."""


def of_kind(*kinds: Kind) -> tuple[Field, ...]:
    """The fields of some kinds, in the order of the table."""
    return tuple(field for field in FIELDS if field.kind in kinds)


def json_type(field: Field) -> Any:
    """What msgspec reads the field as, limits included. It does not check the form of ids and times, and leaves a cost
    as the number's own text."""
    found = plain_json_type(field)
    return found if field.required else found | None


def plain_json_type(field: Field) -> Any:
    """The same of a field that is there."""

    match field.kind:
        case "text" if field.most is not UNLIMITED and not field.is_cut:
            return Annotated[str, Meta(min_length=field.least or None, max_length=int(field.most))]
        case "uuid" | "timestamp" | "text":
            return str
        case "choice":
            return Literal[field.values]
        case "count":
            return Annotated[int, Meta(ge=field.least, le=field.most)]
        case "millis":
            return Annotated[float, Meta(ge=field.least, le=field.most)]
        case "cost":
            return Raw
        case "flag":
            return bool
        case "tags":
            return Annotated[dict[str, str], Meta(max_length=None if field.most is UNLIMITED else int(field.most))]
        case "strings":
            return list[str]
        case "scores":
            return dict[str, float]


# --- the reference ---------------------------------------------------------------------------------------------------

_JSON: Final[dict[Kind, str]] = {
    "uuid": "string",
    "text": "string",
    "timestamp": "string",
    "choice": "string",
    "count": "number",
    "millis": "number",
    "cost": "number",
    "flag": "boolean",
    "tags": "object string -> string",
    "strings": "string[]",
    "scores": "object string -> number",
}

PROTOBUF: Final[dict[Kind, str]] = {
    "uuid": "optional string",
    "text": "optional string",
    "timestamp": "optional string",
    "choice": "optional string",
    "count": "optional int64",
    "millis": "optional double",
    "cost": "optional string",
    "flag": "optional bool",
    "tags": "map<string, string>",
    "strings": "repeated string",
    "scores": "map<string, double>",
}
"""What a field is declared as in ingest.proto; money is a decimal in a string there, so that nothing is lost."""

_LENIENT: Final[dict[Lenient, str]] = {
    "unknown": "missing or empty: `unknown`",
    "custom": "missing: `custom`; any other value: `custom`, and the sent one in the tag `{name}.raw`",
    "zero": "missing: 0",
    "false": "missing: false",
    "unpriced": "missing: by the price lists, else the event counts as unpriced",
    "by_error_code": "missing or empty: `error` with an error_code, else `success`",
    "with_input": "above the input tokens: input becomes the sum of both",
}


_SPAN: Final[dict[Span, str]] = {
    "required": "required; missing under `lenient`: `unknown`",
    "optional": "may be missing; enters no sum",
    "custom": "missing: `custom`",
    "name": "missing: the name",
    "false": "missing: false",
    "nothing": "missing or 0",
}


class ReferenceRow(NamedTuple):
    """What the reference says of a field. Every member fits into a cell of a Markdown table."""

    name: str
    type: str
    """In JSON."""
    protobuf: str
    required: str
    """`yes` or empty."""
    rule: str
    """Limits, values and form."""
    lenient: str
    """What `lenient` handling does; empty: nothing."""
    span: str
    """What is different in a span; empty: nothing."""
    since: str
    description: str


def reference() -> Iterator[ReferenceRow]:
    """The rows of docs/reference/event-fields.md, in the published order."""
    for field in FIELDS:
        yield ReferenceRow(
            field.name,
            _JSON[field.kind],
            f"{PROTOBUF[field.kind]} = {field.number}",
            "yes" if field.required else "",
            rule(field),
            _LENIENT[field.lenient].format(name=field.name) if field.lenient else "",
            _SPAN[field.span] if field.span else "",
            str(field.since),
            field.description,
        )


def rule(field: Field) -> str:
    """The limits, the values and the form of a field in words."""
    match field.kind:
        case "uuid":
            found = "UUID version 4, any case"
        case "timestamp":
            found = "RFC 3339 with `Z` or an offset; below microseconds is cut"
        case "choice":
            found = ", ".join(field.values)
        case "count":
            found = f"whole, {field.least} to {field.most}"
        case "millis":
            found = f">= {field.least}"
        case "cost":
            found = f"{field.least} to {field.most:,}, rounded half-even to 12 places"
        case "text" if field.is_cut:
            found = f"cut to {field.most} characters"
        case "text" if field.most is not UNLIMITED:
            found = f"{field.least} to {field.most} characters" if field.least else f"at most {field.most} characters"
        case "tags":
            found = f"at most {field.most} entries"
        case _:
            found = ""
    if field.is_lax:
        found += "; any other value is kept as an unknown field"
    return f"{found}; empty is the same as absent" if field.is_empty_absent else found
