"""The protobuf `Event` as `Fields` (slow way) and as `ProtoEvent` (fast way)."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Raw

from processor.core.event import FIELDS, MAX_NESTING, Fault, ProtoEvent
from processor.core.nesting import is_deeper
from protos.spendstream.v1 import ingest_pb2 as pb

_convert = msgspec.convert
_parse = pb.Event.FromString


def decode(record: bytes) -> ProtoEvent:
    """Parse and check one event the fast way; raises `msgspec.ValidationError` or `ValueError`."""
    try:
        message = _parse(record)
    except DecodeError:
        raise ValueError("not a protobuf Event") from None
    values = {field.name: value for field, value in message.ListFields()}
    if "tags" in values:
        values["tags"] = dict(values["tags"])
    if "tools_used" in values:
        values["tools_used"] = list(values["tools_used"])
    if "eval_scores" in values:
        values["eval_scores"] = scores = dict(values["eval_scores"])
        if not all(map(math.isfinite, scores.values())):
            raise ValueError("not finite")
    if "extra_json" in values:
        _extra(values["extra_json"])
    return _convert(values, ProtoEvent)


def fields(record: bytes) -> "ProtoFields":
    """Open one event for the slow way; raises `Fault` if it is not a protobuf `Event`, or its `extra_json` not JSON."""
    try:
        return ProtoFields(_parse(record))
    except DecodeError:
        raise Fault("syntax", None, "not a valid protobuf Event (strings must be UTF-8)") from None


class ProtoFields:
    """`Fields` of a parsed protobuf event. The schema has checked the types already; doubles may still be NaN."""

    def __init__(self, message: pb.Event) -> None:
        self._values = {field.name: value for field, value in message.ListFields()}
        self._extra = _extra(message.extra_json)

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
            return _finite(name, value)
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
        return None if value is None else {key: float(_finite(name, item)) + 0.0 for key, item in value.items()}

    def extra(self) -> dict[str, Raw]:
        return self._extra


def _extra(texts: Mapping[str, str]) -> dict[str, Raw]:
    """The unknown fields, judged as if they stood in a JSON event: numbers of any size, nested as deep as there."""
    found = {}
    for name, text in texts.items():
        if name in FIELDS or name == "project_id":
            continue
        value = text.strip(" \t\r\n").encode()
        if is_deeper(value, MAX_NESTING - 1):
            raise Fault("out_of_range", None, f"an event must not be nested deeper than {MAX_NESTING}")
        try:
            found[name] = msgspec.json.decode(value, type=Raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Fault("syntax", "extra_json", f"extra_json[{name[:64]!r}] must be the text of a JSON value") from None
    return found


def _finite(name: str, value: float) -> Decimal:
    if math.isnan(value):
        raise Fault("invalid", name, f"{name} must be a number, not NaN")
    if math.isinf(value):
        raise Fault("out_of_range", name, f"{name} is out of range")
    return Decimal(repr(value))


_is_decimal = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch


def _decimal(name: str, text: str) -> Decimal:
    if _is_decimal(text) is None:
        raise Fault("invalid", name, f"{name} must be a decimal number in a string")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise Fault("out_of_range", name, f"{name} is out of range") from None
