"""Which request is next when many wait: one organization after the other, of each the oldest, none for too long.

Fair queueing (Nagle, RFC 970): an organization that has a thousand waiting gets as many turns as one with a single one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """What waits. Moments are of any clock that does not go back."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[float, T]]] = {}
        """Owner -> (the moment it came, item). The owner whose turn is next is the first."""
        self._arrivals: deque[tuple[float, str]] = deque()
        """The same over all owners: of an item, and of those that are gone by now."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, owner: str, item: T, now: float) -> None:
        """Put an item behind the others of its owner."""
        self._count += 1
        self._queues.setdefault(owner, deque()).append((now, item))
        self._arrivals.append((now, owner))

    def admit(self, number: int, may_go: Callable[[str], bool], late: float) -> Iterator[T]:
        """Remove the next items, `number` at most, of owners who may go now: of each the one that came first; of an
        owner with items from before the moment `late`, the one that came last."""
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
        """Remove items that came before a moment, `number` at most, those first that came first."""
        if not self._count:
            self._arrivals.clear()
        while number and self._arrivals and self._arrivals[0][0] < before:
            came, owner = self._arrivals.popleft()
            queue = self._queues.get(owner)
            if queue is None or queue[0][0] > came:
                continue  # it had its turn
            number -= 1
            self._count -= 1
            _, item = queue.popleft()
            if not queue:
                del self._queues[owner]
            yield item
