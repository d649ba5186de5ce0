"""Where events came from: one entry of a message for each request."""

from typing import Literal

from msgspec import Struct

from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.core.events.fields import RULES

Api = Literal["http", "grpc", "otlp"]
"""What events came in by, however they are encoded."""


class Source(Struct, array_like=True, frozen=True, gc=False):
    """Where a request's events came from: who pays for them, when and how they arrived."""

    organization: str
    project: str
    key_id: str
    arrival: int
    """Microseconds since the epoch: quotas go by it."""
    payload: PayloadFormat
    """Of the events' original bytes."""
    handling: Handling
    lease: str = ""
    """The API process through whose lease of the quota this is paid for (`processor.leases`); empty: none is needed."""
    api: Api = "http"
    rules: int = RULES
    """The version of the message whose rules the events are read by (`Field.since`): that of the message they are in,
    or were in before they were exported from there."""


class Request(Struct, array_like=True, frozen=True, gc=False):
    """The events of one request in one partition: `count` rows, behind those of the request before it."""

    source: Source
    count: int
