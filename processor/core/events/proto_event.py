"""The protobuf `Event`, checked the fast way and as `Fields` for the slow one."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Raw

from processor.core.events.event import MAX_NESTING, Fault, is_of_form, item_of, names_of, readable_id
from processor.core.events.fields import (
    FIELDS,
    IGNORED,
    MAX_FLOAT,
    MAX_INT,
    MAX_TAGS,
    MAX_TEXT,
    NAMES,
    RECENT,
    RULES,
    UNLIMITED,
    Field,
    of_kind,
)
from processor.core.events.nesting import is_deeper
from protos.spendstream.v1 import ingest_pb2 as pb

_parse = pb.Event.FromString
_is_decimal = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch


# --- the table of fields, sorted by what is asked of them ------------------------------------------------------------

_CHOICES: Final = [field for field in of_kind("choice") if not field.is_lax]
_TEXTS: Final = sorted(
    (field for field in of_kind("text") if field.most is not UNLIMITED and not (field.is_cut or field.is_lax)),
    key=lambda field: not field.required,
)
"""Those with a limit, which is the same for all; the required ones first."""
_COUNTS: Final = of_kind("count")
_MILLIS: Final = of_kind("millis")
_TAGS: Final = of_kind("tags")
_SCORES: Final = of_kind("scores")
_COSTS: Final = of_kind("cost")
_FLAGS: Final = of_kind("flag")
_LAX: Final = [field for field in FIELDS if field.is_lax]
_ASKED: Final[list[str]] = ["extra_json", "event_id", "timestamp", *(field.name for field in _LAX)]
"""What is read of each message, in this order: in C, for which an attribute of protobuf costs 50 ns; `ListFields` takes
4 µs an event."""


def _ask(fields: Sequence[Field]) -> slice:
    """Have fields read; returns where their values are."""
    start = len(_ASKED)
    _ASKED.extend(field.name for field in fields)
    return slice(start, len(_ASKED))


_AT_CHOICES, _AT_TEXTS, _AT_COUNTS, _AT_MILLIS = map(_ask, (_CHOICES, _TEXTS, _COUNTS, _MILLIS))
_AT_TAGS, _AT_SCORES, _AT_COSTS, _AT_FLAGS = map(_ask, (_TAGS, _SCORES, _COSTS, _FLAGS))
_AT_REQUIRED: Final = slice(_AT_TEXTS.start, _AT_TEXTS.start + sum(field.required for field in _TEXTS))
_VALUES: Final = [frozenset(field.values) for field in _CHOICES]
_TO_FIND: Final[list[Any]] = [field.name for field in (*_COUNTS, *_MILLIS, *_FLAGS) if field.required]
"""Fields whose value may be their type's default, 0 or false: then the message tells whether they are there at all."""
_AT_KIND: Final = _ASKED.index("kind")
_NAME: Final = next(field for field in _LAX if field.name == "name")
_may_be_default = itemgetter(*map(_ASKED.index, _TO_FIND))
_every = attrgetter(*_ASKED)


def _condition(field: Field, *, is_priced: bool = True) -> str:
    """What must hold of a field of a parsed message, as Python; empty: nothing. It may say no to what `event.check`
    takes."""
    value = f"event.{field.name}"
    if field.is_lax:
        return ""
    match field.kind:
        case "choice":
            return f"{value} in {set(field.values)!r}"
        case "text" if field in _TEXTS:
            return f"{int(field.required)} <= len({value}) <= {field.most}"
        case "count" | "millis":
            there = f"and ({value} or event.HasField({field.name!r}))" if field.required else ""
            return f"{field.least} <= {value} <= {field.most!r} {there}"
        case "flag":
            return f"({value} or event.HasField({field.name!r}))" if field.required else ""
        case "cost":
            return f"is_decimal({value})" if is_priced else ""
        case "tags":
            return f"len({value}) <= {field.most}"
        case "scores":
            return f"(not {value} or are_finite({value}))"
        case _:
            return ""


