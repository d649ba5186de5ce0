"""Operations on organizations, projects and keys, with their permissions: for the command line and the admin API alike.

Each operation reads the directory from the log first; it does not use what a process has cached of it.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.clock import HOUR
from processor.core.events.event import HANDLINGS, Handling
from processor.log.port import LogWriter
from server.errors import Refused
from server.tenancy import directory_log
from server.tenancy.directory import Directory, key_record, organization_record, project_record, revocation_record
from server.tenancy.keys import (
    DEFAULT_ORGANIZATION,
    DEFAULT_PROJECT,
    DEFAULT_SCOPES,
    SCOPES,
    Key,
    Organization,
    Project,
    Scope,
    is_name,
    make_key,
    new_secret,
    rotated,
)

OVERLAP: Final = 24 * HOUR
"""Microseconds for which a rotated key stays valid beside its successor, by default."""

MAX_QUOTA: Final = 2**53 - 1
MAX_RATE: Final = 2**31 - 1

Record = tuple[bytes, bytes | None]


class NewKey(Struct, frozen=True):
    """The properties of a new key. By default: the default project, and the organization that has the project."""

    project: str | None = None
    organization: str | None = None
    scopes: Sequence[str] = DEFAULT_SCOPES
    rate_limit: int | None = None
    """Requests a minute; None: no limit."""
    expires: int | None = None
    """Microseconds since the epoch; None: never."""
    everywhere: bool = False
    handling: str | None = None
    """Of batches whose request does not choose one; None: the server's."""


