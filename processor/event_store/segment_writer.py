"""The port to whatever writes the files of segments."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.event_store.manifest import Segment


class SegmentWriter(Protocol):
    """Writes files of segments. Calls block; both files and their names are durable on return. Raises `OSError`.

    A segment that is given has everything but the figures of its rows; the one that is returned has these, too. Of rows
    that arrived before `payload_before`, in microseconds, unknown fields and error messages are left out.
    """

    def table_of(self, message: Message, partition: int, offset: int, kept: NDArray[np.bool_]) -> Any:
        """Return the rows of a message that are kept. Raises `MessageError`."""
        ...

    def size_of(self, table: Any) -> int:
        """Return the bytes of the events of the message that `table_of` has made this of."""
        ...

    def write(self, tables: Sequence[Any], segment: Segment, payload_before: int) -> Segment:
        """Write the rows of a fresh segment, at least one."""
        ...

    def merge(
        self,
        parts: Sequence[Segment],
        segment: Segment,
        payload_before: int,
        between: Callable[[], None] = lambda: None,
    ) -> Segment:
        """Write the rows of other segments, at least one row, as one segment; call `between` every some thousand."""
        ...