def _are_finite(scores: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, scores.values()))


def _plain(*, is_priced: bool) -> Callable[[pb.Event], bool]:
    conditions = ["not event.extra_json", *(_condition(field, is_priced=is_priced) for field in FIELDS)]
    found: Callable[[pb.Event], bool] = eval(  # noqa: S307 - in a loop over the table this takes 70 % longer
        f"lambda event: {' and '.join(filter(None, conditions))}",
        {"is_decimal": _is_decimal, "are_finite": _are_finite},
    )
    return found


_is_plain: Final = _plain(is_priced=True)
_is_plain_but_for_cost: Final = _plain(is_priced=False)


class ProtoColumns(dict[str, Sequence[Any]]):
    """A field -> its value in each event, as protobuf has it: the type's default where there is none."""

    spans: list[int]
    """The places of the events that are spans, whose missing values are filled in."""
    unpriced: list[int]
    """Those of calls without a cost."""


def decode_all(records: Sequence[bytes], *, lenient: bool = False) -> ProtoColumns:
    """Parse and check the events of a request at a time; raises `ValueError` if they are not all plainly valid.
    `lenient`: calls may lack a cost.

    The same conditions as in `decode`, each asked once of a whole column. Ids, times and costs are checked afterwards.
    """
    try:
        events = list(map(_parse, records))
    except DecodeError:
        raise ValueError from None
    columns: list[Sequence[Any]] = list(zip(*map(_every, events), strict=True))
    spans = [place for place, kind in enumerate(columns[_AT_KIND]) if kind == "span"] if any(columns[_AT_KIND]) else []
    if spans:
        for place in spans:
            _complete(events[place])
        columns = list(zip(*map(_every, events), strict=True))
    unpriced: list[int] = []
    (costs,) = columns[_AT_COSTS]
    if lenient:
        unpriced = [place for place, cost in enumerate(costs) if not cost and not events[place].HasField("cost_usd")]
        if unpriced:
            missing = set(unpriced)
            costs = [cost for place, cost in enumerate(costs) if place not in missing]
    valid = (
        not any(columns[0])
        and all(map(frozenset.issuperset, _VALUES, columns[_AT_CHOICES]))
        and all(map(all, columns[_AT_REQUIRED]))  # none is empty
        and max(map(len, chain.from_iterable(columns[_AT_TEXTS]))) <= MAX_TEXT
        and all(min(column) >= 0 and max(column) <= MAX_INT for column in columns[_AT_COUNTS])
        # One by one, and not the least and the greatest: a comparison with NaN says no, whichever it is.
        and all(0 <= number <= MAX_FLOAT for number in chain.from_iterable(columns[_AT_MILLIS]))
        and max(map(len, chain.from_iterable(columns[_AT_TAGS]))) <= MAX_TAGS
        and all(map(_are_finite, filter(None, chain.from_iterable(columns[_AT_SCORES]))))
        and all(map(_is_decimal, costs))
        and all(
            all(column) or all(event.HasField(name) for event in events)
            for name, column in zip(_TO_FIND, _may_be_default(columns), strict=True)
        )
    )
    if not valid:
        raise ValueError
    found = ProtoColumns(zip(_ASKED, columns, strict=True))
    found.spans, found.unpriced = spans, unpriced
    return found


def _complete(span: Any) -> None:
    """Have a span, a parsed message, say what stands for what it lacks. Raises `ValueError` unless it has a name, and a
    cost that is missing or plainly 0."""
    if not is_of_form(_NAME, span.name) or (span.HasField("cost_usd") and span.cost_usd not in {"0", "0.0"}):
        raise ValueError
    missing = {**_IN_SPANS, "model": span.name}
    for name, value in missing.items():
        if not span.HasField(name):
            setattr(span, name, value)


_IN_SPANS: Final = {
    "provider": "custom",
    "operation": "custom",
    "stream": False,
    "input_tokens": 0,
    "output_tokens": 0,
    "cost_usd": "0",
}
"""What stands for the fields that a span may lack, the model aside."""


