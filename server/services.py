"""What the APIs need of a process: the ports behind HTTP and gRPC, and all of them in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from processor.core.events.event import Handling
from server.alerts.budgets import BudgetList
from server.ingest.intake import Intake
from server.limits.memory_budget import MemoryBudget
from server.limits.refusal_pacing import RefusalPacer
from server.live.feed import Feed
from server.reads.answers import QuotaAnswer, UserDetail, UserPage
from server.reads.costs import Costs
from server.tenancy.directory import Directory
from server.tenancy.freshness import DirectoryFreshness, always
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
    """What the probes ask."""

    def unready(self) -> Sequence[str]:
        """Why events cannot be taken now, a sentence each; empty when ready."""
        ...

    def warnings(self) -> Sequence[str]:
        """What an operator has to know though events can be taken, a sentence each: what is gone from the log."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything an API needs; each API adds its protocol, and nothing else."""

    intake: Intake
    directory: Directory
    reads: Reads
    health: Health
    clock: Callable[[], int]
    """Microseconds since the epoch."""
    handling: Handling = "partial"
    """Where a request does not say."""
    feed: Feed = field(default_factory=Feed.of_nothing)
    bodies: MemoryBudget = field(default_factory=MemoryBudget)
    trust: DirectoryFreshness = field(default_factory=always)
    throttle: RefusalPacer = field(default_factory=RefusalPacer)
    access_log: bool = False
    """Whether each request and call is logged."""

    def authenticate(self, secret: str | None, scope: Scope) -> Key:
        """The key that `secret` opens.

        Raises `Refused`: unauthenticated, forbidden if it lacks `scope`, unavailable if the directory is out of date.
        """
        self.trust.check()
        known = secret if secret is not None and secret.isascii() else None  # headers may hold any byte
        return self.directory.authenticate(known, scope, self.clock())


def secret_of(api_key: str | None, authorization: str | None) -> str | None:
    """The key a read shows: `x-api-key`, else `Authorization: Bearer`."""
    if api_key is not None or authorization is None:
        return api_key
    scheme, _, secret = authorization.strip().partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
