"""Log, worker and changelog in memory: real messages through the real tables."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Columns, Hot, columns_of
from processor.core.events.message import Message, build_blocks, opened
from processor.core.events.source import Source
from processor.core.tables.apply import Tables
from processor.core.tables.table_rows import Sums
from processor.core.tables.user_rows import UserRows
from tests.support.dict_index import DictIndex

NOON = 1_776_686_400_000_000
"""2026-04-20T12:00:00Z"""

Records = list[tuple[bytes, bytes | None]]

UserKey = tuple[str, str | None, int, str, str, str]
"""project, user, day, provider, model, environment."""


class Usage(NamedTuple):
    """One event, as far as tables care."""

    id: int
    user: str | None = "u1"
    at: int = NOON
    provider: str = "openai"
    model: str = "gpt-4o"
    environment: str = "production"
    input_tokens: int = 512
    output_tokens: int = 128
    cached_tokens: int = 0
    cost: int = 3_400_000_000
    error: bool = False
    unpriced: bool = False
    latency: int = 0
    """Its bucket."""
    span: bool = False

    def hot(self) -> Hot:
        """What a decoder makes of it."""
        return (
            str(UUID(int=(self.id + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4)),
            self.user,
            self.at,
            self.provider,
            self.model,
            self.environment,
            "chat",
            "error" if self.error else "success",
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.cost,
            UNPRICED_FLAG * self.unpriced | SPAN_FLAG * self.span,
            self.latency,
            0,
            b"{}",
        )


def columns(events: Iterable[Usage]) -> Columns:
    """What a decoder makes of a request."""
    return columns_of(event.hot() for event in events)


def by_key(users: UserRows) -> dict[UserKey, Sums]:
    """All rows of users by what they are kept by."""
    return {(at.project, at.user, at.day, at.provider, at.model, at.environment): row for at, row in users.rows()}


class Worker:
    """Appends requests to its log, applies them, and writes the changelog."""

    def __init__(self, partitions: int = 1, *, packs: bool = False) -> None:
        """`packs`: rows of users go into the changelog by the block."""
        self._packs = packs
        self.tables = [Tables(partition, b"salt", DictIndex()) for partition in range(partitions)]
        self.log: list[list[Message]] = [[] for _ in range(partitions)]
        self.changelog: list[Records] = [[] for _ in range(partitions)]
        self._applied = [0] * partitions

    def send(
        self,
        events: Sequence[Usage],
        *,
        arrival: int = NOON,
        project: str = "default",
        organization: str = "default",
        key: str = "key",
        lease: str = "",
    ) -> dict[int, int]:
        """Append one request; returns partition -> offset."""
        source = Source(organization, project, key, arrival, "json", "partial", lease)
        offsets = {}
        for partition, block in build_blocks(source, columns(events), len(self.log)).items():
            self.log[partition].append(opened([block]))
            offsets[partition] = len(self.log[partition]) - 1
        return offsets

    def log_end(self) -> dict[int, int]:
        """partition -> the last offset of the log."""
        return {partition: len(messages) - 1 for partition, messages in enumerate(self.log)}

    def work(self, partition: int) -> Records:
        """Apply what is new in one partition, and flush; returns the new changelog records."""
        tables, changelog = self.tables[partition], self.changelog[partition]
        messages = self.log[partition]
        for offset in range(self._applied[partition], len(messages)):
            tables.apply(offset, messages[offset], tables.prepare(messages[offset]))
        self._applied[partition] = len(messages)
        changes = tables.drain_changes(packs=self._packs)
        start = len(changelog)
        if changes is not None:
            changelog += changes.records
            changes.wrote(range(start, len(changelog)))
        return changelog[start:]

    def work_all(self) -> list[Records]:
        """`work` on every partition."""
        return [self.work(partition) for partition in range(len(self.log))]
