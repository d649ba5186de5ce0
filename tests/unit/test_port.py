from pathlib import Path

import numpy as np

from processor.log.embedded.log import Log
from processor.log.port import LogWriter, polls, scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, ROWS

E0, R0 = TopicPartition(EVENTS, 0), TopicPartition(ROWS, 0)


def test_the_embedded_log_is_one_and_a_scan_reads_it_in_order(tmp_path: Path) -> None:
    log: LogWriter = Log(tmp_path)
    for number in range(7):
        log.append([Append(E0, [(None, b"%d" % number)])], number)
    assert [record.value for record in scan(log, E0, limit=2)] == [b"%d" % number for number in range(7)]
    assert [record.offset for record in scan(log, E0, 2, 5, limit=2)] == [2, 3, 4]
    assert list(scan(log, E0, 7)) == []


def test_a_scan_goes_over_gaps(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append([Append(E0, [(None, b"x")] * 5)], 0)
    log.trim(E0, 3)
    assert [record.offset for record in scan(log, E0, 0, limit=1)] == [3, 4]


def test_polls_are_bounded_by_limit_and_end_and_are_never_empty(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append([Append(R0, [(None, b"x")] * 7)], 0)
    assert [[record.offset for record in found] for found in polls(log.read, R0, 1, 6, 2)] == [[1, 2], [3, 4], [5]]
    log.compact(R0, 1, 6, 5, np.empty(0, np.int64))
    assert [[record.offset for record in found] for found in polls(log.read, R0, 0, 5, 3)] == [[0]]
    assert [[record.offset for record in found] for found in polls(log.read, R0)] == [[0, 6]]
    assert list(polls(log.read, R0, 7)) == []
