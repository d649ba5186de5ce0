"""The grantor's decisions: which API process gets how much of a quota. One grantor decides at a time. No clock, no log.

At any moment, for every account with a limit,

    charged (in the ledger) + held by API processes (their highest possible cap, less what is charged to them)  <=
    limit

unless the limit was set or lowered below that; then nothing is granted. The highest possible cap of an API process is
the highest of the caps written since the one it has confirmed, or its own floor if that is higher: the floor is what it
had on its way when it confirmed a lower cap.

The log may have lost leases, statements or both. So a new grantor grants nothing before every API process that may use
an earlier lease has confirmed one of the new ones, and it counts the events that are in the events topic and not in the
ledger as held by an unknown process. Nothing that was granted before can be granted twice then.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from msgspec import Struct, field

from processor.leases.lease_messages import DELIVERY, FRESH, GAP, TTL, Account, Cap, Lease, Need, Statement

Offsets = Mapping[int, int]
"""partition -> last offset; -1: empty."""

NO_ONE = Statement(0, -1, 0, [])


class Charges(Protocol):
    """What is used of `Ledger`."""

    def total(self, account: Account) -> int: ...
    def leased(self, instance: str, account: Account) -> int: ...
    def contains(self, ends: Offsets) -> bool: ...
    def lacks(self, ends: Offsets) -> int: ...


class MonthlyQuota(Struct, frozen=True):
    """An organization's monthly quota, as the directory has it."""

    limit: int | None
    """Unique events; None: no limit."""
    offset: int
    """The offset of the directory's record of it."""


class Member(Struct):
    """An API process, as far as the grantor knows it."""

    heard: float
    statement: Statement = NO_ONE
    needs: dict[Account, Need] = field(default_factory=dict)
    version: int = 0
    answered: int = 0
    caps: dict[Account, int] = field(default_factory=dict)
    """The lease last written."""
    former: list[tuple[int, dict[Account, int]]] = field(default_factory=list)
    """(version, caps) of earlier leases that it may still use, oldest first."""
    since: int = 0
    """The first version that this grantor has written or will write. Lower ones are of earlier grantors; some of those
    may be missing in the log."""
    restored: int = 0
    """The version that was read back."""
    is_passed: bool = False
    """It was silent for so long that it no longer uses any lease of an earlier grantor."""
    ends: Offsets | None = None
    """Once it is gone: what the ledger must contain before its lease is free again."""

    @property
    def is_sure(self) -> bool:
        """Whether it uses a lease of this grantor, or has never had one."""
        return self.since <= self.statement.lease <= self.version

    @property
    def is_strange(self) -> bool:
        """Whether it uses a lease that is not in the log and that this grantor has not written."""
        return not self.is_sure and self.statement.lease > self.restored

    def begin_anew(self, version: int) -> None:
        """Grant it nothing until it has confirmed that: what it had may have been granted to others since. Versions up
        to `version` are in use."""
        self.former.append((self.version, self.caps))
        self.caps = {}
        self.version, self.since = version, version + 1

    def outstanding(self, account: Account) -> int:
        """Return the highest cap it may use."""
        return max([self.caps.get(account, 0), *(caps.get(account, 0) for _, caps in self.former)])

    def accounts(self) -> set[Account]:
        return {*self.needs, *self.caps, *(account for _, caps in self.former for account in caps)}

    def held(self, account: Account, charges: Charges, name: str) -> int:
        """Return how many events it may still be charged with, beyond those that are charged."""
        need = self.needs.get(account)
        ceiling = max(self.outstanding(account), need.floor if need is not None else 0)
        return max(0, ceiling - charges.leased(name, account))


