"""The services of a process that both APIs use: the ports behind HTTP and gRPC, gathered in `Services`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from processor.core.events.event import Handling
from server.alerts.budgets import BudgetList
from server.explore.explorer import Explorer, OffExplorer
from server.ingest.intake import Intake
from server.limits.memory_budget import MemoryBudget
from server.limits.refusal_pacing import RefusalPacer
from server.live.event_feed import EventFeed
from server.live.feed import Feed
from server.otlp.span_export import SpanExport
from server.reads.answers import QuotaAnswer, UserDetail, UserPage
from server.reads.costs import Costs
from server.tenancy.directory import Directory
from server.tenancy.directory_follower import DirectoryFreshness, always
from server.tenancy.keys import Key, Scope


class Reads(Protocol):
    """The reads, as both APIs call them. `params` are the query parameters by their HTTP names, as text.

    All raise `Refused`: bad_request (a parameter is wrong; the text names it), forbidden (another project),
    not_found, not_yet_visible (`after` was not reached in time).
    """

    async def list_users(self, key: Key, params: Mapping[str, str], after: str | None) -> UserPage: ...
    async def get_user(self, key: Key, user_id: str, params: Mapping[str, str], after: str | None) -> UserDetail: ...
    async def get_costs(self, key: Key, params: Mapping[str, str], after: str | None) -> Costs: ...
    async def get_quota(self, key: Key, after: str | None) -> QuotaAnswer: ...
    async def get_budgets(self, key: Key, after: str | None) -> BudgetList: ...


class Health(Protocol):
    """The health of the process, for the probes."""

    def unready(self) -> Sequence[str]:
        """Return why the process is not ready, a sentence each; empty when it is."""
        ...

    def warnings(self) -> Sequence[str]:
        """Return what an operator has to know even if the process is ready, a sentence each: what the log has lost,
        and that the tables are behind."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that an API needs; each API only adds its protocol."""

    intake: Intake
    otlp: SpanExport
    """What takes spans."""
    directory: Directory
    reads: Reads
    health: Health
    clock: Callable[[], int]
    """Microseconds since the epoch."""
    handling: Handling = "partial"
    """The default for requests that do not choose, nor their key; see `handling_of`."""
    feed: Feed = field(default_factory=Feed.of_nothing)
    bodies: MemoryBudget = field(default_factory=MemoryBudget)
    trust: DirectoryFreshness = field(default_factory=always)
    throttle: RefusalPacer = field(default_factory=RefusalPacer)
    access_log: bool = False
    """Whether each request and call is logged."""
    explorer: Explorer = field(default_factory=OffExplorer)
    event_feed: EventFeed = field(default_factory=lambda: EventFeed(OffExplorer(), ""))
    identity: str = ""
    """The log's name in position tokens."""

    def authenticate(self, secret: str | None, scope: Scope) -> Key:
        """Return the key of `secret`.

        Raises `Refused`: unauthenticated, forbidden if it lacks `scope`, unavailable if the directory is out of date.
        """
        self.trust.check()
        known = secret if secret is not None and secret.isascii() else None  # headers may hold any byte
        return self.directory.authenticate(known, scope, self.clock())

    def handling_of(self, key: Key, preferred: Handling | None = None) -> Handling:
        """How a batch of `key` is handled that asks for `preferred`."""
        return preferred or key.handling or self.handling


def secret_of(api_key: str | None, authorization: str | None) -> str | None:
    """Return the secret of a read: that of `x-api-key`, else of `Authorization: Bearer`."""
    if api_key is not None or authorization is None:
        return api_key
    scheme, _, secret = authorization.strip().partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
