"""The ledger: what the tables have charged to an organization's month, in all and through each API process."""

from collections.abc import Mapping
from typing import Final

import msgspec

from processor.core.tables import table_rows
from processor.core.tables.table_rows import NEVER
from processor.leases.lease_messages import Account, owner

_key = msgspec.json.Decoder(tuple[int, str, str, str, str, int]).decode
_progress = msgspec.json.Decoder(list[int]).decode

MESSAGE_EVENTS: Final = 1000
"""No message has more events (`server.ingest.group_commit`)."""

_SCOPES: Final = {("org", "month"), ("lease", "lease")}


class Ledger:
    """Sums over the window rows of all partitions. A flush is applied as a whole: else an organization's count and its
    API processes' counts would not agree."""

    def __init__(self) -> None:
        self._shares: dict[bytes, int] = {}
        self._sums: dict[tuple[str, str, int], int] = {}
        self._pending: dict[int, dict[bytes, bytes | None]] = {}
        self.position: dict[int, int] = {}
        """partition -> the last offset of the events that is contained."""

    def apply(self, partition: int, key: bytes, value: bytes | None) -> None:
        """Apply one record of a partition's changelog, in order. Raises `ValueError` for another format."""
        kind = key[key.find(b'"') + 1 : key.find(b'"') + 9]
        if kind.startswith(b"window"):
            self._pending.setdefault(partition, {})[key] = value
        elif kind == b"progress" and value is not None:
            for changed, counts in self._pending.pop(partition, {}).items():
                self._fold(changed, counts)
            self.position[partition] = _progress(value)[0]

    def _fold(self, key: bytes, value: bytes | None) -> None:
        _, _, scope, id_, kind, start = _key(key)
        if (scope, kind) not in _SCOPES:
            return
        unique = 0 if value is None else table_rows.decode_value(value)[1]
        place = (scope, id_, start)
        found = self._sums.get(place, 0) + unique - self._shares.pop(key, 0)
        if value is not None:
            self._shares[key] = unique
        if found:
            self._sums[place] = found
        else:
            self._sums.pop(place, None)

    def total(self, account: Account) -> int:
        """Return the unique events charged to an account, through all processes."""
        return self._sums.get(("org", account.organization, account.month), 0)

    def leased(self, instance: str, account: Account) -> int:
        """Return the unique events charged to an account through one API process's lease."""
        return self._sums.get(("lease", owner(instance, account.organization), account.month), 0)

    def contains(self, ends: Mapping[int, int]) -> bool:
        """Return True once all messages up to `ends` (partition -> last offset) are in it."""
        return all(self.position.get(partition, NEVER) >= offset for partition, offset in ends.items())

    def lacks(self, ends: Mapping[int, int]) -> int:
        """Return how many events at most are in messages up to `ends` (partition -> last offset) and not in it."""
        messages = (max(0, offset - self.position.get(partition, NEVER)) for partition, offset in ends.items())
        return MESSAGE_EVENTS * sum(messages)
