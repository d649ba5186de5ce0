"""Administration in a running process, for both APIs: one operation at a time, in a thread."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from processor.log.address import LogAddress
from processor.log.errors import LogError
from server.errors import Refused
from server.tenancy.administration import Administration, Record
from server.tenancy.directory import Directory
from server.tenancy.keys import Key

PATIENCE: Final = 2.0
"""Seconds that an answer waits until this process itself has applied the change."""

POLL: Final = 0.005

T = TypeVar("T")


class AdminService:
    """Operations of `Administration` on the log at `address`; `directory` is the one this process answers from."""

    def __init__(self, address: LogAddress, directory: Directory, clock: Callable[[], int]) -> None:
        self._address = address
        self._directory = directory
        self._clock = clock
        self._busy = asyncio.Lock()

    async def run(self, actor: Key, operation: Callable[[Administration], T]) -> T:
        """Run `operation` and return its result, once the change is durable and this process has applied it.

        Waits at most `PATIENCE` seconds for the latter. Raises `Refused`.
        """
        async with self._busy:
            try:
                result, written = await asyncio.to_thread(self._run, actor, operation)
            except LogError as error:
                raise Refused("unavailable", f"The log cannot be reached now ({error})", retry_after=1) from None
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not all(map(self._directory.has, written)):  # it belongs to the follower's thread
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(POLL)
        return result

    def _run(self, actor: Key, operation: Callable[[Administration], T]) -> tuple[T, list[Record]]:
        log = self._address.open()
        try:
            administration = Administration(log, self._clock(), actor)
            return operation(administration), administration.written
        finally:
            log.close()
