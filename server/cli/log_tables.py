"""The tables as the log has them, for commands that no server answers.

Loaded by those only: all that reads tables takes as long to load as the rest of a command.
"""

from processor.core.tables import row_block
from processor.log.port import LogReader, polls
from processor.log.records import TopicPartition
from processor.log.topics import ROWS
from processor.view.view import View
from processor.view.view_follower import Arrivals
from processor.wall_clock import now
from server.reads.read_service import ViewReads
from server.tenancy import directory_log


def reads_of(log: LogReader) -> ViewReads:
    """Read all tables of a log as they are now, and return what answers questions about them. Blocks."""
    view = View(row_block.seed_of(log.salt))
    for number in range(log.partitions):
        tp = TopicPartition(ROWS, number)
        for records in polls(log.read, tp):
            view.apply(number, [(record.key or b"", record.value) for record in records])
    view.mark_current(now())
    return ViewReads(view, Arrivals(view), directory_log.read_directory(log), "", now)
