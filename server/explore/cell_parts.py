"""The parts of measures that can be added up in numpy (`cells`): of which columns each is made, and how."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from processor.core.events.fields import ERRORS
from processor.event_store.segment_sums import picodollars
from server.explore import sums
from server.explore.column_codes import column_codes
from server.explore.measures import Quantile, measures


class RowGroup(NamedTuple):
    """A row group, as far as it was read; what is left of its rows after `kept`."""

    table: Any
    kept: NDArray[np.bool_] | None
    """Which rows match; None: all."""
    is_call: NDArray[np.bool_] | bool
    """Of each row that is kept, or of all."""

    def rows(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return those that are kept of something that each row has."""
        return found if self.kept is None else found[self.kept]

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers; 0 or NaN for null."""
        column = self.table[name].chunk(0)
        return self.rows((column.fill_null(0) if column.null_count else column).to_numpy())

    def of_calls(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return numbers with 0 for what is no call."""
        if self.is_call is True:
            return found
        zero: NDArray[Any] = found * self.is_call
        return zero


class Sum(NamedTuple):
    """A part of measures that is a sum over the rows."""

    columns: tuple[str, ...]
    values: Callable[[RowGroup], NDArray[Any] | None]
    """Numbers that are not negative, or truths; None: 1 for each row."""
    known: str | None = None
    """What the manifest has of it, where all rows that match are calls."""


def _calls(group: RowGroup) -> NDArray[np.bool_] | None:
    if isinstance(group.is_call, bool):
        return None if group.is_call else np.zeros(len(group.rows(np.empty(len(group.table)))), np.bool_)
    return group.is_call


def _errors(group: RowGroup) -> NDArray[np.bool_]:
    codes = column_codes(group.table["status"])
    return group.rows(np.array([value in ERRORS for value in codes.values])[codes.places])


def _costs(group: RowGroup) -> NDArray[Any]:
    return group.of_calls(group.rows(picodollars(group.table["cost_usd"].chunk(0))))


def _unpriced(group: RowGroup) -> NDArray[Any]:
    absent = group.table["cost_usd"].chunk(0).is_null().to_numpy(zero_copy_only=False)
    return group.of_calls(group.rows(absent))


def _priced(group: RowGroup) -> NDArray[Any]:
    return group.of_calls(group.rows(group.table["cost_usd"].chunk(0).is_valid().to_numpy(zero_copy_only=False)))


def _tokens(name: str) -> Callable[[RowGroup], NDArray[Any]]:
    return lambda group: group.of_calls(group.numbers(name))


_MEAN_COST: Final = cast("tuple[str, str]", measures(["cost_usd:avg"])[0][0].parts)
"""Sum and count; without a count the sum means nothing."""
SUMS: Final = {
    sums.REQUESTS: Sum((), lambda group: None, "rows"),
    sums.CALLS: Sum((), _calls, "calls"),
    sums.ERROR_COUNT: Sum(("status",), _errors, "errors"),
    sums.COST: Sum(("cost_usd",), _costs, "cost"),
    sums.UNPRICED: Sum(("cost_usd",), _unpriced, "unpriced"),
    _MEAN_COST[0]: Sum(("cost_usd",), _costs, "cost"),
    _MEAN_COST[1]: Sum(("cost_usd",), _priced),
    **{
        sums.tokens(name): Sum((name,), _tokens(name), name if name in {"input_tokens", "output_tokens"} else None)
        for name in ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
    },
}
COSTS: Final = {sums.COST, _MEAN_COST[0]}
RANKED: Final[dict[tuple[str, str | None], str]] = {
    ("latency_ms", "latency_ms > 0"): "latency_ms",
    ("ttft_ms", None): "ttft_ms",
}


def ranked_column(part: str | Quantile) -> str | None:
    """Return the column that a quantile is of; None: it is none."""
    return None if isinstance(part, str) else RANKED[part.column, part.condition]
