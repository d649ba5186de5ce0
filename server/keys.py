"""API keys: their form, their record in the directory topic, and the directory as a process sees it.

A key is `lqt_` + 64 hex characters (256 random bits), shown once and stored only as its SHA-256.
"""

import re
import secrets
from hashlib import sha256
from typing import Final, Literal

import msgspec
from msgspec import Struct

from server.errors import Refused

Scope = Literal["ingest", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read", "admin")
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read")
DEFAULT_PROJECT: Final = "default"
DEFAULT_ORGANIZATION: Final = "default"

_FORM = re.compile(r"lqt_[0-9a-f]{64}").fullmatch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch


class Key(Struct, frozen=True):
    """What the directory knows of a key; never the key itself."""

    id: str
    hash: str
    """SHA-256 of the key, hex."""
    prefix: str
    """`lqt_` and the first eight characters, to recognise it by."""
    project: str
    organization: str
    scopes: tuple[Scope, ...]
    created: int
    """Microseconds since the epoch."""
    expires: int | None = None
    revoked: int | None = None
    rate_limit: int | None = None
    """Requests a minute."""


class Organization(Struct, frozen=True):
    """Who pays: projects of one organisation share its monthly quota."""

    id: str
    monthly_quota: int | None = None
    """Unique events a calendar month (UTC, by arrival); None: no limit."""


def new_secret() -> str:
    """A fresh key."""
    return "lqt_" + secrets.token_hex(32)


def is_well_formed(secret: str) -> bool:
    """True for `lqt_` + 64 hex characters."""
    return _FORM(secret) is not None


def is_name(text: str) -> bool:
    """True for a name a project or organisation may have."""
    return _NAME(text) is not None


def digest(secret: str) -> str:
    """What is stored of a key."""
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
) -> Key:
    """The directory's record of a new key; its id is the start of its hash."""
    hashed = digest(secret)
    return Key(hashed[:16], hashed, secret[:12], project, organization, scopes, at, expires, None, rate_limit)


class Directory:
    """Keys and organisations as read from the directory topic; the newest record of each wins."""

    def __init__(self) -> None:
        self._by_hash: dict[str, Key] = {}
        self._organizations: dict[str, Organization] = {}

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in one record of the topic. Raises `ValueError` for one of another format."""
        kind, _, name = (key or b"").decode().partition("/")
        if kind == "key":
            if value is None:
                self._by_hash.pop(name, None)
            else:
                self._by_hash[name] = msgspec.json.decode(value, type=Key)
        elif kind == "org":
            if value is None:
                self._organizations.pop(name, None)
            else:
                self._organizations[name] = msgspec.json.decode(value, type=Organization)
        elif kind != "meta":  # what the log itself keeps there
            raise ValueError(f"unknown kind of directory record: {key!r}")

    def all_keys(self) -> list[Key]:
        """All keys, oldest first."""
        return sorted(self._by_hash.values(), key=lambda key: key.created)

    def find(self, secret: str) -> Key | None:
        """The record of a key, revoked or not."""
        return self._by_hash.get(digest(secret))

    def organizations(self) -> list[Organization]:
        """All organisations with settings of their own."""
        return sorted(self._organizations.values(), key=lambda org: org.id)

    def organization(self, name: str) -> Organization:
        """An organisation; one without settings has no limits."""
        return self._organizations.get(name) or Organization(name)

    def authenticate(self, secret: str | None, scope: Scope, now: int) -> Key:
        """The key that `secret` opens, if it is valid at `now` and has `scope`; raises `Refused` otherwise.

        Looked up by its hash, so what a caller can time is a hash, not a key.
        """
        key = self._by_hash.get(digest(secret)) if secret else None
        if key is None or key.revoked is not None or (key.expires is not None and key.expires <= now):
            raise Refused("unauthenticated", "Invalid API key")
        if scope not in key.scopes:
            raise Refused("forbidden", f"This API key lacks the scope {scope!r}")
        return key


def key_record(key: Key) -> tuple[bytes, bytes]:
    """Key and value of a key's record in the directory topic."""
    return f"key/{key.hash}".encode(), msgspec.json.encode(key)


def organization_record(organization: Organization) -> tuple[bytes, bytes]:
    """Key and value of an organisation's record in the directory topic."""
    return f"org/{organization.id}".encode(), msgspec.json.encode(organization)
