"""The latencies of a view: histograms by project, hour, provider, model and environment, as the changelog has them."""

from collections.abc import Callable
from sys import intern
from typing import Any

from processor.core.tables import table_rows

Place = tuple[int, int, str, str, str]
"""Partition, hour since the epoch, provider, model, environment."""


class Latencies:
    """All of them. One thread replaces; who reads keeps that thread out."""

    def __init__(self) -> None:
        self._projects: dict[str, dict[Place, bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._projects.values()))

    def count(self, project: str) -> int:
        """How many a project has."""
        return len(self._projects.get(project, ()))

    def replace(self, partition: int, parts: tuple[Any, ...], value: bytes | None) -> None:
        """Take in a record; None: there is no such row any more."""
        project, hour, provider, model, environment = parts
        rows = self._projects.setdefault(project, {})
        place = (partition, hour, intern(provider), intern(model), intern(environment))
        if value is None:
            rows.pop(place, None)
        else:
            rows[place] = value

    def by_model(self, project: str, is_wanted: Callable[[int], bool]) -> dict[tuple[str, str], dict[int, int]]:
        """(provider, model) -> bucket -> events, over the wanted hours (since the epoch)."""
        found: dict[tuple[str, str], dict[int, int]] = {}
        for (_, hour, provider, model, _), value in self._projects.get(project, {}).items():
            if is_wanted(hour):
                total = found.setdefault((provider, model), {})
                for bucket, count in table_rows.histogram_of(table_rows.decode_value(value)).items():
                    total[bucket] = total.get(bucket, 0) + count
        return found
