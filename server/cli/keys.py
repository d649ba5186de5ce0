"""`spendstream keys`, `spendstream projects` and `spendstream orgs`: administration on the data directory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from processor.core.clock import DAY, HOUR, MINUTE, SECOND
from processor.core.events.event import HANDLINGS
from processor.settings import Settings
from processor.wall_clock import now
from server.cli.common import UNICODE, fail, open_log
from server.cli.grouped_help import HeadedGroup
from server.cli.output import print_json, say
from server.cli.settings_flags import settings_options
from server.cli.sheet import Cell, Column, Sheet
from server.errors import Refused
from server.tenancy.admin_json import of_key, of_organization, of_project
from server.tenancy.administration import OVERLAP, Administration, NewKey
from server.tenancy.keys import DEFAULT_PROJECT, DEFAULT_SCOPES, SCOPES

_data_dir: Final = settings_options(Settings, "data_dir", "broker")
_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON")


@contextmanager
def administration(flags: dict[str, Any]) -> Iterator[Administration]:
    """Yield the operations on the log of the settings; a refusal ends the command."""
    with open_log(flags) as log:
        try:
            yield Administration(log, now())
        except Refused as refused:
            fail(refused.message)


def _table(rows: list[dict[str, Any]], **columns: str) -> None:
    """Print `rows` as a table; `columns` maps members to headings."""
    table = Sheet(*map(Column, columns))
    for row in rows:
        table.add(*(_cell(row[name]) for name in columns.values()))
    table.print()


def _cell(value: Any) -> Cell:
    return ",".join(value) if isinstance(value, list) else value


# --- keys ------------------------------------------------------------------------------------------------------------


@click.group(cls=HeadedGroup)
def keys() -> None:
    """Create, list, change, rotate and revoke API keys.

    A running server sees every change within a second.
    """


@keys.command()
@click.option(
    "--project", type=UNICODE, help=f"Project of the key; created if it does not exist  [default: {DEFAULT_PROJECT}]"
)
@click.option(
    "--org", type=UNICODE, help="Organization of the project, whose quota counts  [default: the one that has it]"
)
@click.option(
    "--scopes",
    default=",".join(DEFAULT_SCOPES),
    show_default=True,
    metavar="SCOPE,SCOPE",
    help=f"Any of {', '.join(SCOPES)}",
)
@click.option("--rate-limit", metavar="N/min", help="Requests a minute  [default: no limit]")
@click.option("--expires", metavar="DAYS", type=click.IntRange(1, 36_500), help="Days until the key expires")
@click.option(
    "--handling",
    type=click.Choice(HANDLINGS),
    help="What becomes of its batches with bad events if a request does not say  [default: the server's setting]",
)
@click.option("--all-orgs", is_flag=True, help="With scope admin: for all organizations, not only its own")
@_json
@_data_dir
def create(
    project: str | None,
    org: str | None,
    scopes: str,
    rate_limit: str | None,
    expires: int | None,
    handling: str | None,
    all_orgs: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Create a key and print it. It is shown only this once."""
    end = None if expires is None else now() + expires * DAY
    limit = None if rate_limit is None else _per_minute(rate_limit)
    wanted = NewKey(project, org, scopes.split(","), limit, end, all_orgs, handling)
    with administration(flags) as admin:
        secret, key = admin.create_key(wanted)
    if as_json:
        print_json({"key": secret, **of_key(key, now())})
    else:
        say(secret)
        whose = f"project {key.project} of organization {key.organization}"
        say(f"for {whose}; it is not stored and not shown again", err=True)


def _per_minute(text: str) -> int:
    number = text.removesuffix("/min")
    if not number.isascii() or not number.isdecimal() or not int(number):
        fail(f"--rate-limit takes a number of requests a minute, like 600/min, not {text!r}")
    return int(number)


@keys.command("list")
@_json
@_data_dir
def list_keys(as_json: bool, **flags: Any) -> None:
    """List all keys by their prefixes."""
    with administration(flags) as admin:
        found = [of_key(key, now()) for key in admin.all_keys()]
    if as_json:
        print_json(found)
        return
    _table(found, key="prefix", project="project", organization="organization", scopes="scopes", state="state")