class Administration:
    """Operations on the directory of a log, at the time `at` (microseconds since the epoch). They block.

    `actor` is the admin key of the request; None is the command line, which may do everything. A key acts within its
    own organization, unless it was made for all of them; only such a key sets quotas. What an actor may not see is
    reported as not found. All operations raise `Refused`, and `LogError` if the log cannot be read or written.
    """

    def __init__(self, log: LogWriter, at: int, actor: Key | None = None) -> None:
        self._log = log
        self.at = at
        self._actor = actor
        self._directory = directory_log.read_directory(log)
        self.written: list[Record] = []
        """The records appended so far, in order."""

    # --- organizations ----------------------------------------------------------------------------------------------

    def organizations(self) -> list[Organization]:
        """Return the organizations that have a quota, a project or a key, by name."""
        directory = self._directory
        names = {org.id for org in directory.organizations()} | {each.organization for each in directory.projects()}
        return [directory.organization(name) for name in sorted(names) if self._sees(name)]

    def set_quota(self, name: str, monthly_quota: int | None) -> Organization:
        """Set how many unique events an organization may send in a calendar month (UTC); None: no limit."""
        if self._actor is not None and not self._actor.everywhere:
            raise Refused("forbidden", "Only an admin key made for all organizations sets quotas")
        _check_name("an organization", name)
        if monthly_quota is not None and not 0 <= monthly_quota <= MAX_QUOTA:
            raise Refused("bad_request", f"A monthly quota is a whole number from 0 to {MAX_QUOTA}")
        organization = Organization(name, monthly_quota)
        self.write(organization_record(organization))
        return organization

    # --- projects ---------------------------------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """Return all projects that the actor may see, by name."""
        return [project for project in self._directory.projects() if self._sees(project.organization)]

    def create_project(self, name: str, organization: str | None = None) -> Project:
        """Create a project and return it; one that the organization has already is returned as it is."""
        wanted = organization or self._home()
        _check_name("a project", name)
        _check_name("an organization", wanted)
        if not self._sees(wanted):
            raise Refused("forbidden", f"This API key administers the organization {self._home()!r} only")
        if name == DEFAULT_PROJECT and wanted != DEFAULT_ORGANIZATION:  # the bootstrap key needs it there
            raise Refused("conflict", f"The project {name!r} belongs to another organization: name one of your own")
        if self._directory.project(name) is None:
            self.write(project_record(Project(name, wanted, self.at)))
            self._directory = directory_log.read_directory(self._log)  # another process may have been first
        found = self._directory.project(name)
        if found is None or found.organization != wanted:
            raise Refused("conflict", f"The project {name!r} belongs to another organization: name another one")
        return found

    def project_of(self, name: str | None) -> str:
        """Return the id of a project that the actor may see; its own if `name` is None."""
        own = DEFAULT_PROJECT if self._actor is None else self._actor.project
        found = self._directory.project(name or own)
        if found is not None and self._sees(found.organization):
            return found.id
        if name is None or name == own:
            return own
        raise Refused("forbidden", f"There is no project {name!r}, or this API key may not administer it")

    # --- keys -------------------------------------------------------------------------------------------------------

    def all_keys(self) -> list[Key]:
        """Return all keys that the actor may see, oldest first."""
        return [key for key in self._directory.all_keys() if self._sees(key.organization)]

    def create_key(self, wanted: NewKey) -> tuple[str, Key]:
        """Create a key, and its project if there is none; return the secret, never shown again, and the key."""
        scopes: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in wanted.scopes)
        if not scopes or len(scopes) != len(set(wanted.scopes)):
            raise Refused("bad_request", f"A key's scopes are a choice of {', '.join(SCOPES)}")
        if wanted.rate_limit is not None and not 1 <= wanted.rate_limit <= MAX_RATE:
            raise Refused("bad_request", f"A rate limit is a whole number of requests a minute from 1 to {MAX_RATE}")
        if wanted.expires is not None and wanted.expires <= self.at:
            raise Refused("bad_request", "expires must be in the future")
        if wanted.everywhere and (self._actor is not None or "admin" not in scopes):
            raise Refused("forbidden", "Only the command line makes keys for all organizations, and with scope admin")
        handling = _handling(wanted.handling)
        name = wanted.project or DEFAULT_PROJECT
        owner = self._directory.project(name)
        visible = owner.organization if owner is not None and self._sees(owner.organization) else None
        project = self.create_project(name, wanted.organization or visible)
        secret = new_secret()
        key = make_key(
            secret,
            at=self.at,
            project=project.id,
            organization=project.organization,
            scopes=scopes,
            expires=wanted.expires,
            rate_limit=wanted.rate_limit,
            everywhere=wanted.everywhere,
            handling=handling,
        )
        self.write(key_record(key))
        return secret, key

    def rotate(self, reference: str, overlap: int = OVERLAP) -> tuple[str, Key, Key]:
        """Create the successor of a key, which stays valid for `overlap` microseconds; return secret, new and old key.

        The successor has the properties of the key, and the lifetime that the key had at first.
        """
        key = self._find(reference)
        if overlap < 0:
            raise Refused("bad_request", "The time in which both keys are valid cannot be negative")
        self._check_reach(key)
        _check_valid(key, self.at)
        if key.successor is not None:
            raise Refused("conflict", f"The key {key.prefix}… was rotated already: rotate its successor")
        secret = new_secret()
        successor = make_key(
            secret,
            at=self.at,
            project=key.project,
            organization=key.organization,
            scopes=key.scopes,
            expires=None if key.expires is None else self.at + key.expires - key.created,
            rate_limit=key.rate_limit,
            everywhere=key.everywhere,
            family=key.lineage,
            replaces=key.hash,
            replaced_expires=self.at + overlap,
            handling=key.handling,
        )
        self.write(key_record(successor))  # one record: it also says when the predecessor ends
        return secret, successor, rotated(key, successor)

    def set_handling(self, reference: str, handling: str | None) -> Key:
        """Set the handling of a key's batches whose request does not choose one; None: the server's setting."""
        wanted = _handling(handling)
        key = self._find(reference)
        self._check_reach(key)
        _check_valid(key, self.at)
        if key.handling != wanted:
            key = msgspec.structs.replace(key, handling=wanted)
            self.write(key_record(key))
        return key

    def revoke(self, reference: str) -> Key:
        """Revoke a key, for good; return it. A key that was revoked before stays as it is."""
        key = self._find(reference)
        self._check_reach(key)
        if key.revoked is None:
            self.write(revocation_record(key, self.at))
            key = msgspec.structs.replace(key, revoked=self.at)
        return key

    # --- what these have in common ----------------------------------------------------------------------------------

    def _find(self, reference: str) -> Key:
        """Return the key with this id, this prefix as listed, or this secret."""
        found = [key for key in self.all_keys() if reference in (key.id, key.prefix)]
        whole = self._directory.find(reference)
        if whole is not None and self._sees(whole.organization):
            found = [whole]
        if len(found) > 1:
            raise Refused("conflict", f"{len(found)} keys start with {reference!r}: name one by its id")
        if not found:
            raise Refused("not_found", f"No key starts with {reference[:12]!r}")
        return found[0]

    def _check_reach(self, key: Key) -> None:
        """Refuse to change a key for all organizations, unless the actor is for all of them."""
        if key.everywhere and self._actor is not None and not self._actor.everywhere:
            raise Refused("forbidden", "This key is for all organizations")

    def _sees(self, organization: str) -> bool:
        actor = self._actor
        return actor is None or actor.everywhere or actor.organization == organization

    def _home(self) -> str:
        return DEFAULT_ORGANIZATION if self._actor is None else self._actor.organization

    def write(self, record: Record) -> None:
        """Append a record to the directory. On return it is durable, and applied to `directory`."""
        directory_log.write(self._log, record, self.at)
        self.written.append(record)
        self._directory.apply(*record)

    @property
    def directory(self) -> Directory:
        """The directory as read from the log, with what was written since."""
        return self._directory


def _check_valid(key: Key, at: int) -> None:
    if key.revoked is not None or (key.expires is not None and key.expires <= at):
        raise Refused("conflict", f"The key {key.prefix}… is not valid any more: create a new one")


def _handling(wanted: str | None) -> Handling | None:
    for known in HANDLINGS:
        if wanted == known:
            return known
    if wanted is not None:
        raise Refused("bad_request", f"A key's handling is one of {', '.join(HANDLINGS)}, or the server's")
    return None


def _check_name(what: str, name: str) -> None:
    if not is_name(name):
        raise Refused("bad_request", f"The name of {what} has 1 to 64 letters, digits, dots, dashes or underscores")