def decode(record: bytes, *, lenient: bool = False) -> pb.Event | None:
    """Parse and check one event the fast way; None if it is not plainly valid: then the slow way says why, or takes it.
    `lenient`: a call may lack a cost.

    The conditions are those of `event.check` that a parsed message can still break.
    """
    try:
        event = _parse(record)
        if event.kind == "span":
            _complete(event)
    except (DecodeError, ValueError):
        return None
    may_lack_cost = lenient and not event.HasField("cost_usd")
    return event if (_is_plain_but_for_cost if may_lack_cost else _is_plain)(event) else None


def fields(record: bytes, rules: int = RULES) -> "ProtoFields":
    """Open one event for the slow way; raises `Fault` if it is not a protobuf `Event`, or its `extra_json` not JSON."""
    try:
        return ProtoFields(_parse(record), rules)
    except DecodeError:
        raise Fault("syntax", None, "not a valid protobuf Event (strings must be UTF-8)") from None


class ProtoFields:
    """`Fields` of a parsed protobuf event. The schema has checked the types already; doubles may still be NaN."""

    def __init__(self, message: pb.Event, rules: int) -> None:
        self.rules = rules
        known = names_of(rules)
        self._values = {field.name: value for field, value in message.ListFields() if field.name in known}
        try:
            self._extra = _extra(message.extra_json)
        except Fault as fault:
            if fault.field is not None:  # what is wrong with an event as a whole names none in JSON either
                fault.event_id = readable_id(self)
            raise

    def names(self) -> list[str]:
        return list(self._values)

    def text(self, name: str) -> str | None:
        value: str | None = self._values.get(name)
        return value

    def number(self, name: str) -> Decimal | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            return _decimal(name, value)
        if isinstance(value, float):
            return _finite(name, value, name)
        return Decimal(value)

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._values.get(name)
        return value

    def strings(self, name: str) -> list[str] | None:
        value = self._values.get(name)
        return None if value is None else list(value)

    def string_map(self, name: str) -> dict[str, str] | None:
        value = self._values.get(name)
        return None if value is None else dict(value)

    def number_map(self, name: str) -> dict[str, float] | None:
        value = self._values.get(name)
        if value is None:
            return None
        return {key: float(_finite(name, item, item_of(name, key))) + 0.0 for key, item in value.items()}

    def unknown(self, kept: Collection[str]) -> dict[str, Raw]:
        found = {name: value for name, value in self._extra.items() if name not in self._values}
        return found | {name: Raw(msgspec.json.encode(self._values[name])) for name in kept}


def _extra(texts: Mapping[str, str]) -> dict[str, Raw]:
    """The unknown fields, judged as if they stood in a JSON event: numbers of any size, nested as deep as there."""
    found = {}
    for name, text in texts.items():
        if (name in NAMES and name not in RECENT) or name == IGNORED:
            continue  # a recent name may be that of an unknown field: senders used it before
        value = text.strip(" \t\r\n").encode()
        if is_deeper(value, MAX_NESTING - 1):
            raise Fault("out_of_range", None, f"an event must not be nested deeper than {MAX_NESTING}")
        try:
            found[name] = msgspec.json.decode(value, type=Raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            where = item_of("extra_json", name)
            raise Fault("syntax", "extra_json", f"{where} must be the text of a JSON value") from None
    return found


def _finite(name: str, value: float, where: str) -> Decimal:
    """`where`: the field, or the value in it, as a fault names it."""
    if math.isnan(value):
        raise Fault("invalid", name, f"{where} must be a number, not NaN")
    if math.isinf(value):
        raise Fault("out_of_range", name, f"{where} is out of range")
    return Decimal(repr(value))


def _decimal(name: str, text: str) -> Decimal:
    if _is_decimal(text) is None:
        raise Fault("invalid", name, f"{name} must be a decimal number in a string")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise Fault("out_of_range", name, f"{name} is out of range") from None
