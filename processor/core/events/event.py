"""The usage event: the rules of its fields, and the faults an event can have.

Two ways lead to the same event, both made of the table of fields. The *fast* one lets msgspec check a whole line in C
against `JsonEvent` (for protobuf: `proto_event`); it never says why it failed. The *slow* one, `check`, walks the
fields in the order of the table and raises the first `Fault` by name; it also reads the forms the fast one does not
(`5.0`, `1e2`) and fills in what `lenient` handling allows. Whatever the fast way takes, the slow way takes with the
same values.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from processor.core import money
from processor.core.clock import DAY, parse_timestamp
from processor.core.events.fields import (
    FIELDS,
    IGNORED,
    MAX_FLOAT,
    MAX_INT,
    MAX_TEXT,
    NAMES,
    RECENT,
    RULES,
    EventKind,
    Field,
    Kind,
    fields_of,
    json_type,
    plain_json_type,
)

Code = Literal["missing", "invalid", "out_of_range", "unknown_value", "syntax"]
Handling = Literal["partial", "strict", "lenient"]
HANDLINGS: Final[tuple[Handling, ...]] = ("partial", "strict", "lenient")

MAX_EVENT_BYTES = 256 * 1024
MAX_NESTING = 64
MAX_KEY_SHOWN = 64
"""Characters of a sender's own key that a fault repeats."""
MAX_FUTURE = DAY
"""How far in the future a timestamp may lie, in microseconds."""


class HotFields(Protocol):
    """What the tables are made of, in an event that a fast way has read from JSON."""

    event_id: str
    timestamp: str
    provider: str
    model: str
    operation: str
    latency_ms: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    cost_usd: Raw
    """The number's own text."""
    status: str
    environment: str
    user_id: str | None


class RecentFields(HotFields, Protocol):
    """The same where it may be a span, which lacks some of them: then they are None, and the cost is `null`."""

    stream: bool | None
    kind: Raw | None
    """As JSON text, like `name`: any value is taken."""
    name: Raw | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None


def _member(field: Field) -> tuple[str, Any] | tuple[str, Any, None]:
    return (field.name, json_type(field)) if field.required else (field.name, json_type(field), None)


def _recent_member(field: Field) -> tuple[str, Any] | tuple[str, Any, Any]:
    if field.is_lax:
        return field.name, Raw, None
    if field.kind == "cost":
        return field.name, Raw, Raw(b"null")
    if field.required and field.span is None:
        return field.name, json_type(field)
    return field.name, plain_json_type(field) | None, None


JsonEvent: Final[type[Any]] = msgspec.defstruct("JsonEvent", map(_member, FIELDS), kw_only=True, gc=False)
"""One NDJSON line that is a call, as the OpenAPI document says it."""

_OLD_MEMBERS: Final = [_member(field) for field in fields_of(RULES - 1)]

OldEvent: Final[type[Any]] = msgspec.defstruct("OldEvent", _OLD_MEMBERS, kw_only=True, gc=False)
"""One line as the fast way reads it by the rules of version 4 (`HotFields`). `event_id`, `timestamp` and the cost are
checked after the decoding."""

_PLAIN_MEMBERS: Final = [member for member in _OLD_MEMBERS if member[0] != "cost_usd"]

PlainFields: Final[type[Any]] = msgspec.defstruct(
    "PlainFields",
    [*_PLAIN_MEMBERS, ("cost_usd", Raw, Raw(b"null")), (IGNORED, str | None, None)],
    kw_only=True,
    gc=False,
    forbid_unknown_fields=True,
)
"""A line with no other fields, which is most of them, and the one that is ignored: the same by all rules. A cost that
is missing is `null`."""

RecentEvent: Final[type[Any]] = msgspec.defstruct("RecentEvent", map(_recent_member, FIELDS), kw_only=True, gc=False)
"""One line by today's rules (`RecentFields`). What a call must have is checked after the decoding, too."""


