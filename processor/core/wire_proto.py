"""The protobuf `Event` as `Fields` (slow way) and as `ProtoEvent` (fast way)."""

import math
from decimal import Decimal

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Raw

from processor.core.event import FIELDS, Fault, ProtoEvent
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
    """Open one event for the slow way; raises `Fault` if it is not a protobuf `Event`."""
    try:
        return ProtoFields(_parse(record))
    except DecodeError:
        raise Fault("syntax", None, "not a valid protobuf Event (strings must be UTF-8)") from None


class ProtoFields:
    """`Fields` of a parsed protobuf event. The schema has checked the types already; doubles may still be NaN."""

    def __init__(self, message: pb.Event) -> None:
        self._values = {field.name: value for field, value in message.ListFields()}

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
        return _extra(self._values.get("extra_json") or {})


def _extra(texts: "dict[str, str]") -> dict[str, Raw]:
    found = {}
    for name, text in texts.items():
        if name in FIELDS or name == "project_id":
            continue
        try:
            msgspec.json.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Fault("syntax", "extra_json", f"extra_json[{name[:64]!r}] must be the text of a JSON value") from None
        found[name] = Raw(text.strip().encode())
    return found


def _finite(name: str, value: float) -> Decimal:
    if math.isnan(value):
        raise Fault("invalid", name, f"{name} must be a number, not NaN")
    if math.isinf(value):
        raise Fault("out_of_range", name, f"{name} is out of range")
    return Decimal(repr(value))


def _decimal(name: str, text: str) -> Decimal:
    plain = text.isascii() and text[:1] in tuple("-0123456789") and text[-1:].isdigit() and "_" not in text
    try:
        if plain:
            return Decimal(text)
    except ArithmeticError:
        pass
    raise Fault("invalid", name, f"{name} must be a decimal number in a string")
