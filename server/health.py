"""The health of an API process, for `/readyz` and `/metrics`: can it make events durable, are its tables up to date."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from processor.core.clock import SECOND, month_start
from processor.log import losses
from processor.log.errors import DamagedRecord
from processor.log.losses import Lost
from processor.structured_log import get_logger
from processor.view.view import View
from server.ingest.log_publisher import LogPublisher
from server.limits.memory_budget import MemoryBudget
from server.live.event_feed import EventFeed
from server.live.feed import Feed
from server.tenancy.directory import Directory
from server.tenancy.directory_follower import DirectoryFreshness, always

SHORT: Final = 2.0
"""Seconds for which events may be missing from the tables before that is reported."""


COUNT_EVERY: Final = 1.0
"""Seconds between two counts of missing events."""

BEHIND: Final = 10.0
"""Seconds that the tables may be behind the log before that is reported."""
CAUGHT_UP: Final = 2.0
"""Seconds behind the log at which they count as caught up again."""
MAX_ENDS: Final = 512
"""Ends of the log that are kept; of more, every other one goes."""


class TablesDelay:
    """How far the tables are behind the log, in seconds: how long ago it ended where they do not contain all of it."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, Mapping[int, int]]] = []
        """Seconds, and the end of the log then, of which the tables lack something; the oldest first."""
        self._behind_since: float | None = None
        self.seconds = 0.0

    @property
    def is_reported(self) -> bool:
        """Whether the tables have been too far behind, and have not caught up since."""
        return self._behind_since is not None

    def look(self, now: float, end: Mapping[int, int], contains: Callable[[Mapping[int, int]], bool]) -> None:
        """Note the end of the log, and log when the tables are too far behind, and when that is over. Call it about
        once a second."""
        lacked = next((number for number, (_, each) in enumerate(self._ends) if not contains(each)), len(self._ends))
        del self._ends[:lacked]
        if not contains(end):
            self._ends.append((now, end))
        if len(self._ends) > MAX_ENDS:
            del self._ends[1::2]
        self.seconds = now - self._ends[0][0] if self._ends else 0.0
        if self._behind_since is None and self.seconds > BEHIND:
            self._behind_since = now - self.seconds
            get_logger().warning("tables.behind", seconds=round(self.seconds))
        elif self._behind_since is not None and self.seconds < CAUGHT_UP:
            get_logger().info("tables.caught_up", after=round(now - self._behind_since))
            self._behind_since = None


class LogHealth:
    """`Health` by the log and the tables: can events be made durable, and does the worker make progress?"""

    def __init__(
        self,
        publisher: LogPublisher,
        view: View,
        max_lag: float,
        monotonic: Callable[[], float],
        trust: DirectoryFreshness | None = None,
        damage: Callable[[], DamagedRecord | None] = lambda: None,
        lost: Callable[[], Sequence[Lost]] = list,
    ) -> None:
        """`damage` returns which record of the tables or the directory cannot be read, if there is one; `lost` returns
        what is gone from the log."""
        self._damage = damage
        self._lost = lost
        self._trust = trust or always()
        self._publisher = publisher
        self._view = view
        self._max_lag = max_lag
        self._monotonic = monotonic
        self._at_start: Mapping[int, int] = publisher.log_end()
        self._caught_up = False
        self._moved_at = monotonic()
        self._seen: dict[int, int] = {}
        self._short_since: float | None = None
        self._shortfall = 0
        self._counted_at: float | None = None
        self._delay = TablesDelay()

    def look(self) -> None:
        """Find out how far the tables are behind, and log it where that is too far. Call it once a second."""
        self._delay.look(self._monotonic(), self._publisher.log_end(), self._view.contains)

    @property
    def caught_up(self) -> bool:
        """True once the view contains all that was in the log when this process started, and no rows are missing."""
        if not self._caught_up:
            self._caught_up = self._view.contains(self._at_start) and not self._find_shortfall()
        return self._caught_up

    def unready(self) -> Sequence[str]:
        """See `Health.unready`. It has to be called at least once a second to notice that the worker stands still."""
        reasons = []
        if self._publisher.failure is not None:
            reasons.append(f"the log cannot take events: {self._publisher.failure}")
        damage = self._damage()
        if damage is not None:
            reasons.append(f"the log cannot be read any further: {damage}")
        if not self.caught_up:
            reasons.append("the tables have not caught up with the log yet")
        if not self._trust.is_fresh:
            reasons.append("the keys known here may be out of date")
        missing = self._missing()
        if missing:
            reasons.append(
                f"rows are missing in the changelog: {missing} events that were counted are not shown. A worker that "
                "is started computes the rows anew"
            )
        still = self._standstill()
        if still > self._max_lag:
            reasons.append(f"the worker has made no progress for {still:.0f} s with events waiting")
        return reasons

    def _missing(self) -> int:
        """Return how many events the tables have lacked for `SHORT` seconds: for less, half a flush may be missing."""
        shortfall = self._find_shortfall()
        if shortfall is None:
            return 0
        if shortfall == 0:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = self._monotonic()
        lasted = 0.0 if self._short_since is None else self._monotonic() - self._short_since
        return shortfall if lasted > SHORT else 0

    def _find_shortfall(self) -> int | None:
        """Return `View.shortfall`, computed at most once in `COUNT_EVERY` seconds: it sums over all projects."""
        now = self._monotonic()
        if self._counted_at is None or now - self._counted_at >= COUNT_EVERY:
            found = self._view.shortfall()
            if found is None:  # asked again next time: that costs nothing
                return None
            self._shortfall, self._counted_at = found, now
        return self._shortfall

    def warnings(self) -> Sequence[str]:
        """See `Health.warnings`."""
        found = [each.text for each in self._lost()]
        if self._delay.is_reported:
            found.append(f"the tables are {self._delay.seconds:.0f} s behind the log")
        return found

    def _standstill(self) -> float:
        """Return the seconds without progress of the worker while events wait."""
        now = self._monotonic()
        position = dict(self._view.position)
        if position != self._seen or self._view.contains(self._publisher.log_end()):
            self._seen = position
            self._moved_at = now
        return now - self._moved_at


class Signals:
    """`State` of a process, for its metrics. `clock` returns microseconds since the epoch."""

    def __init__(
        self,
        view: View,
        publisher: LogPublisher,
        directory: Directory,
        health: LogHealth,
        pending: MemoryBudget,
        feeds: Sequence[Feed | EventFeed],
        clock: Callable[[], int],
    ) -> None:
        self._view = view
        self._publisher = publisher
        self._directory = directory
        self._health = health
        self._pending = pending
        self._feeds = feeds
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
        return sum(feed.subscribers for feed in self._feeds)

    def lost(self) -> Mapping[int, int]:
        """See `State.lost`."""
        return losses.uncounted(self._directory.lost())

    def unready(self) -> Sequence[str]:
        """See `State.unready`."""
        return self._health.unready()
