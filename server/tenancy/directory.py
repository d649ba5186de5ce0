"""The directory: keys, projects and organizations of the directory topic, and registered shelves for other records."""

from collections.abc import Callable, Collection
from hmac import compare_digest
from typing import Protocol, TypeVar

import msgspec

from processor.log import losses
from processor.log.losses import Lost
from server.errors import Refused
from server.tenancy.keys import NO_QUOTA, Key, Organization, Project, Quota, Scope, digest, rotated


class Shelf(Protocol):
    """What another package keeps of the directory: records of its own kinds. One thread applies, others may read."""

    @property
    def kinds(self) -> Collection[str]:
        """The kinds of record that it keeps: what their keys begin with."""
        ...

    def apply(self, kind: str, name: str, value: bytes | None) -> None:
        """Apply a record; `name` is what follows the kind in its key, the value of a tombstone is None.

        Raises `ValueError` for a value of another format.
        """
        ...


S = TypeVar("S", bound=Shelf)


class Directory:
    """Keys, projects and organizations as read from the directory topic, and the shelves of other packages.

    The newest record of each wins, with two exceptions, whatever the order of writers: a revocation is a separate
    record, which no later record of the key undoes; and a project stays with the organization that the log names first,
    in a record of the project or of a key for it.
    """

    def __init__(self, *shelves: Shelf, is_snapshot: bool = False) -> None:
        """`shelves` keep the records of other packages. A snapshot, which one thread reads, makes its shelves when they
        are asked for; otherwise a record of a kind without a shelf is an error."""
        self.changes = 0
        """Goes up after each record: what was found at the same number is found again."""
        self._by_hash: dict[str, Key] = {}
        self._revoked: dict[str, int] = {}
        self._rotated: dict[str, Key] = {}
        """The hash of a key that was replaced -> its successor."""
        self._organizations: dict[str, Organization] = {}
        self._quotas: dict[str, Quota] = {}
        self._projects: dict[str, Project] = {}
        self._lost: dict[str, Lost] = {}
        self._records: dict[bytes | None, bytes | None] = {}
        self._is_snapshot = is_snapshot
        self._shelves: dict[type[Shelf], Shelf] = {type(shelf): shelf for shelf in shelves}
        self._appliers: dict[str, Callable[[str, bytes | None, int], None]] = {
            "key": self._apply_key,
            "revoked": self._apply_revocation,
            "org": self._apply_organization,
            "project": self._apply_project,
            losses.KIND: self._apply_loss,
            "meta": lambda name, value, offset: None,  # the log's own settings
        }
        for shelf in shelves:
            self._register(shelf)

    def _register(self, shelf: Shelf) -> None:
        def applier(kind: str) -> Callable[[str, bytes | None, int], None]:
            return lambda name, value, offset: shelf.apply(kind, name, value)

        self._appliers |= {kind: applier(kind) for kind in shelf.kinds}

    def shelf(self, of: type[S]) -> S:
        """Return the shelf of a class. Raises `LookupError` if the directory was made without it and is no snapshot."""
        found = self._shelves.get(of)
        if found is None:
            if not self._is_snapshot:
                raise LookupError(f"the directory was made without {of.__name__}")
            found = self._shelves[of] = of()
            self._register(found)
            for key, value in self._records.items():
                kind, name = _split(key)
                if kind in found.kinds:
                    found.apply(kind, name, value)
        assert isinstance(found, of)
        return found

    def apply(self, key: bytes | None, value: bytes | None, offset: int = -1) -> None:
        """Apply one record of the topic. Raises `ValueError` for one of another format."""
        kind, name = _split(key)
        applier = self._appliers.get(kind)
        if applier is not None:
            applier(name, value, offset)
        elif not self._is_snapshot:
            raise ValueError(f"unknown kind of directory record: {key!r}")
        self._records[key] = value
        self.changes += 1  # last: what is found from now on contains the record

    def has(self, record: tuple[bytes, bytes | None]) -> bool:
        """Return True if `record` is the newest of its key that has been applied."""
        return self._records.get(record[0]) == record[1]

    def _apply_organization(self, name: str, value: bytes | None, offset: int) -> None:
        organization = Organization(name) if value is None else msgspec.json.decode(value, type=Organization)
        if value is None:
            self._organizations.pop(name, None)
        else:
            self._organizations[name] = organization
        # Last: a thread that sees the new quota (`quota`) must not find the old organization.
        self._quotas[name] = Quota(organization.monthly_quota, offset)

    def _apply_project(self, _: str, value: bytes | None, __: int) -> None:
        if value is not None:
            project = msgspec.json.decode(value, type=Project)
            self._projects.setdefault(project.id, project)

    def _apply_loss(self, name: str, value: bytes | None, _: int) -> None:
        if value is None:
            self._lost.pop(name, None)
        else:
            self._lost[name] = losses.decode(value)

    def _apply_key(self, hashed: str, value: bytes | None, _: int) -> None:
        if value is None:
            self._by_hash.pop(hashed, None)
            return
        key = msgspec.json.decode(value, type=Key)
        revoked = self._revoked.get(hashed)
        if revoked is not None:
            key = msgspec.structs.replace(key, revoked=revoked)
        successor = self._rotated.get(hashed)
        if successor is not None:
            key = rotated(key, successor)
        # The project first: another thread may ask for the key between the two.
        self._projects.setdefault(key.project, Project(key.project, key.organization, key.created))
        self._by_hash[hashed] = key
        if key.replaces is not None:
            self._rotated[key.replaces] = key
            replaced = self._by_hash.get(key.replaces)
            if replaced is not None:
                self._by_hash[key.replaces] = rotated(replaced, key)

    def _apply_revocation(self, hashed: str, value: bytes | None, _: int) -> None:
        if value is None:
            return
        at = self._revoked.setdefault(hashed, msgspec.json.decode(value, type=int))
        key = self._by_hash.get(hashed)
        if key is not None:
            self._by_hash[hashed] = msgspec.structs.replace(key, revoked=key.revoked or at)

    def all_keys(self) -> list[Key]:
        """All keys, oldest first."""
        return sorted(self._by_hash.values(), key=lambda key: key.created)

    def find(self, secret: str) -> Key | None:
        """Return the record of a key, revoked or not; None: there is none."""
        return self._by_hash.get(digest(secret))

    def owner_of(self, secret: str) -> str:
        """Return the organization of a key; "" if the key is not known."""
        key = self.find(secret)
        return "" if key is None else key.organization

    def projects(self) -> list[Project]:
        """All projects, by name."""
        return sorted(self._projects.values(), key=lambda project: project.id)

    def project(self, name: str) -> Project | None:
        """Return a project; None if there is none of that name."""
        return self._projects.get(name)

    def lost(self) -> list[Lost]:
        """Return what is gone from the log, in the order in which it was reported."""
        return list(self._lost.values())

    def organizations(self) -> list[Organization]:
        """Return all organizations that have settings."""
        return sorted(self._organizations.values(), key=lambda org: org.id)

    def organization(self, name: str) -> Organization:
        """Return an organization; one without settings has no limits."""
        return self._organizations.get(name) or Organization(name)

    def quota(self, name: str) -> Quota:
        """Return an organization's quota, and the offset of its record."""
        return self._quotas.get(name, NO_QUOTA)

    def authenticate(self, secret: str | None, scope: Scope, now: int) -> Key:
        """Return the key of `secret` if it is valid at `now` (microseconds) and has `scope`; raise `Refused` otherwise.

        It is looked up by its hash and compared in constant time, so response times say nothing of keys.
        """
        hashed = digest(secret) if secret else ""
        key = self._by_hash.get(hashed)
        if (
            key is None
            or not compare_digest(key.hash, hashed)
            or key.revoked is not None
            or (key.expires is not None and key.expires <= now)
            or self._projects[key.project].organization != key.organization
        ):
            raise Refused("unauthenticated", "Invalid API key")
        if scope not in key.scopes:
            raise Refused("forbidden", f"This API key lacks the scope {scope!r}")
        return key


def _split(key: bytes | None) -> tuple[str, str]:
    """Return kind and name from a record's key."""
    kind, _, name = (key or b"").decode().partition("/")
    return kind, name


def key_record(key: Key) -> tuple[bytes, bytes]:
    """Return the record of a key in the directory topic."""
    return f"key/{key.hash}".encode(), msgspec.json.encode(key)


def organization_record(organization: Organization) -> tuple[bytes, bytes]:
    """Return the record of an organization in the directory topic."""
    return f"org/{organization.id}".encode(), msgspec.json.encode(organization)


def revocation_record(key: Key, at: int) -> tuple[bytes, bytes]:
    """Return the record that revokes a key, for good."""
    return f"revoked/{key.hash}".encode(), msgspec.json.encode(at)


def project_record(project: Project) -> tuple[bytes, bytes]:
    """Return the record of a project. Of several organizations with one of that name, the first in the log has it."""
    return f"project/{project.id}/{project.organization}".encode(), msgspec.json.encode(project)
