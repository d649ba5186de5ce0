"""`spendstream budgets`: set, list and delete budgets."""

import asyncio
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote

import click
import msgspec
from msgspec import Struct

from processor.wall_clock import now
from server.alerts.budget_admin import BudgetAdmin, NewBudget
from server.alerts.budget_json import budget_alone, budget_list
from server.alerts.budgets import DEFAULT_THRESHOLDS, MAX_THRESHOLD, WINDOWS, Budget, Window
from server.cli.answer_source import answer, source_options
from server.cli.common import UNICODE, fail, open_log
from server.cli.grouped_help import HeadedGroup
from server.cli.keys import administration
from server.cli.output import print_encoded, say
from server.cli.remote import Question
from server.cli.sheet import Column, Sheet
from server.reads import read_json
from server.tenancy.keys import DEFAULT_PROJECT, make_key

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API answers")
_project = click.option(
    "--project",
    type=UNICODE,
    help=f"The project  [default: the key's; in the data directory without a key {DEFAULT_PROJECT!r}]",
)


class ReachedThreshold(Struct):
    """A reached threshold, as far as it is shown."""

    threshold: int


class ShownBudget(Struct):
    """A budget, alone or in the answer of `GET /v1/budgets`, as far as it is shown."""

    id: str
    user_id: str | None
    model: str | None
    window: str
    usd: Decimal
    thresholds: list[int]
    spent: Decimal = Decimal()
    reached: list[ReachedThreshold] = []


class ShownList(Struct):
    """The answer of `GET /v1/budgets`, as far as it is shown."""

    budgets: list[ShownBudget]


@click.group(cls=HeadedGroup)
def budgets() -> None:
    """Set, list and delete budgets.

    Each threshold of a budget notifies once in a day or month; no event is refused for a budget. Costs count by the
    events' own time (UTC). A running server sees every change within a second, and notifies on the live stream, in
    `budgets list`, on its page and to SPENDSTREAM_ALERT_WEBHOOK.

    Asks the server that --url names; to set and delete it needs a key with the scope admin. Without --url it asks the
    server that runs on the data directory; if there is none, or it does not answer this key, it uses the data directory
    itself, and says so.
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
    help=f"Percentages of the amount at which to notify, 1 to {MAX_THRESHOLD}",
)
@_project
@_json
@source_options
def set_budget(
    usd: str,
    window: Window,
    user: str | None,
    model: str | None,
    thresholds: str,
    project: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Set a budget; it replaces the one for the same user, model and window.

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
    body = {"usd": usd, "window": window, "user_id": user, "model": model, "thresholds": wanted.thresholds}
    question = Question("/v1/budgets", _params(project), "PUT", msgspec.json.encode(body))
    found = _answer(flags, question, project, lambda admin, where: admin.set_budget(wanted, where))
    if as_json:
        print_encoded([found])
    else:
        made = msgspec.json.decode(found, type=ShownBudget)
        say(f"{made.id}: {_what(made)}, {_amount(made)}")


@budgets.command("list")
@_project
@_json
@source_options
def list_budgets(project: str | None, as_json: bool, **flags: Any) -> None:
    """List a project's budgets and what is spent of them."""
    where = _Place(project, changes=False)
    question = Question("/v1/budgets", _params(project))
    found = answer(flags, question, lambda left: _read(left, where.project), where.find)
    print_encoded([found]) if as_json else _print(msgspec.json.decode(found, type=ShownList))


@budgets.command("delete")
@click.argument("budget", type=UNICODE)
@_project
@_json
@source_options
def delete_budget(budget: str, project: str | None, as_json: bool, **flags: Any) -> None:
    """Delete BUDGET, named by its id as listed."""
    question = Question(f"/v1/budgets/{quote(budget, safe='')}", _params(project), "DELETE")
    found = _answer(flags, question, project, lambda admin, where: admin.delete_budget(budget, where))
    if as_json:
        print_encoded([found])
    else:
        gone = msgspec.json.decode(found, type=ShownBudget)
        say(f"deleted {gone.id}: {_what(gone)}")


def _params(project: str | None) -> dict[str, str]:
    return {} if project is None else {"projectId": project}


def _answer(
    flags: dict[str, Any], question: Question, project: str | None, change: Callable[[BudgetAdmin, str], Budget]
) -> bytes:
    """Make a change at the server, or in the data directory; return the budget as JSON."""
    where = _Place(project, changes=True)

    def make(left: dict[str, Any]) -> bytes:
        with administration(left) as admin:
            return read_json.encode(budget_alone(change(BudgetAdmin(admin), where.project)))

    return answer(flags, question, make, where.find)


class _Place:
    """The project that a command on the data directory means."""

    def __init__(self, given: str | None, *, changes: bool) -> None:
        self._given = given
        self._changes = changes
        self.project = given or DEFAULT_PROJECT

    def find(self, flags: dict[str, Any], key: str | None) -> str:
        """Find it, and name it: that of the key, as for a server. Ends a command that changes something if the key is
        not known here."""
        if self._given is None and key is not None:
            with administration(flags) as admin:
                found = admin.directory.find(key)
            if found is not None:
                self.project = found.project
            elif self._changes:
                fail("this key is not known in the data directory: name a project with --project, or leave the key out")
        return f"project {self.project}"


def _read(flags: dict[str, Any], project: str) -> bytes:
    from server.cli.log_tables import reads_of

    with open_log(flags) as log:
        reads = reads_of(log)
    return read_json.encode(budget_list(asyncio.run(reads.get_budgets(make_key("", at=now(), project=project), None))))


def _what(budget: ShownBudget) -> str:
    of = [f"user {budget.user_id}"] if budget.user_id is not None else []
    return ", ".join(of + ([f"model {budget.model}"] if budget.model is not None else [])) or "the project"


def _amount(budget: ShownBudget) -> str:
    return f"{budget.usd:f} USD a {budget.window}, notified at {', '.join(f'{each} %' for each in budget.thresholds)}"


def _print(found: ShownList) -> None:
    table = Sheet(
        Column("for"),
        Column("window", "whole"),
        Column("budget USD", "number"),
        Column("spent USD", "number"),
        Column("reached", "number"),
        Column("id", "whole"),
    )
    for budget in found.budgets:
        reached = f"{budget.reached[-1].threshold} %" if budget.reached else "no"
        table.add(_what(budget), budget.window, f"{budget.usd:f}", f"{budget.spent:f}", reached, budget.id)
    table.print()
