"""`spendstream keys` and `spendstream orgs`: who may send and read, and how much."""

from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from processor.core.clock import DAY, format_timestamp
from processor.settings import Settings
from server import bootstrap
from server.cli.common import fail, now, open_log, print_json, settings_options
from server.keys import (
    DEFAULT_ORGANIZATION,
    DEFAULT_PROJECT,
    DEFAULT_SCOPES,
    SCOPES,
    Key,
    Organization,
    is_name,
    key_record,
    make_key,
    new_secret,
    organization_record,
)

_data_dir: Final = settings_options(Settings, "data_dir", "broker")
_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON")


@click.group()
def keys() -> None:
    """API keys. A running server sees every change within moments."""


@keys.command()
@click.option("--project", default=DEFAULT_PROJECT, show_default=True, help="Project the key belongs to")
@click.option("--org", default=DEFAULT_ORGANIZATION, show_default=True, help="Organisation that pays for it")
@click.option("--scopes", default=",".join(DEFAULT_SCOPES), show_default=True, help=f"Any of {', '.join(SCOPES)}")
@click.option("--rate-limit", metavar="N/min", help="Requests a minute; without it there is no limit")
@click.option("--expires", metavar="DAYS", type=click.IntRange(min=1), help="Days until the key expires")
@_json
@_data_dir
def create(
    project: str, org: str, scopes: str, rate_limit: str | None, expires: int | None, as_json: bool, **flags: Any
) -> None:
    """Create a key and print it: the only time it is shown."""
    for name, what in ((project, "--project"), (org, "--org")):
        if not is_name(name):
            fail(f"{what} takes 1 to 64 letters, digits, dots, dashes or underscores, not {name!r}")
    wanted = tuple(scope for scope in SCOPES if scope in scopes.split(","))
    if not wanted or len(wanted) != len(scopes.split(",")):
        fail(f"--scopes takes a comma-separated choice of {', '.join(SCOPES)}, not {scopes!r}")
    limit = None if rate_limit is None else _per_minute(rate_limit)
    at = now()
    secret = new_secret()
    key = make_key(
        secret,
        at=at,
        project=project,
        organization=org,
        scopes=wanted,
        expires=None if expires is None else at + expires * DAY,
        rate_limit=limit,
    )
    with open_log(flags) as log:
        bootstrap.write(log, key_record(key), at)
    if as_json:
        print_json({"key": secret, **_public(key)})
    else:
        click.echo(secret)
        click.echo(f"for project {project} of organisation {org}; it is not stored and not shown again", err=True)


def _per_minute(text: str) -> int:
    number = text.removesuffix("/min")
    if not number.isdecimal() or not int(number):
        fail(f"--rate-limit takes a number of requests a minute, like 600/min, not {text!r}")
    return int(number)


@keys.command("list")
@_json
@_data_dir
def list_keys(as_json: bool, **flags: Any) -> None:
    """List all keys, by their first characters."""
    with open_log(flags) as log:
        found = bootstrap.read_directory(log).all_keys()
    if as_json:
        print_json([_public(key) for key in found])
        return
    table = Table("key", "project", "organisation", "scopes", "created", "state")
    for key in found:
        public = _public(key)
        table.add_row(
            f"{key.prefix}…", key.project, key.organization, ",".join(key.scopes), public["created"], public["state"]
        )
    Console().print(table)


@keys.command()
@click.argument("prefix")
@_json
@_data_dir
def revoke(prefix: str, as_json: bool, **flags: Any) -> None:
    """Revoke the key that starts with PREFIX (`lqt_` and 8 characters, as listed; or the whole key)."""
    with open_log(flags) as log:
        directory = bootstrap.read_directory(log)
        matches = [key for key in directory.all_keys() if key.prefix == prefix[:12] and len(prefix) >= 12]
        if len(prefix) > 12:
            whole = directory.find(prefix)
            matches = [] if whole is None else [whole]
        if len(matches) != 1:
            fail(f"{len(matches)} keys start with {prefix[:12]!r}; `spendstream keys list` shows them all")
        at = now()
        key = msgspec.structs.replace(matches[0], revoked=matches[0].revoked or at)
        bootstrap.write(log, key_record(key), at)
    print_json(_public(key)) if as_json else click.echo(f"revoked {key.prefix}…")


def _public(key: Key) -> dict[str, Any]:
    if key.revoked is not None:
        state = "revoked"
    else:
        state = "expired" if key.expires is not None and key.expires <= now() else "active"
    return {
        "id": key.id,
        "prefix": key.prefix,
        "project": key.project,
        "organization": key.organization,
        "scopes": list(key.scopes),
        "created": format_timestamp(key.created),
        "expires": None if key.expires is None else format_timestamp(key.expires),
        "rateLimit": key.rate_limit,
        "state": state,
    }


@click.group()
def orgs() -> None:
    """Organisations and their monthly quotas."""


@orgs.command("set")
@click.argument("name")
@click.option("--monthly-quota", metavar="N", required=True, help="Unique events a calendar month (UTC), or `none`")
@_json
@_data_dir
def set_org(name: str, monthly_quota: str, as_json: bool, **flags: Any) -> None:
    """Set an organisation's monthly quota."""
    if not is_name(name):
        fail(f"an organisation's name has 1 to 64 letters, digits, dots, dashes or underscores, not {name!r}")
    if monthly_quota != "none" and not monthly_quota.isdecimal():
        fail(f"--monthly-quota takes a number of events or `none`, not {monthly_quota!r}")
    organization = Organization(name, None if monthly_quota == "none" else int(monthly_quota))
    with open_log(flags) as log:
        bootstrap.write(log, organization_record(organization), now())
    if as_json:
        print_json(_quota(organization))
    else:
        click.echo(f"{name}: {'no limit' if organization.monthly_quota is None else organization.monthly_quota}")


@orgs.command("list")
@_json
@_data_dir
def list_orgs(as_json: bool, **flags: Any) -> None:
    """List organisations: those with keys or with a quota of their own."""
    with open_log(flags) as log:
        directory = bootstrap.read_directory(log)
    names = {key.organization for key in directory.all_keys()} | {org.id for org in directory.organizations()}
    found = [_quota(directory.organization(name)) for name in sorted(names)]
    if as_json:
        print_json(found)
        return
    table = Table("organisation", "monthly quota")
    for row in found:
        table.add_row(row["organization"], "none" if row["monthlyQuota"] is None else str(row["monthlyQuota"]))
    Console().print(table)


def _quota(organization: Organization) -> dict[str, Any]:
    return {"organization": organization.id, "monthlyQuota": organization.monthly_quota}
