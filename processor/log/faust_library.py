"""Faust, without the clients of HTTP and of Kafka that it loads.

It needs aiohttp to name the type of a client, and aiokafka for two errors that only its own driver raises and a type
that its command line prints. Both took a fifth of the CPU that a worker or a store starts with.
"""

from typing import Final

from processor.lean_imports import stand_ins


class _NeverRaised(Exception):
    """An error of a library that is not loaded."""


_STAND_INS: Final[dict[str, dict[str, type]]] = {
    "aiohttp": {},
    "aiohttp.client": {"ClientSession": object},
    "aiokafka": {},
    "aiokafka.errors": {"IllegalStateError": _NeverRaised, "ProducerFenced": _NeverRaised},
    "aiokafka.structs": {"TopicPartition": _NeverRaised},
}

with stand_ins(_STAND_INS):
    import faust
    import faust.worker
    from faust import tables
    from faust.exceptions import ProducerSendError
    from faust.stores.base import Store
    from faust.tables.table import Table
    from faust.transport import base as transport
    from faust.types import TP, ConsumerMessage, EventT, HeadersArg, RecordMetadata
    from faust.types.assignor import HostToPartitionMap, LeaderAssignorT, PartitionAssignorT

__all__ = [
    "TP",
    "ConsumerMessage",
    "EventT",
    "HeadersArg",
    "HostToPartitionMap",
    "LeaderAssignorT",
    "PartitionAssignorT",
    "ProducerSendError",
    "RecordMetadata",
    "Store",
    "Table",
    "faust",
    "tables",
    "transport",
]
