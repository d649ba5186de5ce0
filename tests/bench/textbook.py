"""The baseline: the same job as a good newcomer to Faust writes it from its documentation.

One event is one message, in JSON, described by a `Record`; one agent; a table of the ids seen and a table of each
user's cost, both in memory with a changelog. It runs on the same embedded log as the product, through the same
transport, and promises less: money in floats, no quota, no rows by day or model, and a crash between an event's two
changelog records counts it twice or never.
"""

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import faust

from processor.log.embedded.log import FILE_NAME, Log
from processor.log.embedded.transport import Transport
from processor.log.faust_assignment import Assignment
from processor.log.topics import EVENTS

NAME: Final = "textbook"
TABLES: Final = ("seen", "cost")


class Event(faust.Record, serializer="json"):
    """What the program needs of an event; other fields are ignored."""

    event_id: str
    user_id: str
    cost_usd: float


class App(faust.App):
    open_log: Any
    """With what the product's transport asks its application."""

    def resume_at(self, partition: int) -> int | None:
        """Go on where it was committed."""
        return None


def changelog(table: str) -> str:
    """The topic that Faust keeps a table in."""
    return f"{NAME}-{table}-changelog"


def create_app(directory: Path) -> App:
    """The whole application, on the embedded log in `directory`."""
    app = App(
        NAME,
        broker=f"spendstream-sqlite://{directory}",
        store="memory://",
        datadir=str(directory / "faust"),
        topic_partitions=1,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        PartitionAssignor=Assignment,
    )
    app.open_log = partial(Log, directory, create=False)
    app.transport = Transport(app.conf.broker, app)
    app.producer_transport = Transport(app.conf.broker, app)
    events = app.topic(EVENTS, value_type=Event, partitions=1)
    seen = app.Table("seen", default=bool, partitions=1)
    cost = app.Table("cost", default=float, partitions=1)

    @app.agent(events)
    async def count(stream: Any) -> None:
        async for event in stream:
            if not seen[event.event_id]:
                seen[event.event_id] = True
                cost[event.user_id] += event.cost_usd

    return app


def create_log(directory: Path) -> None:
    """An empty log with the application's changelog topics beside its own."""
    Log(directory, partitions=1).close()
    database = apsw.Connection(str(directory / FILE_NAME))
    topics = [(changelog(table),) for table in TABLES]
    database.executemany("INSERT INTO partition (topic, partition) VALUES (?, 0)", topics)
    database.close()


async def _run(directory: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app: Any = create_app(directory)
    await app.start()
    await app.tables.recovery.completed.wait()
    print(json.dumps({"event": "ready"}), flush=True)
    await stop.wait()
    os._exit(0)  # nothing of a run outlives it


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1])))
