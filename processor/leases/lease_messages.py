"""What API processes and the grantor of leases tell each other: two compacted topics, one record an API process in
each.

Everything is cumulative and absolute: a *cap* is the number of unique events of an organization's month that one front
end, by its name, may ever have been charged with. So a record that is read twice, late or not at all does no harm.
"""

from typing import Final

import msgspec
from msgspec import Struct

TTL: Final = 10.0
"""Seconds of silence after which an API process counts as gone."""

FRESH: Final = 5.0
"""Seconds for which an API process goes by its lease after its last durable statement: well below `TTL`."""

GAP: Final = 1 << 20
"""By how much at least the versions of a new grantor's leases are ahead: more than any number of them that the log can
have lost. An API process that sees such a step confirms at once."""

DELIVERY: Final = 10.0
"""Seconds after its end in which something an API process wrote may still come into the log."""


class Account(Struct, frozen=True, array_like=True):
    """An organization's month of arrival, named by its start in microseconds."""

    organization: str
    month: int


class Need(Struct, frozen=True, array_like=True):
    """What an API process says of an account. floor <= need <= want, all of them caps."""

    account: Account
    floor: int
    """Charged to it, or on its way."""
    need: int
    """With what waits at this moment."""
    want: int
    """With what it expects of the next seconds."""


class Statement(Struct, frozen=True):
    """An API process's sign of life. An account that is not in it was not used, or not since the month before this
    one."""

    number: int
    directory: int
    """The offset in the directory up to which it goes by every quota: what came before has left it no event that is
    neither in the tables nor in `needs`."""
    lease: int
    """The version of the lease it goes by."""
    needs: list[Need]
    leaving: bool = False
    """True in the last one: nothing follows, and all it wrote is in the log."""


class Cap(Struct, frozen=True, array_like=True):
    """What an API process may use of an account."""

    account: Account
    cap: int
    outstanding: int
    """The highest cap it may still go by."""


class Lease(Struct, frozen=True):
    """The newest word to an API process. An account that is not in it has the cap 0."""

    version: int
    answers: int
    """The number of the last statement it takes into account."""
    caps: list[Cap]


encode = msgspec.json.Encoder().encode
_statement = msgspec.json.Decoder(Statement).decode
_lease = msgspec.json.Decoder(Lease).decode


def decode_statement(value: bytes) -> Statement:
    """Raises `ValueError` for a record of another format."""
    return _statement(value)


def decode_lease(value: bytes) -> Lease:
    """Raises `ValueError` for a record of another format."""
    return _lease(value)


def owner(instance: str, organization: str) -> str:
    """The id under which the tables count what an organization was charged through one API process's lease."""
    return f"{instance}/{organization}"