class Grants:
    """The state of the grantor. `now` is in monotonic seconds; for `decide`, the time up to which all statements were
    read."""

    def __init__(self, gap: int = GAP) -> None:
        """`gap`: by how much the versions of this grantor's leases exceed those in the log, at least `GAP`. It has to
        differ between grantors: a lease that the log lost must not be mistaken for one that the next grantor wrote."""
        self.members: dict[str, Member] = {}
        self._gap = gap
        self._ends: Offsets | None = None
        self._has_begun = False

    def restore(self, name: str, lease: Lease | None, now: float) -> None:
        """Restore a lease of an earlier grantor. Call it before everything else."""
        if lease is None:
            self.members.pop(name, None)
            return
        member = self.members.setdefault(name, Member(now))
        member.restored, member.answered = lease.version, lease.answers
        member.former = [(lease.version, {cap.account: cap.outstanding for cap in lease.caps})]
        member.begin_anew(lease.version + self._gap)

    def begin(self, ends: Offsets) -> None:
        """End the restoring: every API process gets a lease to confirm. `ends`: what the events topic has now."""
        self._has_begun, self._ends = True, ends
        for member in self.members.values():
            member.answered = -1

    def hear(self, name: str, statement: Statement | None, now: float) -> None:
        """Apply an API process's statement; None: the tombstone of one that was closed."""
        if statement is None:
            return
        member = self.members.get(name)
        if member is None:  # the version continues: a lease from before the closing must not look like a newer one
            member = self.members[name] = Member(now)
            if statement.number > 1 or not self._has_begun:  # it may have had leases
                member.begin_anew(statement.lease + self._gap)
            if self._has_begun:  # it was closed before, and only slow
                member.restored = statement.lease
        if member.ends is not None and not statement.leaving:
            member.ends = None  # it was only slow: its lease was not freed yet, so it continues
        member.heard, member.is_passed = now, False
        member.statement = statement
        member.needs = {need.account: need for need in statement.needs}
        if statement.lease > member.version:
            member.begin_anew(statement.lease + self._gap)
        if member.is_sure:
            member.former = [(version, caps) for version, caps in member.former if version >= statement.lease]

    def decide(
        self, quotas: Mapping[str, MonthlyQuota], charges: Charges, log_end: Callable[[], Offsets], now: float
    ) -> dict[str, Lease | None]:
        """Return the leases to write, by API process; None: it is gone, and its records are to be deleted.

        They count as granted on return: a caller that cannot write them must not decide again. `log_end` returns what
        is in the events topic at the moment of the call.
        """
        closed = [name for name, member in self.members.items() if self._is_closed(member, charges, log_end, now)]
        for name in closed:
            del self.members[name]
        unknown = self._unknown(charges, log_end, now)
        wanted: dict[str, dict[Account, int]] = {name: {} for name in self.members}
        for account in {account for member in self.members.values() for account in member.accounts()}:
            for name, cap in self._share(account, quotas.get(account.organization), charges, unknown).items():
                if cap:
                    wanted[name][account] = cap
        leases: dict[str, Lease | None] = dict.fromkeys(closed)
        for name, caps in wanted.items():
            member = self.members[name]
            if caps != member.caps or member.answered < member.statement.number:
                leases[name] = self._write(member, caps)
        return leases

    def _unknown(self, charges: Charges, log_end: Callable[[], Offsets], now: float) -> int | None:
        """Return how much of any account unknown processes may hold; None: there is no bound yet."""
        doubtful = [member for member in self.members.values() if not (member.is_sure or member.is_passed)]
        if any(now - member.heard < FRESH for member in doubtful):
            return None
        for member in doubtful:
            member.is_passed = True
            self._ends = log_end()  # with all that it wrote until then
        lacks = 0 if self._ends is None else charges.lacks(self._ends)
        if not lacks:
            self._ends = None
        return lacks

    @staticmethod
    def _is_closed(member: Member, charges: Charges, log_end: Callable[[], Offsets], now: float) -> bool:
        """Return True once an API process is gone and all that it wrote has been charged."""
        if member.ends is None and (member.statement.leaving or now - member.heard > TTL + DELIVERY):
            member.ends = dict(log_end())
        return member.ends is not None and charges.contains(member.ends)

    @staticmethod
    def _write(member: Member, caps: dict[Account, int]) -> Lease:
        if caps != member.caps:
            member.former.append((member.version, member.caps))
            member.caps = caps
        member.version += 1
        member.answered = member.statement.number
        told = [Cap(account, caps.get(account, 0), member.outstanding(account)) for account in sorted_accounts(member)]
        return Lease(member.version, member.answered, told)

    def _share(
        self, account: Account, quota: MonthlyQuota | None, charges: Charges, unknown: int | None
    ) -> dict[str, int]:
        """Return each API process's new cap of an account."""
        if quota is None or quota.limit is None:
            return dict.fromkeys(self.members, 0)
        before = {name: member.caps.get(account, 0) for name, member in self.members.items()}
        if any(member.statement.directory < quota.offset for member in self.members.values()):
            return before  # a process may have sent without a lease, and not know yet that it needs one
        if unknown is None:
            return before  # a process may use a lease that is not known here
        free = quota.limit - charges.total(account) - unknown
        free -= sum(member.held(account, charges, name) for name, member in self.members.items())
        live = {name: need for name, member in self.members.items() if (need := self._need(member, account))}
        # What a process wants less than before comes back; only what exceeds its highest possible cap has to be free.
        caps = {name: min(before[name], live[name].want) if name in live else 0 for name in before}
        caps |= {name: before[name] for name in before if self.members[name].ends is not None}
        # A floor may count an event twice for a moment, so it must not become a cap without need.
        ceilings = {name: max(self.members[name].outstanding(account), charges.leased(name, account)) for name in live}
        short = False
        for name, need in sorted(live.items(), key=lambda item: (item[1].need - ceilings[item[0]], item[0])):
            extra = max(0, min(need.need - ceilings[name], free))
            caps[name] = max(caps[name], min(need.need, ceilings[name] + extra))
            free -= extra
            short = short or caps[name] < need.need
        if short:  # other processes give back what they keep in reserve, for those that wait
            return caps | {name: min(caps[name], max(live[name].need, live[name].floor)) for name in live}
        for number, (name, need) in enumerate(sorted(live.items())):
            share = max(0, free) // (2 * (len(live) - number))
            extra = max(0, min(need.want - max(ceilings[name], caps[name]), share))
            caps[name] = max(caps[name], min(need.want, max(ceilings[name], caps[name]) + extra))
            free -= extra
        return caps

    @staticmethod
    def _need(member: Member, account: Account) -> Need | None:
        return None if member.ends is not None else member.needs.get(account)


def sorted_accounts(member: Member) -> Iterable[Account]:
    """Return all accounts of an API process's newest lease, including those that it must give back."""
    return sorted(member.accounts(), key=lambda account: (account.organization, account.month))
