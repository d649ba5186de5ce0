"""One event as a dict, and from it the form each wire has for it."""

from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

import msgspec
from google.protobuf.descriptor import FieldDescriptor

from protos.spendstream.v1 import ingest_pb2 as pb

ABSENT: Final = object()
"""As an override: the event does not have this field."""


class Num(str):
    """A number as it is written, where a Python number would lose how: `Num("5.0")`, `Num("1e400")`."""

    __slots__ = ()


def make_event(**overrides: Any) -> dict[str, Any]:
    """A valid event with an id of its own. `None` is null, `ABSENT` leaves a field out, other names stay unknown."""
    event = {
        "event_id": str(uuid4()),
        "trace_id": "trace-abc",
        "span_id": "span-001",
        "timestamp": "2026-04-20T10:00:00.000Z",
        "provider": "openai",
        "model": "gpt-4o",
        "operation": "chat",
        "latency_ms": 843,
        "input_tokens": 512,
        "output_tokens": 128,
        "cost_usd": Decimal("0.0034"),
        "status": "success",
        "stream": False,
        "environment": "production",
        "sdk_version": "1.4.2",
        **overrides,
    }
    return {name: value for name, value in event.items() if value is not ABSENT}


_encode = msgspec.json.Encoder(decimal_format="number").encode


def to_json_line(event: dict[str, Any]) -> bytes:
    """The event as a line of NDJSON, without the line's end."""
    return _encode({name: _as_written(value) for name, value in event.items()})


def _as_written(value: Any) -> Any:
    if isinstance(value, Num):
        return msgspec.Raw(value.encode())
    if isinstance(value, dict):
        return {key: _as_written(item) for key, item in value.items()}
    return value


def to_ndjson(events: list[dict[str, Any]]) -> bytes:
    """A whole body."""
    return b"".join(to_json_line(event) + b"\n" for event in events)


def to_proto(event: dict[str, Any]) -> pb.Event:
    """The event as a message: null is absent, unknown fields go to `extra_json`; a wrong type raises."""
    message = pb.Event()
    for name, value in event.items():
        field = pb.Event.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            message.extra_json[name] = to_json_line({"": value})[4:-1].decode()
        elif value is None:
            continue
        elif isinstance(value, dict):
            getattr(message, name).update({key: _number(item) for key, item in value.items()})
        elif isinstance(value, list):
            getattr(message, name).extend(value)
        elif name == "cost_usd":
            message.cost_usd = str(value)
        elif field.type == FieldDescriptor.TYPE_INT64:
            setattr(message, name, int(Decimal(value)))
        else:
            setattr(message, name, _number(value))
    return message


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Num) else value