class Event(Struct, kw_only=True, gc=False):
    """An event after intake, whatever its payload format: what `export` writes and `verify` recomputes from.

    Its members are those of the table of fields, of which the cost has two.
    """

    event_id: str
    """Canonical lower-case UUID."""
    trace_id: str
    span_id: str
    parent_span_id: str | None
    timestamp: int
    """Microseconds since the epoch."""
    provider: str
    model: str
    operation: str
    latency_ms: float
    ttft_ms: float | None
    input_tokens: int | None
    """None: a span that came without them, like `output_tokens`."""
    output_tokens: int | None
    cached_tokens: int | None
    cost: int
    """Picodollars."""
    priced: bool
    """False if the event came without a price (lenient handling, or a span)."""
    status: str
    error_code: str | None
    error_message: str | None
    finish_reason: str | None
    stream: bool
    environment: str
    user_id: str | None
    session_id: str | None
    tags: dict[str, str]
    tools_used: list[str]
    eval_scores: dict[str, float]
    prompt_hash: str | None
    sdk_version: str
    kind: EventKind = "call"
    name: str | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    extra: dict[str, Raw]
    """Unknown fields: name -> the value as JSON text."""
    cost_source: str | None = None
    """Where the cost is from, as intake has decided; None: unpriced, a span, or read without its columns."""

    @property
    def is_span(self) -> bool:
        """A step that is no call to a model, and counts in no row of cost."""
        return self.kind == "span"


class Fault(ValueError):
    """Why one event was not taken."""

    def __init__(self, code: Code, field: str | None, message: str, event_id: str | None = None) -> None:
        self.code: Code = code
        self.field = field
        self.event_id = event_id
        super().__init__(message)

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self)


class Fields(Protocol):
    """The fields of one event in one payload format, each read only when it is asked for.

    Every reader returns None for an absent or null field and raises `Fault` for one of the wrong form.
    """

    @property
    def rules(self) -> int:
        """The version of the log's message that says which names are fields (`Field.since`)."""
        ...

    def names(self) -> list[str]: ...
    def text(self, name: str) -> str | None: ...
    def number(self, name: str) -> Decimal | None: ...
    def flag(self, name: str) -> bool | None: ...
    def strings(self, name: str) -> list[str] | None: ...
    def string_map(self, name: str) -> dict[str, str] | None: ...
    def number_map(self, name: str) -> dict[str, float] | None: ...
    def unknown(self, kept: Collection[str]) -> dict[str, Raw]:
        """The unknown fields; `kept`: fields whose values count as unknown ones (`Field.is_lax`)."""
        ...


class JsonFields:
    """`Fields` of a JSON object whose values have not been decoded yet."""

    def __init__(self, raw: Mapping[str, Raw], rules: int = RULES) -> None:
        self._raw = raw
        self.rules = rules

    def names(self) -> list[str]:
        return list(self._raw)

    def _text_of(self, name: str) -> bytes | None:
        raw = self._raw.get(name)
        if raw is None:
            return None
        text = bytes(raw)
        return None if text == b"null" else text

    def text(self, name: str) -> str | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        if raw[:1] != b'"':
            raise Fault("invalid", name, f"{name} must be a string, not {_json_kind(raw)}")
        return msgspec.json.decode(raw, type=str)

    def number(self, name: str) -> Decimal | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        if raw[:1] not in b"-0123456789":
            raise Fault("invalid", name, f"{name} must be a number, not {_json_kind(raw)}")
        return _decimal(name, raw.decode())

    def flag(self, name: str) -> bool | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        if raw not in (b"true", b"false"):
            raise Fault("invalid", name, f"{name} must be true or false, not {_json_kind(raw)}")
        return raw == b"true"

    def strings(self, name: str) -> list[str] | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=list[str])
        except (msgspec.ValidationError, RecursionError):
            items = _opened(name, raw, list[Raw], "a list of strings")
            raise _not_strings(name, enumerate(items)) from None

    def string_map(self, name: str) -> dict[str, str] | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=dict[str, str])
        except (msgspec.ValidationError, RecursionError):
            items = _opened(name, raw, dict[str, Raw], "an object of strings")
            raise _not_strings(name, items.items()) from None

    def number_map(self, name: str) -> dict[str, float] | None:
        raw = self._text_of(name)
        if raw is None:
            return None
        values = _opened(name, raw, dict[str, Raw], "an object of numbers")
        return {key: _score(name, key, bytes(value)) for key, value in values.items()}

    def unknown(self, kept: Collection[str]) -> dict[str, Raw]:
        known = names_of(self.rules)
        return {
            name: value.copy()
            for name, value in self._raw.items()
            if (name not in known and name != IGNORED) or name in kept
        }


