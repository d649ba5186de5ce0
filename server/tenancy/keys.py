"""API keys, projects and organizations: the records of the directory topic, and the form of a key.

A key is `lqt_` + 64 hex characters (256 random bits), shown once and stored only as its SHA-256.
"""

import re
import secrets
from hashlib import sha256
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from processor.core.events.event import Handling

Scope = Literal["ingest", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read", "admin")

DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read")
DEFAULT_PROJECT: Final = "default"
DEFAULT_ORGANIZATION: Final = "default"

_FORM = re.compile(r"lqt_[0-9a-f]{64}").fullmatch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch


class Key(Struct, frozen=True):
    """The directory's record of a key; never the secret itself."""

    id: str
    hash: str
    """SHA-256 of the secret, hex."""
    prefix: str
    """`lqt_` and the next eight characters of the secret, by which people recognise it."""
    project: str
    organization: str
    scopes: tuple[Scope, ...]
    created: int
    """Microseconds since the epoch."""
    expires: int | None = None
    revoked: int | None = None
    rate_limit: int | None = None
    """Requests a minute."""
    everywhere: bool = False
    """With scope `admin`: acts for all organizations, not only its own. Only the command line makes such a key."""
    family: str | None = None
    """The id of the first key in a chain of rotations, which share one rate limit. None: this is the first."""
    successor: str | None = None
    """The id of the key that replaced this one by rotation."""
    replaces: str | None = None
    """The hash of the key that this one replaced by rotation."""
    replaced_expires: int | None = None
    """When that key ends at the latest. It is in this record so that a rotation is one record: it cannot be durable by
    half."""
    handling: Handling | None = None
    """Of batches whose request does not choose one; None: the server's."""

    @property
    def lineage(self) -> str:
        """The name under which the key's requests are counted."""
        return self.family or self.id


class Project(Struct, frozen=True):
    """A project, to which events and rows belong. It belongs to one organization, for ever."""

    id: str
    organization: str
    created: int
    """Microseconds since the epoch."""


class Organization(Struct, frozen=True):
    """An organization: its projects share its monthly quota."""

    id: str
    monthly_quota: int | None = None
    """Unique events a calendar month (UTC, by arrival); None: no limit."""


class Quota(NamedTuple):
    """An organization's quota, as one record of the directory has it."""

    limit: int | None
    offset: int
    """The offset of the record; a new record is another quota, even with the same limit. -1: there is no record."""


NO_QUOTA: Final = Quota(None, -1)


def new_secret() -> str:
    """Return a new random key."""
    return "lqt_" + secrets.token_hex(32)


def is_well_formed(secret: str) -> bool:
    """Return True for `lqt_` + 64 hex characters."""
    return _FORM(secret) is not None


def is_name(text: str) -> bool:
    """Return True for a name that a project or organization may have."""
    return _NAME(text) is not None


def digest(secret: str) -> str:
    """Return what is stored of a key: its SHA-256, hex."""
    return sha256(secret.encode()).hexdigest()


def make_key(
    secret: str,
    *,
    at: int,
    project: str = DEFAULT_PROJECT,
    organization: str = DEFAULT_ORGANIZATION,
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES,
    expires: int | None = None,
    rate_limit: int | None = None,
    everywhere: bool = False,
    family: str | None = None,
    replaces: str | None = None,
    replaced_expires: int | None = None,
    handling: Handling | None = None,
) -> Key:
    """Return the directory's record of a new key; its id is the start of its hash."""
    hashed = digest(secret)
    return Key(
        hashed[:16],
        hashed,
        secret[:12],
        project,
        organization,
        scopes,
        at,
        expires,
        rate_limit=rate_limit,
        everywhere=everywhere,
        family=family,
        replaces=replaces,
        replaced_expires=replaced_expires,
        handling=handling,
    )


def rotated(key: Key, successor: Key) -> Key:
    """Return the record of `key` after `successor` has replaced it."""
    ends = [end for end in (key.expires, successor.replaced_expires) if end is not None]
    return msgspec.structs.replace(key, expires=min(ends, default=None), successor=successor.id)
