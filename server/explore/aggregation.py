"""The parts of measures by keys, as one SELECT; its quantiles are exact where their values fit into memory.

Quantiles of more events are nearest ranks of numbers that are rounded to nine bits. A number that is rounded so is at
most 0.2 % off, and there are few different ones, so that they are counted instead of kept.
"""

from collections.abc import Sequence
from typing import Final

from server.explore.engine import Engine
from server.explore.measures import Quantile
from server.explore.snapshot import Relation

Parts = Sequence[str | Quantile]

EXACT: Final = 10_000_000
"""Events up to which quantiles are exact."""

BITS: Final = 8
"""Of a rounded number behind its first one."""


def is_exact(engine: Engine, relation: Relation, project: str, parts: Parts, least: int = 0) -> bool:
    """Return whether the events of a project's relation are few enough for exact quantiles, if any are asked for.

    `least`: as many of them there are for certain."""
    if not any(isinstance(part, Quantile) for part in parts):
        return True
    if least > EXACT:
        return False
    sums = [each for segment in relation.segments for each in segment.projects if each.project == project]
    if sum(each.rows for each in sums) <= EXACT:
        return True
    ((rows,),) = engine.rows(f"SELECT count(*) FROM ({relation.sql})", relation.params)
    return bool(rows <= EXACT)


def aggregate(source: str, keys: Sequence[str], parts: Parts, *, exact: bool) -> str:
    """Return a SELECT of `keys`, the parts as `part_0`, `part_1`, ..., and `rows`, the number of events.

    `source` is a name: it may be read several times.
    """
    if not exact:
        return _approximate(source, keys, parts)
    return f"SELECT {_list(keys)}{_exact(parts)}count(*) AS rows FROM {source}{_group_by(keys)}"


def aggregate_sets(source: str, sets: Sequence[Sequence[str]], parts: Parts) -> str:
    """Return the same for several sets of keys at once, each one of the first, with exact quantiles.

    `level` says by which of the sets a row is: it is the number of keys that it is not by, read as bits.
    """
    keys = sets[0]
    level = f"grouping({', '.join(keys)})" if keys else "0"
    grouped = ", ".join(f"({', '.join(each)})" for each in sets)
    listed = f"{_list(keys)}{_exact(parts)}count(*) AS rows, {level} AS level"
    return f"SELECT {listed} FROM {source} GROUP BY GROUPING SETS ({grouped})"


def _exact(parts: Parts) -> str:
    percents: dict[tuple[str, str | None], list[int]] = {}
    for part in parts:
        if isinstance(part, Quantile):
            percents.setdefault((part.column, part.condition), []).append(part.percent)
    shown = (part.sql(percents[part.column, part.condition]) if isinstance(part, Quantile) else part for part in parts)
    return "".join(f"{part} AS part_{number}, " for number, part in enumerate(shown))


def _list(keys: Sequence[str]) -> str:
    return "".join(f"{key}, " for key in keys)


def _group_by(keys: Sequence[str]) -> str:
    return f" GROUP BY {', '.join(keys)}" if keys else ""


def rounded(column: str) -> str:
    """Return a number rounded to `BITS` + 1 bits: a value that stands for itself and its neighbours."""
    power = f"pow(2.0, floor(log2(greatest(abs({column}), 1e-300))) - {BITS})"
    return f"(round({column} / {power}) * {power})"


def _approximate(source: str, keys: Sequence[str], parts: Parts) -> str:
    """Read the source once for each column that has quantiles, and once for everything else."""
    listed = "".join(f"{part} AS part_{number}, " for number, part in enumerate(parts) if isinstance(part, str))
    tables = [f"(SELECT {_list(keys)}{listed}count(*) AS rows FROM {source}{_group_by(keys)}) AS others"]
    columns: dict[tuple[str, str | None], list[tuple[int, Quantile]]] = {}
    for number, part in enumerate(parts):
        if isinstance(part, Quantile):
            columns.setdefault((part.column, part.condition), []).append((number, part))
    for place, members in enumerate(columns.values()):
        name = f"ranked_{place}"
        same = " AND ".join(f"others.{key} IS NOT DISTINCT FROM {name}.{key}" for key in keys) or "true"
        tables.append(f"LEFT JOIN ({_ranked(source, keys, members)}) AS {name} ON {same}")
    shown = [*(f"others.{key}" for key in keys), *(f"part_{number}" for number in range(len(parts))), "others.rows"]
    return f"SELECT {', '.join(shown)} FROM {' '.join(tables)}"


def _ranked(source: str, keys: Sequence[str], members: Sequence[tuple[int, Quantile]]) -> str:
    """Return a SELECT of the quantiles of one column."""
    column, condition = members[0][1].column, members[0][1].condition
    where = f"{column} IS NOT NULL" + ("" if condition is None else f" AND {condition}")
    counted = (
        f"SELECT {_list(keys)}{rounded(column)} AS value, count(*) AS here FROM {source} WHERE {where} "
        f"GROUP BY {_list(keys)}value"
    )
    over = f"PARTITION BY {', '.join(keys)} " if keys else ""
    added = (
        f"SELECT *, sum(here) OVER ({over}ORDER BY value) AS up_to, sum(here) OVER ({over}) AS all_of FROM ({counted})"
    )
    quantiles = ", ".join(
        f"min(value) FILTER (up_to * 100 >= all_of * {part.percent}) AS part_{number}" for number, part in members
    )
    return f"SELECT {_list(keys)}{quantiles} FROM ({added}){_group_by(keys)}"
