"""Budgets as JSON: the names and forms of the published contract."""

from typing import Any

from processor.core.clock import format_timestamp
from processor.core.money import exact_decimal
from server.alerts.budgets import Budget, BudgetList, BudgetState, Reached, to_pico, window_end


def budget_reached(reached: Reached) -> dict[str, Any]:
    """Return a reached threshold as the stream, the webhook and `GET /v1/budgets` show it."""
    return {
        "id": reached.id,
        "budget": reached.budget,
        "user_id": reached.user_id,
        "model": reached.model,
        "window": reached.window,
        "start": format_timestamp(reached.start),
        "end": format_timestamp(reached.end),
        "usd": exact_decimal(to_pico(reached.usd)),
        "threshold": reached.threshold,
        "spent": exact_decimal(to_pico(reached.spent)),
        "at": format_timestamp(reached.at),
    }


def budget_alone(budget: Budget) -> dict[str, Any]:
    """Return a budget without what is spent of it."""
    return {
        "id": budget.id,
        "user_id": budget.user_id,
        "model": budget.model,
        "window": budget.window,
        "usd": exact_decimal(budget.limit),
        "thresholds": list(budget.thresholds),
        "created": format_timestamp(budget.created),
    }


def _budget_state(state: BudgetState) -> dict[str, Any]:
    """Return a budget as `GET /v1/budgets` lists it."""
    left = state.budget.limit - state.spent
    return {
        **budget_alone(state.budget),
        "start": format_timestamp(state.start),
        "end": format_timestamp(window_end(state.budget.window, state.start)),
        "spent": exact_decimal(state.spent),
        "remaining": exact_decimal(max(0, left)),
        "reached": [budget_reached(each) for each in state.reached],
    }


def budget_list(found: BudgetList) -> dict[str, Any]:
    """Return the answer of `GET /v1/budgets`."""
    return {"budgets": [_budget_state(each) for each in found.budgets], "asOf": format_timestamp(found.as_of)}