def names_of(rules: int) -> frozenset[str]:
    """The names that are fields by the rules of a version of the log's message."""
    return NAMES if rules >= RULES else NAMES - RECENT


_T = TypeVar("_T")


def _opened(name: str, raw: bytes, kind: type[_T], wanted: str) -> _T:
    """The values of a list or an object as JSON text each; raises `Fault` for anything else."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.ValidationError, RecursionError):
        raise Fault("invalid", name, f"{name} must be {wanted}, not {_json_kind(raw)}") from None


def _not_strings(name: str, items: Iterable[tuple[str | int, Raw]]) -> Fault:
    """The fault of a collection of strings that holds something else: its first such item by key or by place."""
    for key, value in items:
        raw = bytes(value)
        if raw[:1] != b'"':
            return Fault("invalid", name, f"{item_of(name, key)} must be a string, not {_json_kind(raw)}")
    return Fault("invalid", name, f"{name} must hold strings only")


def _score(name: str, key: str, raw: bytes) -> float:
    if raw[:1] not in b"-0123456789":
        raise Fault("invalid", name, f"{item_of(name, key)} must be a number, not {_json_kind(raw)}")
    where = item_of(name, key)
    try:
        return to_float(where, _decimal(where, raw.decode()))
    except Fault as fault:
        raise Fault(fault.code, name, fault.message) from None


def item_of(name: str, key: str | int) -> str:
    """How a fault names one value of a field that holds many; of a long key only its beginning."""
    return f"{name}[{key if isinstance(key, int) else key[:MAX_KEY_SHOWN]!r}]"


def _json_kind(raw: bytes) -> str:
    return _KINDS.get(raw[:1], "a number")


_KINDS: Final = {b"{": "an object", b"[": "a list", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}


def _decimal(name: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise Fault("out_of_range", name, f"{name} is out of range") from None


def to_float(name: str, value: Decimal) -> float:
    """A finite double, or an `out_of_range` fault (`1e400`)."""
    number = float(value)
    if not -MAX_FLOAT <= number <= MAX_FLOAT:
        raise Fault("out_of_range", name, f"{name} is out of range")
    return number + 0.0  # -0.0 becomes 0.0


# --- the slow way ----------------------------------------------------------------------------------------------------


class _Draft(Struct, kw_only=True):
    """What the rules below work on: the fields as sent, how to handle them, and the values found so far."""

    fields: Fields
    lenient: bool
    beside: bool
    """Cached tokens above the input tokens stand beside them, not within."""
    now: int
    is_span: bool = False
    name: str | None = None
    """What the step is called; None: it has no name, or none by these rules."""
    values: dict[str, object]
    tags: dict[str, str]
    kept: set[str]
    """Fields whose values count as unknown ones."""


_Rule = Callable[[_Draft, Field], None]


def _lax_text(draft: _Draft, field: Field) -> str | None:
    """The value of a field that is lax; None if there is none of its form."""
    name = field.name
    try:
        text = draft.fields.text(name)
    except Fault:
        draft.kept.add(name)
        return None
    if text is None or is_of_form(field, text):
        return text
    draft.kept.add(name)
    return None


def is_of_form(field: Field, text: str) -> bool:
    """Whether a text may stand in a choice, or in a text with limits."""
    return text in field.values if field.values else field.least <= len(text) <= (field.most or MAX_FLOAT)


def _kind(draft: _Draft, field: Field) -> None:
    draft.values[field.name] = "span" if draft.is_span else "call"


def _name(draft: _Draft, field: Field) -> None:
    if draft.is_span and draft.name is None:
        raise _missing(field.name)
    draft.values[field.name] = draft.name


def _uuid(draft: _Draft, field: Field) -> None:
    name = field.name
    text = draft.fields.text(name)
    if text is None:
        raise _missing(name)
    if not is_uuid4(text):
        raise Fault("invalid", name, f"{name} must be a UUID version 4")
    draft.values[name] = text.lower()


def is_uuid4(text: str) -> bool:
    """True for the 36-character form of a version 4 UUID, in any case."""
    return _UUID4(text) is not None


_UUID4 = re.compile("[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}").fullmatch


def _text(draft: _Draft, field: Field) -> None:
    name, most = field.name, field.most
    text = draft.fields.text(name)
    if draft.is_span and field.span == "name" and (text is None or (draft.lenient and not text)):
        text = draft.name or "unknown"  # without a name it is refused for that
    elif draft.lenient and field.lenient == "unknown":
        text = text or "unknown"
    if text is None and field.required:
        raise _missing(name)
    if text is not None and most is not None:
        if field.is_cut:
            text = text[: int(most)]
        elif not field.least <= len(text) <= most:
            bounds = f"{field.least} to {most}" if field.least else f"at most {most}"
            raise Fault("out_of_range", name, f"{name} must have {bounds} characters, not {len(text)}")
    draft.values[name] = (text or None) if field.is_empty_absent else text


def _timestamp(draft: _Draft, field: Field) -> None:
    name = field.name
    text = draft.fields.text(name)
    if text is None:
        raise _missing(name)
    try:
        at = parse_timestamp(text)
    except ValueError as error:
        raise Fault("invalid", name, f"{name} {error}") from None
    check_future(at, draft.now)
    draft.values[name] = at


def check_future(at: int, now: int) -> None:
    """Refuse an event time more than 24 h after `now`."""
    if at - now > MAX_FUTURE:
        raise Fault("out_of_range", "timestamp", "timestamp must not lie more than 24 hours in the future")


def _choice(draft: _Draft, field: Field) -> None:
    name = field.name
    text = draft.fields.text(name)
    lenient = field.lenient if draft.lenient else None
    if lenient == "by_error_code" and not text:
        text = "error" if _has(draft.fields, "error_code") else "success"
    elif lenient == "custom" and text not in field.values:
        if text is not None:
            draft.tags[f"{name}.raw"] = text
        text = "custom"
    elif text is None and draft.is_span and field.span == "custom":
        text = "custom"
    if text is None:
        raise _missing(name)
    if text not in field.values:
        raise Fault("unknown_value", name, f"{name} must be one of {', '.join(field.values)}")
    draft.values[name] = text


def _has(fields: Fields, name: str) -> bool:
    try:
        return bool(fields.text(name))  # an empty one says nothing
    except Fault:  # its own rule will say so
        return True


def _number(draft: _Draft, field: Field) -> Decimal | None:
    value = draft.fields.number(field.name)
    if value is None and field.required and not (draft.is_span and field.span == "optional"):
        if not (draft.lenient and field.lenient == "zero"):
            raise _missing(field.name)
        return Decimal(0)
    if value is not None and value < field.least:
        raise Fault("out_of_range", field.name, f"{field.name} must not be negative")
    return value


def _count(draft: _Draft, field: Field) -> None:
    name = field.name
    value = _number(draft, field)
    count = draft.values[name] = None if value is None else whole(name, value)
    if field.lenient == "with_input" and draft.beside and count is not None and not draft.is_span:
        inputs = draft.values["input_tokens"]
        if isinstance(inputs, int) and count > inputs:
            if inputs + count > MAX_INT:
                raise Fault("out_of_range", name, f"input_tokens and {name} must be at most {MAX_INT} together")
            draft.values["input_tokens"] = inputs + count


def whole(name: str, value: Decimal) -> int:
    """A whole number up to 2^53 - 1; `5.0` and `1e2` are whole."""
    if value > MAX_INT:
        raise Fault("out_of_range", name, f"{name} must be at most {MAX_INT}")
    if value != value.to_integral_value():
        raise Fault("invalid", name, f"{name} must be a whole number")
    return int(value)


def _millis(draft: _Draft, field: Field) -> None:
    value = _number(draft, field)
    draft.values[field.name] = None if value is None else to_float(field.name, value)


def _cost(draft: _Draft, field: Field) -> None:
    name = field.name
    value = draft.fields.number(name)
    if value is None and not (draft.lenient or draft.is_span):
        raise _missing(name)
    if value and draft.is_span:
        raise Fault("out_of_range", name, f"{name} of a span must be 0 or absent: only calls cost something")
    draft.values["priced"] = value is not None
    try:
        draft.values["cost"] = 0 if value is None else money.parse_cost(str(value))
    except money.OutOfRange as error:
        raise Fault("out_of_range", name, f"{name} {error}") from None


def _flag(draft: _Draft, field: Field) -> None:
    value = draft.fields.flag(field.name)
    if value is None and not (draft.lenient or draft.is_span):
        raise _missing(field.name)
    draft.values[field.name] = bool(value)


def _tags(draft: _Draft, field: Field) -> None:
    name = field.name
    tags = draft.fields.string_map(name) or {}
    if field.most is not None and len(tags) > field.most:
        raise Fault("out_of_range", name, f"{name} must have at most {field.most} entries, not {len(tags)}")
    draft.values[name] = {**tags, **draft.tags}


def _strings(draft: _Draft, field: Field) -> None:
    draft.values[field.name] = draft.fields.strings(field.name) or []


def _scores(draft: _Draft, field: Field) -> None:
    draft.values[field.name] = draft.fields.number_map(field.name) or {}


def _missing(name: str) -> Fault:
    return Fault("missing", name, f"{name} is required")


_RULES: Final[dict[Kind, _Rule]] = {
    "uuid": _uuid,
    "text": _text,
    "timestamp": _timestamp,
    "choice": _choice,
    "count": _count,
    "millis": _millis,
    "cost": _cost,
    "flag": _flag,
    "tags": _tags,
    "strings": _strings,
    "scores": _scores,
}
"""A rule takes a field's value into the draft, or raises its `Fault`."""

