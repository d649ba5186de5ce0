"""The messages between API processes and the grantor of leases: statements and leases, each a compacted topic with one
record for each API process.

All figures are absolute: a *cap* is the number of unique events of an organization's month that one API process, by its
name, may ever be charged with. So a record that is read twice, late or not at all does no harm.
"""

from typing import Final

import msgspec
from msgspec import Struct

TTL: Final = 10.0
"""Seconds of silence after which an API process counts as gone."""

FRESH: Final = 5.0
"""Seconds for which an API process uses its lease after its last durable statement: well below `TTL`."""

GAP: Final = 1 << 20
"""By how much the versions of a new grantor's leases exceed the earlier ones at least: more than the log can have lost.
An API process that sees such a step confirms at once."""

DELIVERY: Final = 10.0
"""Seconds after the end of an API process in which a write of it may still reach the log."""


class Account(Struct, frozen=True, array_like=True):
    """An organization's month of arrival, named by its start in microseconds."""

    organization: str
    month: int


class Need(Struct, frozen=True, array_like=True):
    """What an API process needs of an account: three caps, floor <= need <= want."""

    account: Account
    floor: int
    """Charged through it, or on its way."""
    need: int
    """The same with the batches that wait at this moment."""
    want: int
    """The same with what it expects in the next seconds."""


class Statement(Struct, frozen=True):
    """An API process's heartbeat, with its needs. An account without an entry was not used, or not since last month."""

    number: int
    directory: int
    """The offset in the directory up to which it applies every quota: all events that it accepted before it knew of
    those quotas are in the tables or in `needs`."""
    lease: int
    """The version of the lease it uses."""
    needs: list[Need]
    leaving: bool = False
    """True in the last one: nothing follows, and all it wrote is in the log."""
    arrived: int = 0
    """Whatever it has stamped with an earlier arrival (microseconds) is in the log, or will never be. 0: an earlier
    release has made the statement, which does not say."""


class Cap(Struct, frozen=True, array_like=True):
    """The cap of one account in a lease."""

    account: Account
    cap: int
    outstanding: int
    """The highest cap the process may still use."""


class Lease(Struct, frozen=True):
    """The caps of an API process. An account that is not in it has the cap 0."""

    version: int
    answers: int
    """The number of the last statement it takes into account."""
    caps: list[Cap]


encode = msgspec.json.Encoder().encode
_statement = msgspec.json.Decoder(Statement).decode
_lease = msgspec.json.Decoder(Lease).decode


def decode_statement(value: bytes) -> Statement:
    """Decode a record's value. Raises `ValueError` for another format."""
    return _statement(value)


def decode_lease(value: bytes) -> Lease:
    """Decode a record's value. Raises `ValueError` for another format."""
    return _lease(value)


def owner(instance: str, organization: str) -> str:
    """Return the id under which the tables count what an organization was charged through one API process's lease."""
    return f"{instance}/{organization}"
