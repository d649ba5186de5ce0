"""Fair queueing (Nagle, RFC 970) of waiting requests: organizations take turns, of each the oldest request is next.

So an organization with a thousand waiting requests gets as many turns as one with a single request.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """The waiting items of several owners. Moments are of any monotonic clock."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[float, T]]] = {}
        """Owner -> (arrival, item), oldest first. The owner whose turn is next comes first."""
        self._arrivals: deque[tuple[float, str]] = deque()
        """(arrival, owner) over all owners in order, including items that are gone by now."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, owner: str, item: T, now: float) -> None:
        """Put an item behind the others of its owner."""
        self._count += 1
        self._queues.setdefault(owner, deque()).append((now, item))
        self._arrivals.append((now, owner))

    def admit(self, number: int, may_go: Callable[[str], bool], late: float) -> Iterator[T]:
        """Remove and return at most `number` next items, one of each owner that may go now: its oldest item, or its
        newest if it has items from before the moment `late`."""
        passed = 0
        while number and passed < len(self._queues):
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            if not may_go(owner):
                self._queues[owner] = queue
                passed += 1
                continue
            passed = 0
            number -= 1
            self._count -= 1
            _, item = queue.pop() if queue[0][0] < late else queue.popleft()
            if queue:
                self._queues[owner] = queue
            yield item

    def give_up(self, number: int, before: float) -> Iterator[T]:
        """Remove and return at most `number` items that came before a moment, the oldest first."""
        if not self._count:
            self._arrivals.clear()
        while number and self._arrivals and self._arrivals[0][0] < before:
            came, owner = self._arrivals.popleft()
            queue = self._queues.get(owner)
            if queue is None or queue[0][0] > came:
                continue  # the item has been removed already
            number -= 1
            self._count -= 1
            _, item = queue.popleft()
            if not queue:
                del self._queues[owner]
            yield item