_KIND, _NAME = (next(field for field in FIELDS if field.name == name) for name in ("kind", "name"))
_LAX: Final[dict[str, _Rule]] = {_KIND.name: _kind, _NAME.name: _name}

_CHECKS: Final = {
    rules: [(_LAX.get(field.name) or _RULES[field.kind], field) for field in fields_of(rules)]
    for rules in (RULES - 1, RULES)
}
"""By the version whose rules they are."""


def check(fields: Fields, handling: Handling, now: int, *, as_counted: bool = False) -> Event:
    """The slow way: apply every rule in order; raises the first `Fault`, with the event's id if it is readable.

    `now` is the arrival in microseconds. Cheap enough for bad and unusual events, too slow for the hot path.
    `as_counted`: the event has been counted with the input tokens that it says, or others say with which (an export,
    the columns of a message); under lenient handling they are not added to once more, nor for the first time if it was
    taken before there was that rule.
    """
    lenient = handling == "lenient"
    draft = _Draft(
        fields=fields, lenient=lenient, beside=lenient and not as_counted, now=now, values={}, tags={}, kept=set()
    )
    if fields.rules >= RULES:  # these two first: whether others are needed depends on them
        draft.is_span = _lax_text(draft, _KIND) == "span"
        draft.name = _lax_text(draft, _NAME) or ("unknown" if draft.is_span and lenient else None)
    try:
        for rule, field in _CHECKS[fields.rules]:
            rule(draft, field)
        return msgspec.convert({**draft.values, "extra": fields.unknown(draft.kept)}, Event)
    except Fault as fault:
        fault.event_id = readable_id(fields)
        raise


def readable_id(fields: Fields) -> str | None:
    """The event's id as it was sent, if it is a string short enough to repeat."""
    try:
        text = fields.text("event_id")
    except Fault:
        return None
    return text if text is not None and len(text) <= MAX_TEXT else None
