"""The port through which the API process asks questions about events, and its adapter for a store that is off."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NoReturn, Protocol

from server.errors import Refused
from server.explore.questions import Question


@dataclass(frozen=True, slots=True)
class Download:
    """An answer in pieces of any size, which come as they are read."""

    chunks: AsyncGenerator[bytes, None]
    """Raises `Refused` or `ConnectionError` where the answer breaks off. Closing it (`aclose`) ends the question."""
    rows: int | None = None
    """How many events the whole of an export has, where that is known exactly."""


class Explorer(Protocol):
    """Answers questions about events. All methods raise `Refused`.

    bad_request (a cursor of another question), too_deep, not_found, query_too_heavy, queries_busy, disk_full,
    event_store_off, event_store_missing, not_yet_visible (`after` was not reached in time), unavailable (the query
    process is away for the moment).
    """

    def check(self) -> None:
        """Refuse here what no question can get an answer to, before anything else of a request is looked at."""
        ...

    async def ask(self, question: Question) -> bytes:
        """Return the JSON that answers a question. Cancelling the call ends the question."""
        ...

    async def stream(self, question: Question) -> Download:
        """Begin to answer a question, of any size; the caller closes `chunks`."""
        ...


class OffExplorer:
    """The `Explorer` of a server without an event store: refuses every question."""

    def check(self) -> None:
        """Refuse."""
        self._refuse()

    async def ask(self, question: Question) -> bytes:
        """Refuse."""
        self._refuse()

    async def stream(self, question: Question) -> Download:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Refused(
            "event_store_off", "The event store is switched off on this server; SPENDSTREAM_EVENT_STORE=on starts it"
        )
