"""Close a consumer that has read partitions."""

import contextlib
import time
from typing import Final

from confluent_kafka import Consumer, KafkaException

ANSWER_PATIENCE: Final = 1.0
"""Seconds that the brokers have to answer what was asked before."""


def close_reader(consumer: Consumer) -> None:
    """Close a consumer whose partitions were assigned by hand; blocks for `ANSWER_PATIENCE` where brokers are away.

    `Consumer.close` never returns if the answer that an offset is out of range arrives while librdkafka (2.16) ends
    (confluentinc/librdkafka#4514). It asks for such offsets on its own after a damaged record, inside of which it reads
    on. So nothing is fetched any more, and each leader is asked for something else: a broker answers the requests of a
    connection in their order, thus the last fetch before that.
    """
    deadline = time.monotonic() + ANSWER_PATIENCE
    with contextlib.suppress(KafkaException):
        assigned = consumer.assignment()
        consumer.unassign()
        for each in assigned:
            consumer.get_watermark_offsets(each, timeout=max(0.0, deadline - time.monotonic()))
    consumer.close()