@keys.command("set")
@click.argument("key", type=UNICODE)
@click.option(
    "--handling",
    type=click.Choice([*HANDLINGS, "none"]),
    required=True,
    help="What becomes of its batches with bad events if a request does not say; none: as the server's setting has it",
)
@_json
@_data_dir
def set_key(key: str, handling: str, as_json: bool, **flags: Any) -> None:
    """Change KEY: every server goes by it a second later.

    KEY is its id, or `lqt_` and 8 characters as listed. The whole key works too, but other users of this machine can
    see the arguments of its processes.
    """
    with administration(flags) as admin:
        changed = admin.set_handling(key, None if handling == "none" else handling)
    said = changed.handling or "as the server's setting has it"
    print_json(of_key(changed, now())) if as_json else say(f"handling of {changed.prefix}…: {said}")


@keys.command()
@click.argument("key", type=UNICODE)
@click.option("--overlap", metavar="TIME", default="24h", show_default=True, help="How long both are valid: 0, 90s, 2d")
@_json
@_data_dir
def rotate(key: str, overlap: str, as_json: bool, **flags: Any) -> None:
    """Replace KEY by a new key, and print that.

    KEY is its id, or `lqt_` and 8 characters as listed. The whole key works too, but other users of this machine can
    see the arguments of its processes.
    """
    span = _span(overlap)
    with administration(flags) as admin:
        secret, made, old = admin.rotate(key, span)
    if as_json:
        print_json({"key": secret, **of_key(made, now()), "replaces": of_key(old, now())})
    else:
        say(secret)
        say(f"replaces {old.prefix}…, which is valid until {of_key(old, now())['expires']}", err=True)


_UNITS: Final = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "": SECOND}


def _span(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None or int(found[1]) * _UNITS[found[2]] > 366 * DAY:
        default = OVERLAP // HOUR
        fail(f"--overlap takes a time up to 366d, like 90s, 30m, {default}h or 2d, not {text!r}")
    return int(found[1]) * _UNITS[found[2]]


@keys.command()
@click.argument("key", type=UNICODE)
@_json
@_data_dir
def revoke(key: str, as_json: bool, **flags: Any) -> None:
    """Revoke KEY: no server accepts it a second later.

    KEY is its id, or `lqt_` and 8 characters as listed. The whole key works too, but other users of this machine can
    see the arguments of its processes.
    """
    with administration(flags) as admin:
        revoked = admin.revoke(key)
    print_json(of_key(revoked, now())) if as_json else say(f"revoked {revoked.prefix}…")


# --- projects --------------------------------------------------------------------------------------------------------


@click.group(cls=HeadedGroup)
def projects() -> None:
    """Create and list projects.

    A project belongs to one organization, for ever.
    """


@projects.command("create")
@click.argument("name", type=UNICODE)
@click.option("--org", type=UNICODE, help="Organization that has it  [default: default]")
@_json
@_data_dir
def create_project(name: str, org: str | None, as_json: bool, **flags: Any) -> None:
    """Create a project; one that the organization has already stays as it is."""
    with administration(flags) as admin:
        made = admin.create_project(name, org)
    print_json(of_project(made)) if as_json else say(f"{made.id} of organization {made.organization}")


@projects.command("list")
@_json
@_data_dir
def list_projects(as_json: bool, **flags: Any) -> None:
    """List all projects."""
    with administration(flags) as admin:
        found = [of_project(project) for project in admin.projects()]
    print_json(found) if as_json else _table(found, project="project", organization="organization", created="created")


# --- organizations ---------------------------------------------------------------------------------------------------


@click.group(cls=HeadedGroup)
def orgs() -> None:
    """Set and list organizations' monthly quotas."""


@orgs.command("set")
@click.argument("name", type=UNICODE)
@click.option("--monthly-quota", metavar="N", required=True, help="Unique events a calendar month (UTC), or `none`")
@_json
@_data_dir
def set_org(name: str, monthly_quota: str, as_json: bool, **flags: Any) -> None:
    """Set an organization's monthly quota."""
    if monthly_quota != "none" and not (monthly_quota.isascii() and monthly_quota.isdecimal()):
        fail(f"--monthly-quota takes a number of events or `none`, not {monthly_quota!r}")
    with administration(flags) as admin:
        found = admin.set_quota(name, None if monthly_quota == "none" else int(monthly_quota))
    limit = "no limit" if found.monthly_quota is None else found.monthly_quota
    print_json(of_organization(found)) if as_json else say(f"{name}: {limit}")


@orgs.command("list")
@_json
@_data_dir
def list_orgs(as_json: bool, **flags: Any) -> None:
    """List the organizations that have a project, a key or a quota."""
    with administration(flags) as admin:
        found = [of_organization(org) for org in admin.organizations()]
    print_json(found) if as_json else _table(found, organization="organization", quota="monthlyQuota")
