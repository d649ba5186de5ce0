"""`spendstream budgets`: what a project, a user or a model may cost before somebody is told."""

import asyncio
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from processor.core.money import format_cost
from processor.settings import Settings
from processor.view.arrivals import Arrivals
from processor.wall_clock import now
from server.alerts.budget_admin import BudgetAdmin, NewBudget
from server.alerts.budget_json import budget_alone, budget_list
from server.alerts.budgets import DEFAULT_THRESHOLDS, MAX_THRESHOLD, WINDOWS, Budget, BudgetList, Window
from server.cli.common import UNICODE, fail, open_log, settings_options
from server.cli.keys import administration
from server.cli.output import Column, Sheet, print_encoded, say
from server.cli.users import read_view
from server.reads import read_json
from server.reads.read_service import ViewReads
from server.tenancy import directory_log
from server.tenancy.keys import DEFAULT_PROJECT, make_key

_log = settings_options(Settings, "data_dir", "broker")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API answers")
_project = click.option("--project", type=UNICODE, default=DEFAULT_PROJECT, show_default=True, help="The project")


@click.group()
def budgets() -> None:
    """Budgets: told once each day or month when so much of them is spent. Nobody is refused for a budget.

    Costs count by the events' own time (UTC). A running server sees every change within a second, and tells what is
    reached on the live stream, in `budgets list`, on its page and to SPENDSTREAM_ALERT_WEBHOOK.
    """


@budgets.command("set")
@click.option("--usd", required=True, metavar="AMOUNT", help="Dollars in one window, like 25 or 0.50")
@click.option("--window", required=True, type=click.Choice(WINDOWS), help="A UTC day or calendar month")
@click.option("--user", type=UNICODE, metavar="ID", help="Only this user  [default: all]")
@click.option("--model", type=UNICODE, metavar="NAME", help="Only this model  [default: all]")
@click.option(
    "--thresholds",
    metavar="N,N",
    default=",".join(map(str, DEFAULT_THRESHOLDS)),
    show_default=True,
    help=f"Percent of it at which somebody is told, 1 to {MAX_THRESHOLD}",
)
@_project
@_json
@_log
def set_budget(
    usd: str,
    window: Window,
    user: str | None,
    model: str | None,
    thresholds: str,
    project: str,
    as_json: bool,
    **flags: Any,
) -> None:
    """Set a budget; the one there is for the same user, model and window is replaced.

    \b
    Examples:
      spendstream budgets set --usd 500 --window month
      spendstream budgets set --usd 5 --window day --user alice --thresholds 50,80,100
    """
    parts = thresholds.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        fail(f"--thresholds takes whole percentages, like 50,80,100, not {thresholds!r}")
    try:
        amount = Decimal(usd)
    except InvalidOperation:
        fail(f"--usd takes an amount of dollars, like 25 or 0.50, not {usd!r}")
    wanted = NewBudget(amount, window, user, model, tuple(map(int, parts)))
    with administration(flags) as admin:
        found = BudgetAdmin(admin).set_budget(wanted, project)
    _print_one(found, f"{found.id}: {_what(found)}, {_amount(found)}", as_json)


@budgets.command("list")
@_project
@_json
@_log
def list_budgets(project: str, as_json: bool, **flags: Any) -> None:
    """List a project's budgets and what is spent of them, read beside a running server or without one."""
    with open_log(flags) as log:
        view, directory = read_view(log), directory_log.read_directory(log)
    reads = ViewReads(view, Arrivals(view), directory, "", now)
    found = asyncio.run(reads.get_budgets(make_key("", at=now(), project=project), None))
    print_encoded([read_json.encode(budget_list(found))]) if as_json else _print(found)


@budgets.command("delete")
@click.argument("budget", type=UNICODE)
@_project
@_json
@_log
def delete_budget(budget: str, project: str, as_json: bool, **flags: Any) -> None:
    """Delete BUDGET, named by its id as listed."""
    with administration(flags) as admin:
        found = BudgetAdmin(admin).delete_budget(budget, project)
    _print_one(found, f"deleted {found.id}: {_what(found)}", as_json)


def _print_one(found: Budget, line: str, as_json: bool) -> None:
    print_encoded([read_json.encode(budget_alone(found))]) if as_json else say(line)


def _what(budget: Budget) -> str:
    of = [f"user {budget.user_id}"] if budget.user_id is not None else []
    return ", ".join(of + ([f"model {budget.model}"] if budget.model is not None else [])) or "the project"


def _amount(budget: Budget) -> str:
    return f"{budget.usd} USD a {budget.window}, told at {', '.join(f'{each} %' for each in budget.thresholds)}"


def _print(found: BudgetList) -> None:
    table = Sheet(
        Column("for"),
        Column("window", "whole"),
        Column("budget USD", "number"),
        Column("spent USD", "number"),
        Column("reached", "number"),
        Column("id", "whole"),
    )
    for state in found.budgets:
        reached = f"{state.reached[-1].threshold} %" if state.reached else "no"
        budget = state.budget
        table.add(_what(budget), budget.window, str(budget.usd), format_cost(state.spent), reached, budget.id)
    table.print()
