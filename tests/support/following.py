"""A directory that follows the log, as an API process's does."""

import asyncio

from processor.log.embedded.log import Log
from server.tenancy import directory_log
from server.tenancy.directory import Directory


async def follow(log: Log, directory: Directory) -> None:
    """Take in what is written, for ever."""
    position = 0
    while True:
        for record in log.read(directory_log.HOME, position):
            directory.apply(record.key, record.value)
            position = record.offset + 1
        await asyncio.sleep(0.01)
