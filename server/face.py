"""What both doors, HTTP and gRPC, stand in front of."""

from collections.abc import Callable
from dataclasses import dataclass, field

from processor.core.events.event import Handling
from server.answers import Health, Reads
from server.feed import Feed
from server.ingest.intake import Intake
from server.limits.memory_budget import Room
from server.limits.refusal_pacing import Throttle
from server.tenancy.directory import Directory
from server.tenancy.freshness import Trust, always
from server.tenancy.keys import Key, Scope


@dataclass(frozen=True, slots=True)
class Face:
    """Everything a door needs; the doors add a wire each, and nothing else."""

    intake: Intake
    directory: Directory
    reads: Reads
    health: Health
    clock: Callable[[], int]
    """Microseconds since the epoch."""
    handling: Handling = "partial"
    """Where a request does not say."""
    feed: Feed = field(default_factory=Feed.of_nothing)
    bodies: Room = field(default_factory=Room)
    trust: Trust = field(default_factory=always)
    throttle: Throttle = field(default_factory=Throttle)
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
