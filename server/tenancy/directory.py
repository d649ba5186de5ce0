"""Keys, projects and organizations, and what else the directory topic says, as one process knows it."""

from hmac import compare_digest

import msgspec

from processor.log import losses
from processor.log.losses import Lost
from server.alerts.budgets import Budget, Reached
from server.alerts.records import _Draft
from server.errors import Refused
from server.tenancy.keys import NO_QUOTA, Key, Organization, Project, Quota, Scope, _put, digest, rotated


class Directory:
    """Keys, projects and organisations as read from the directory topic.

    The newest record of each wins, with two exceptions that hold whatever order writers come in: a revocation is a
    record of its own, which no later record of the key takes back; and a project stays with the organisation that
    the log names first, by a record of the project or by a key for it.
    """

    def __init__(self) -> None:
        self._by_hash: dict[str, Key] = {}
        self._revoked: dict[str, int] = {}
        self._rotated: dict[str, Key] = {}
        """The hash of a key that was replaced -> the key that did."""
        self._organizations: dict[str, Organization] = {}
        self._quotas: dict[str, Quota] = {}
        self._projects: dict[str, Project] = {}
        self._told: set[str] = set()
        self._drafts: dict[str, bytes] = {}
        """What the webhook is sent, by the id of the message: the first that the log has. None that it was told of."""
        self._budgets: dict[str, dict[str, Budget]] = {}
        self._reached: dict[str, dict[str, Reached]] = {}
        self.budget_changes = 0
        """Counts what was taken in of budgets and of what was reached."""
        self._records: dict[bytes | None, bytes | None] = {}
        self._lost: dict[str, Lost] = {}

    def apply(self, key: bytes | None, value: bytes | None, offset: int = -1) -> None:
        """Take in one record of the topic. Raises `ValueError` for one of another format."""
        self._apply(key, value, offset)
        self._records[key] = value

    def has(self, record: tuple[bytes, bytes | None]) -> bool:
        """True if `record` is the newest of its key that has been taken in."""
        return self._records.get(record[0]) == record[1]

    def _apply(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        kind, _, name = (key or b"").decode().partition("/")
        if kind == "key":
            self._apply_key(name, value)
        elif kind == "revoked":
            self._revoke(name, value)
        elif kind == "org":
            organization = Organization(name) if value is None else msgspec.json.decode(value, type=Organization)
            if value is None:
                self._organizations.pop(name, None)
            else:
                self._organizations[name] = organization
            # Last: who knows of a quota (`quota`) takes nothing without it any more.
            self._quotas[name] = Quota(organization.monthly_quota, offset)
        elif kind == "project":
            if value is not None:
                project = msgspec.json.decode(value, type=Project)
                self._projects.setdefault(project.id, project)
        elif kind == "alert":
            self._apply_alert(name, value)
        elif kind == "budget":
            _put(self._budgets, name, None if value is None else msgspec.json.decode(value, type=Budget))
            self.budget_changes += 1
        elif kind == "reached":
            _put(self._reached, name, None if value is None else msgspec.json.decode(value, type=Reached))
            self.budget_changes += 1
        elif kind == losses.KIND:
            if value is None:
                self._lost.pop(name, None)
            else:
                self._lost[name] = losses.decode(value)
        elif kind != "meta":  # what the log itself keeps there
            raise ValueError(f"unknown kind of directory record: {key!r}")

    def _apply_alert(self, name: str, value: bytes | None) -> None:
        message_id, _, draft = name.partition("/")
        if draft:
            if value is not None and message_id not in self._told:
                self._drafts.setdefault(message_id, msgspec.json.decode(value, type=_Draft).body.encode())
        elif value is None:
            self._told.discard(message_id)
        else:
            self._told.add(message_id)
            self._drafts.pop(message_id, None)

    def _apply_key(self, hashed: str, value: bytes | None) -> None:
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

    def _revoke(self, hashed: str, value: bytes | None) -> None:
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
        """The record of a key, revoked or not."""
        return self._by_hash.get(digest(secret))

    def owner_of(self, secret: str) -> str:
        """The organisation of a key, "" if there is none."""
        key = self.find(secret)
        return "" if key is None else key.organization

    def projects(self) -> list[Project]:
        """All projects, by name."""
        return sorted(self._projects.values(), key=lambda project: project.id)

    def project(self, name: str) -> Project | None:
        """A project; None if there is none of that name."""
        return self._projects.get(name)

    def is_told(self, message_id: str) -> bool:
        """True if the webhook was told of that (`server.alerts.delivery`)."""
        return message_id in self._told

    def draft(self, message_id: str) -> bytes | None:
        """The body under which a message goes to the webhook, whoever sends it; None if nobody has drafted it, or the
        webhook was told."""
        return self._drafts.get(message_id)

    def budgets(self, project: str | None = None) -> list[Budget]:
        """The budgets of a project, or all, oldest first."""
        found = [self._budgets.get(project, {})] if project is not None else list(self._budgets.values())
        return sorted((each for some in found for each in list(some.values())), key=lambda each: each.created)

    def reached(self, project: str | None = None) -> list[Reached]:
        """What was reached of a project's budgets, or of all, in the order in which it was written."""
        found = [self._reached.get(project, {})] if project is not None else list(self._reached.values())
        return [each for some in found for each in list(some.values())]

    def is_reached(self, reached: Reached) -> bool:
        """True if that is known already."""
        return reached.id in self._reached.get(reached.project, {})

    def lost(self) -> list[Lost]:
        """What is gone from the log, in the order in which it was reported."""
        return list(self._lost.values())

    def organizations(self) -> list[Organization]:
        """All organisations with settings of their own."""
        return sorted(self._organizations.values(), key=lambda org: org.id)

    def organization(self, name: str) -> Organization:
        """An organisation; one without settings has no limits."""
        return self._organizations.get(name) or Organization(name)

    def quota(self, name: str) -> Quota:
        """An organisation's quota, and which one it is."""
        return self._quotas.get(name, NO_QUOTA)

    def authenticate(self, secret: str | None, scope: Scope, now: int) -> Key:
        """The key that `secret` opens, if it is valid at `now` and has `scope`; raises `Refused` otherwise.

        Looked up by its hash, and compared in constant time: what a caller can time is a hash, not a key.
        """
        hashed = digest(secret) if secret else ""
        key = self._by_hash.get(hashed)
        if key is None or not compare_digest(key.hash, hashed) or not self._is_valid(key, now):
            raise Refused("unauthenticated", "Invalid API key")
        if scope not in key.scopes:
            raise Refused("forbidden", f"This API key lacks the scope {scope!r}")
        return key

    def _is_valid(self, key: Key, now: int) -> bool:
        """Not revoked, not expired, and of the organisation that has the project."""
        if key.revoked is not None or (key.expires is not None and key.expires <= now):
            return False
        return self._projects[key.project].organization == key.organization


def key_record(key: Key) -> tuple[bytes, bytes]:
    """Key and value of a key's record in the directory topic."""
    return f"key/{key.hash}".encode(), msgspec.json.encode(key)


def organization_record(organization: Organization) -> tuple[bytes, bytes]:
    """Key and value of an organisation's record in the directory topic."""
    return f"org/{organization.id}".encode(), msgspec.json.encode(organization)


def revocation_record(key: Key, at: int) -> tuple[bytes, bytes]:
    """Key and value of the record that revokes a key, for good."""
    return f"revoked/{key.hash}".encode(), msgspec.json.encode(at)


def project_record(project: Project) -> tuple[bytes, bytes]:
    """Key and value of a project's record; one of each organisation that asked for the name, and the first has it."""
    return f"project/{project.id}/{project.organization}".encode(), msgspec.json.encode(project)
