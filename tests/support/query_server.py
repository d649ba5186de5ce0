"""A query server in the event loop of a test, over a store that the test makes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from processor.event_store.first_build import BuildReport
from server.explore import wire
from server.explore.client import QueryClient
from server.explore.completeness import Completeness
from server.explore.process import QueryServer
from server.explore.store_follower import StoreState
from tests.support.event_store import NOON, ListIndex, StoreDirectory


class FollowedStore:
    """What a `StoreFollower` would know of a `StoreDirectory`."""

    def __init__(self, store: StoreDirectory) -> None:
        self._store = store
        self.completeness = Completeness()
        self.read_all = threading.Event()
        self.read_all.set()
        self.behind: Mapping[int, int] = {}
        self.building: BuildReport | None = None

    @property
    def state(self) -> StoreState:
        """The present state."""
        return StoreState.of(self._store.catalog)


class Asked:
    """A running query server and its client."""

    def __init__(self, server: QueryServer, client: QueryClient, store: FollowedStore) -> None:
        self.server = server
        self.client = client
        self.store = store


@asynccontextmanager
async def query_server(
    store: StoreDirectory, data_dir: Path, clock: Callable[[], int] = lambda: NOON, **settings: Any
) -> AsyncIterator[Asked]:
    """Serve questions about a store."""
    followed = FollowedStore(store)
    engine = store.engine(**settings)
    server = QueryServer(store.directory, engine, followed, clock, ListIndex)
    listening = await asyncio.start_unix_server(server.serve, sock=wire.listen(data_dir))
    try:
        yield Asked(server, QueryClient(data_dir), followed)
    finally:
        listening.close()
        await server.close()
        engine.close()
