"""Quantiles of more events than fit into memory: nearest ranks of numbers that are rounded to nine bits.

A number that is rounded so is at most 0.2 % off, and there are few different ones, so that they are counted instead of
kept. Zero and negative numbers are rounded in the same way.
"""

from collections.abc import Sequence
from typing import Final

from server.explore.measures import Quantile

EXACT: Final = 10_000_000
"""Events up to which quantiles are exact."""

BITS: Final = 8
"""Of a rounded number behind its first one."""


def rounded(column: str) -> str:
    """Return a number rounded to `BITS` + 1 bits: a value that stands for itself and its neighbours."""
    power = f"pow(2.0, floor(log2(greatest(abs({column}), 1e-300))) - {BITS})"
    return f"(round({column} / {power}) * {power})"


def approximate(source: str, keys: Sequence[str], parts: Sequence[str | Quantile]) -> str:
    """Return a SELECT of keys, parts and the number of events of each group, quantiles among the parts approximate.

    `source` is read once for each column that has quantiles, and once for everything else.
    """
    plain = [(number, part) for number, part in enumerate(parts) if isinstance(part, str)]
    group = f" GROUP BY {', '.join(keys)}" if keys else ""
    listed = "".join(f"{part} AS part_{number}, " for number, part in plain)
    tables = [f"(SELECT {', '.join([*keys, ''])}{listed}count(*) AS rows FROM {source}{group}) AS others"]
    sources: dict[tuple[str, str | None], list[tuple[int, Quantile]]] = {}
    for number, part in enumerate(parts):
        if isinstance(part, Quantile):
            sources.setdefault((part.column, part.condition), []).append((number, part))
    for place, members in enumerate(sources.values()):
        name = f"ranked_{place}"
        same = " AND ".join(f"others.{key} IS NOT DISTINCT FROM {name}.{key}" for key in keys) or "true"
        tables.append(f"LEFT JOIN ({_ranked(source, keys, members)}) AS {name} ON {same}")
    columns = [*(f"others.{key}" for key in keys), *(f"part_{number}" for number in range(len(parts))), "others.rows"]
    return f"SELECT {', '.join(columns)} FROM {' '.join(tables)}"


def _ranked(source: str, keys: Sequence[str], members: Sequence[tuple[int, Quantile]]) -> str:
    """Return a SELECT of the quantiles of one column."""
    column, condition = members[0][1].column, members[0][1].condition
    where = f"{column} IS NOT NULL" + ("" if condition is None else f" AND {condition}")
    by = ", ".join([*keys, "value"])
    counted = f"SELECT {', '.join([*keys, ''])}{rounded(column)} AS value, count(*) AS here FROM {source} "
    counted += f"WHERE {where} GROUP BY {by}"
    over = f"PARTITION BY {', '.join(keys)} " if keys else ""
    added = (
        f"SELECT *, sum(here) OVER ({over}ORDER BY value) AS up_to, sum(here) OVER ({over}) AS all_of FROM ({counted})"
    )
    quantiles = ", ".join(
        f"min(value) FILTER (up_to * 100 >= all_of * {part.percent}) AS part_{number}" for number, part in members
    )
    group = f" GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {', '.join([*keys, ''])}{quantiles} FROM ({added}){group}"
