"""Organizations, projects and keys as the command line and the admin API show them. Never a key's hash."""

from typing import Any

from processor.core.clock import format_timestamp
from server.tenancy.keys import Key, Organization, Project


def of_key(key: Key, now: int) -> dict[str, Any]:
    """Return a key without its hash."""
    if key.revoked is not None:
        state = "revoked"
    else:
        state = "expired" if key.expires is not None and key.expires <= now else "active"
    return {
        "id": key.id,
        "prefix": key.prefix,
        "project": key.project,
        "organization": key.organization,
        "scopes": list(key.scopes),
        "allOrganizations": key.everywhere,
        "created": format_timestamp(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
        "rateLimit": key.rate_limit,
        "handling": key.handling,
        "replacedBy": key.successor,
        "state": state,
    }


def of_project(project: Project) -> dict[str, Any]:
    """Return a project."""
    created = format_timestamp(project.created)
    return {"project": project.id, "organization": project.organization, "created": created}


def of_organization(organization: Organization) -> dict[str, Any]:
    """Return an organization and its quota."""
    return {"organization": organization.id, "monthlyQuota": organization.monthly_quota}


def _time(micros: int | None) -> str | None:
    return None if micros is None else format_timestamp(micros)
