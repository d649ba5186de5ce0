"""The parameters of reads: checks of query parameters, and the cursor of pages."""

import re
from base64 import urlsafe_b64decode
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Final, NoReturn

import msgspec

from processor.core.clock import DAY, parse_timestamp
from processor.view.query import DEFAULT_SORT, SORTS, Place, Range, UserQuery
from server.errors import Refused

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
_LIMIT = re.compile(r"[0-9]{1,4}").fullmatch


def parse_users(project: str, params: Mapping[str, str]) -> UserQuery:
    """Return the query of a list of users. Raises `Refused`."""
    check_names(
        params,
        ("start", "end", "model", "environment", "unattributed", "sort", "limit", "cursor", "projectId"),
        project,
    )
    days = parse_days(params)
    model, environment = _text(params, "model"), _text(params, "environment")
    unattributed = params.get("unattributed", "false")
    if unattributed not in {"true", "false"}:
        _bad("unattributed must be true or false")
    sort = params.get("sort", DEFAULT_SORT)
    if sort not in SORTS:
        _bad(f"sort must be one of {', '.join(SORTS)}")
    limit = params.get("limit", str(DEFAULT_LIMIT))
    if _LIMIT(limit) is None or not 1 <= int(limit) <= MAX_LIMIT:
        _bad(f"limit must be a whole number from 1 to {MAX_LIMIT}")
    asked = (project, sort, days.start, days.end, model, environment, unattributed)
    binding = blake2b(msgspec.json.encode(asked), digest_size=8).hexdigest()
    return UserQuery(
        project,
        days,
        model,
        environment,
        unattributed == "true",
        sort,
        int(limit),
        _place(binding, params["cursor"]) if "cursor" in params else None,
        binding,
    )


def parse_user(project: str, params: Mapping[str, str]) -> Range:
    """Return the range, in days, of one user's detail. Raises `Refused`."""
    check_names(params, ("start", "end", "projectId"), project)
    return parse_days(params)


def check_names(params: Mapping[str, str], known: Collection[str], project: str) -> None:
    """Raise `Refused` for a parameter that is not `known`, or a project other than the key's."""
    for name in params:
        if name not in known and name != "after":  # `after` is handled by the caller
            _bad(f"unknown parameter {name[:64]!r}; known are {', '.join(known)}, after")
    if params.get("projectId", project) != project:
        raise Refused("forbidden", "projectId is not the project of this API key")


def parse_days(params: Mapping[str, str]) -> Range:
    """Return `start` and `end` as whole UTC days since the epoch. Raises `Refused`."""
    return Range(_day(params, "start"), _day(params, "end"))


def parse_instant(name: str, text: str) -> int:
    """Return an RFC 3339 time, or a date as its midnight UTC, in microseconds since the epoch. Raises `Refused`."""
    try:
        return parse_timestamp(f"{text}T00:00:00Z" if _DATE(text) else text)
    except ValueError:
        _bad(f"{name} must be an RFC 3339 time with Z, or a date (YYYY-MM-DD)")


def _day(params: Mapping[str, str], name: str) -> int | None:
    if name not in params:
        return None
    day, rest = divmod(parse_instant(name, params[name]), DAY)
    if rest:
        _bad(f"{name} must be midnight UTC: users' costs are kept by UTC day")
    return day


def _text(params: Mapping[str, str], name: str) -> str | None:
    text = params.get(name)
    if text == "":
        _bad(f"{name} must not be empty")
    return text


_decode_cursor = msgspec.json.Decoder(tuple[str, int, str]).decode


def _place(binding: str, cursor: str) -> Place:
    try:
        bound, value, user = _decode_cursor(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, msgspec.MsgspecError):
        _bad("cursor is not one that this server gave out")
    if bound != binding:
        _bad("cursor belongs to a query with another order or other filters")
    return value, user


def _bad(message: str) -> NoReturn:
    raise Refused("bad_request", message)
