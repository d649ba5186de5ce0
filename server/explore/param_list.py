"""The query parameters of a read, each name with all of its values; what is not asked for is unknown."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NoReturn

from server.errors import Refused

Pairs = Iterable[tuple[str, str]]
"""Names and values as they were sent, decoded, in order."""

ALIASES: Final[Mapping[str, str]] = {"userId": "user_id", "sessionId": "session_id", "traceId": "trace_id"}
"""Names that other services use -> ours; also in front of a `!`."""

_WHOLE: Final = re.compile(r"[0-9]{1,9}").fullmatch


class ParamList:
    """The parameters of one request. Every method raises `Refused` (bad_request) with the name of what is wrong."""

    def __init__(self, pairs: Pairs) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(_own_name(_sound(name)), []).append(_sound(value))
        self._known: list[str] = []

    def all(self, name: str) -> tuple[str, ...]:
        """Return all values of a name, in order."""
        self._known.append(name)
        return tuple(self._values.pop(name, ()))

    def one(self, name: str) -> str | None:
        """Return the value of a name that may be given once; None: it is not given."""
        found = self.all(name)
        if len(found) > 1:
            bad(f"{name} must be given once")
        return found[0] if found else None

    def choice(self, name: str, words: Collection[str]) -> str | None:
        """Return a value that has to be one of `words`; None: it is not given."""
        found = self.one(name)
        if found is not None and found not in words:
            bad(f"{name} must be one of {', '.join(words)}")
        return found

    def whole(self, name: str, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        found = self.one(name)
        if found is None:
            return default
        if _WHOLE(found) is None or not 1 <= int(found) <= most:
            bad(f"{name} must be a whole number from 1 to {most:,}")
        return int(found)

    def finish(self) -> None:
        """Refuse what nothing has asked for."""
        for name in self._values:
            bad(f"unknown parameter {name[:64]!r}; known are {', '.join(self._known)}")


def _own_name(name: str) -> str:
    bare = name.removesuffix("!")
    return ALIASES[bare] + name[len(bare) :] if bare in ALIASES else name


def _sound(text: str) -> str:
    """Return text that can be encoded: what was no UTF-8 becomes a question mark, and matches nothing."""
    return text.encode(errors="replace").decode()


def bad(message: str) -> NoReturn:
    """Refuse a request for a parameter."""
    raise Refused("bad_request", message)
