"""What `/metrics` looks up in the parts of a running API process."""

from collections.abc import Callable, Mapping, Sequence

from processor.core.clock import SECOND, month_start
from processor.log import losses
from processor.view.view import View
from server.health import LogHealth
from server.ingest.log_publisher import LogPublisher
from server.limits.memory_budget import Room
from server.live.feed import Feed
from server.tenancy.directory import Directory


class Signals:
    """`State` of a process. `clock` gives microseconds since the epoch."""

    def __init__(
        self,
        view: View,
        publisher: LogPublisher,
        directory: Directory,
        health: LogHealth,
        pending: Room,
        feed: Feed,
        clock: Callable[[], int],
    ) -> None:
        self._view = view
        self._publisher = publisher
        self._directory = directory
        self._health = health
        self._pending = pending
        self._feed = feed
        self._clock = clock

    def lag(self) -> Mapping[int, int]:
        """See `State.lag`."""
        held = self._view.held()
        return {
            partition: max(end - held.get(partition, -1), 0) for partition, end in self._publisher.log_end().items()
        }

    def counted(self) -> tuple[int, int, int, int]:
        """See `State.counted`."""
        return self._view.counted()

    def sizes(self) -> tuple[int, int]:
        """See `State.sizes`."""
        return len(self._view), self._view.users

    def age(self) -> float:
        """See `State.age`."""
        return max(self._clock() - self._view.as_of, 0) / SECOND

    def quotas(self) -> Sequence[float]:
        """See `State.quotas`."""
        month = month_start(self._clock())
        limits = [(each.id, each.monthly_quota) for each in self._directory.organizations()]
        return [
            self._view.charged(name, month).unique / limit if limit else 1.0
            for name, limit in limits
            if limit is not None
        ]

    def pending(self) -> int:
        """See `State.pending`."""
        return self._pending.used

    def subscribers(self) -> int:
        """See `State.subscribers`."""
        return self._feed.subscribers

    def lost(self) -> Mapping[int, int]:
        """See `State.lost`."""
        return losses.uncounted(self._directory.lost())

    def unready(self) -> Sequence[str]:
        """See `State.unready`."""
        return self._health.unready()
