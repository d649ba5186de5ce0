"""The thread that keeps the leases of this process up to date."""

from collections.abc import Callable

from processor.log.address import LogAddress
from processor.log.errors import LogBroken
from processor.log.following import FollowerThread
from processor.log.records import TopicPartition
from processor.log.topics import LEASES
from processor.structured_log import get_logger
from server.limits.lease_client import LeaseHoldings


class LeaseFollower(FollowerThread):
    """Tails the leases of quotas. `notify` is called in this thread when there is a new lease for this process."""

    def __init__(self, address: LogAddress, book: LeaseHoldings, notify: Callable[[], None]) -> None:
        super().__init__("leases", address.tail([TopicPartition(LEASES, 0)]))
        self._address = address
        self._book = book
        self._notify = notify

    def read_on(self) -> None:
        try:
            self._apply()
        except LogBroken as error:  # what is known here may no longer be in the log: nothing may be admitted by it
            get_logger().warning("leases.lost", error=str(error))
            self._book.drop()
            before, self._tail = self._tail, self._address.tail([TopicPartition(LEASES, 0)])
            before.close()

    def _apply(self) -> None:
        version = self._book.version
        for _, records in self._tail.poll():
            for record in records:
                self._book.apply(record.key, record.value)
        if self._book.version != version:
            self._notify()
        if self._tail.is_current:
            self.read_all.set()
