"""The tables as one Faust table: Faust assigns its partitions, the loader fills them, the applier writes its changelog.

The rows are changed in bulk, not through `Table.__setitem__` (a message and about 100 µs for each row), but each is
still one keyed record of the changelog topic, so that Faust's own recovery reads it too (`apply_changelog_batch`).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from processor.log.faust_library import TP, EventT, Store, Table, faust
from processor.log.topics import ROWS
from processor.state.loader import Partition
from processor.structured_log import get_logger


class RowStore(Store[bytes, bytes]):
    """The partitions this worker owns."""

    def __init__(
        self, *args: Any, owned: dict[int, Partition], load: Callable[[int], Partition] | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._load = load
        self.partitions = owned
        self._offsets: dict[TP, int] = {}

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Drop revoked partitions and load assigned ones, in bulk, so that Faust's recovery has nothing to fetch.

        Without `load` the caller does both.
        """
        if self._load is None:
            return
        for tp in revoked:
            if tp.topic == ROWS and tp.partition in self.partitions:
                self.partitions.pop(tp.partition).index.close()
        coming = [tp for tp in sorted(newly_assigned) if tp.topic == ROWS]
        await asyncio.gather(*map(self._bring, coming))

    async def _bring(self, tp: TP) -> None:
        assert self._load is not None
        partition = await asyncio.to_thread(self._load, tp.partition)
        self.partitions[tp.partition] = partition
        self._offsets[tp] = partition.rows_end - 1
        get_logger().info(
            "partition.loaded", partition=tp.partition, rows=len(partition.tables), ids=len(partition.index)
        )

    def persisted_offset(self, tp: TP) -> int | None:
        return self._offsets.get(tp)

    def set_persisted_offset(self, tp: TP, offset: int) -> None:
        self._offsets[tp] = offset

    def apply_changelog_batch(
        self, batch: Iterable[EventT[Any]], to_key: Callable[[Any], bytes], to_value: Callable[[Any], bytes]
    ) -> None:
        """Apply changelog records that Faust has fetched."""
        for event in batch:
            message = event.message
            self.partitions[message.partition].tables.restore(message.key or b"", message.value, message.offset)
            self._offsets[message.tp] = message.offset

    def reset_state(self) -> None:
        self.partitions.clear()
        self._offsets.clear()

    async def backup_partition(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the changelog is the backup")

    def restore_backup(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the changelog is the backup")

    # A Faust store is a mapping; ours is read through the core's tables and never written by key.

    def __getitem__(self, key: bytes) -> bytes:
        raise KeyError(key)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        raise TypeError("rows are changed by messages only")

    def __delitem__(self, key: bytes) -> None:
        raise TypeError("rows are changed by messages only")

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def __len__(self) -> int:
        return sum(len(partition.tables) for partition in self.partitions.values())


class RowTable(Table[bytes, bytes]):
    """The Faust table over a `RowStore`, which keeps `owned`: partition number -> what this worker holds of it."""

    def __init__(
        self, app: faust.App, *, owned: dict[int, Partition], load: Callable[[int], Partition] | None, **kwargs: Any
    ) -> None:
        super().__init__(app, **kwargs)
        self._owned = owned
        self._load = load

    def _new_store(self) -> Any:
        named = {"table_name": self.name, "loop": self.loop}
        return RowStore("memory://", self.app, self, owned=self._owned, load=self._load, **named)
