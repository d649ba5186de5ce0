from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from processor.core.clock import DAY, HOUR
from processor.log.embedded.log import Log
from processor.log.port import LogWriter
from processor.log.records import Append
from server.errors import Reason, Refused
from server.tenancy import directory_log
from server.tenancy.administration import Administration, NewKey
from server.tenancy.directory import Directory, key_record, organization_record, project_record, revocation_record
from server.tenancy.first_key import write_key
from server.tenancy.keys import Key, Organization, Project, make_key, new_secret

NOW = 1_790_000_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "data", partitions=1, create=True)
    yield made
    made.close()


class Office:
    """Administrations on one log, as one process after the other opens it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.now = NOW

    def by(self, actor: Key | None = None) -> Administration:
        return Administration(self.log, self.now, actor)

    def valid(self, secret: str, at: int | None = None) -> bool:
        try:
            directory_log.read_directory(self.log).authenticate(secret, "ingest", self.now if at is None else at)
        except Refused as refused:
            return refused.reason != "unauthenticated"
        return True


@pytest.fixture
def office(log: Log) -> Office:
    return Office(log)


def admin_of(organization: str, *, everywhere: bool = False) -> Key:
    return make_key(new_secret(), at=0, organization=organization, scopes=("admin",), everywhere=everywhere)


def why(caught: pytest.ExceptionInfo[Refused]) -> Reason:
    return caught.value.reason


def test_a_project_belongs_to_one_organization_for_ever(office: Office) -> None:
    assert office.by().create_project("web", "acme").organization == "acme"
    assert office.by().create_project("web", "acme").created == NOW
    office.now += 5
    assert office.by().create_project("web", "acme").created == NOW
    with pytest.raises(Refused, match="belongs to another organization") as caught:
        office.by().create_project("web", "evil")
    assert why(caught) == "conflict"
    with pytest.raises(Refused, match="belongs to another organization"):
        office.by().create_key(NewKey("web", "evil"))
    assert [(each.id, each.organization) for each in office.by().projects()] == [("web", "acme")]
    assert office.by().all_keys() == []


def test_whoever_the_log_names_first_has_the_project(office: Office) -> None:
    """Two processes that make the same project at once: both append, one is first."""
    first, second = office.by(), office.by()
    first.create_project("web", "acme")
    with pytest.raises(Refused, match="belongs to another organization"):
        second.create_project("web", "evil")
    secret = new_secret()
    directory_log.write(office.log, key_record(make_key(secret, at=NOW, project="web", organization="evil")), NOW)
    assert not office.valid(secret)


def test_the_default_project_is_the_default_organizations_even_before_it_is_there(office: Office) -> None:
    with pytest.raises(Refused, match="name one of your own") as caught:
        office.by().create_key(NewKey(organization="acme"))
    assert why(caught) == "conflict"
    assert office.by().create_key(NewKey())[1].organization == "default"


def test_a_key_goes_where_its_project_is(office: Office) -> None:
    office.by().create_project("web", "acme")
    secret, key = office.by().create_key(NewKey("web"))
    assert (key.project, key.organization, key.scopes) == ("web", "acme", ("ingest", "read"))
    assert office.valid(secret)
    _, other = office.by().create_key(NewKey("new", "beta", ("read", "ingest")))
    assert (other.project, other.organization, other.scopes) == ("new", "beta", ("ingest", "read"))
    _, default = office.by().create_key(NewKey())
    assert (default.project, default.organization) == ("default", "default")
    names = ["acme", "beta", "default"]
    assert [each.id for each in office.by().organizations()] == names


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (NewKey(scopes=("write",)), "bad_request"),
        (NewKey(scopes=()), "bad_request"),
        (NewKey(rate_limit=0), "bad_request"),
        (NewKey(rate_limit=2**31), "bad_request"),
        (NewKey(expires=NOW), "bad_request"),
        (NewKey(project="a/b"), "bad_request"),
        (NewKey(project="a", organization="../b"), "bad_request"),
        (NewKey(everywhere=True), "forbidden"),
    ],
)
def test_what_no_key_can_be(office: Office, wanted: NewKey, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        office.by().create_key(wanted)
    assert why(caught) == reason
    assert office.by().all_keys() == []


def test_a_rotated_key_and_its_successor_are_both_valid_for_a_day(office: Office) -> None:
    secret, key = office.by().create_key(NewKey("web", "acme", ("ingest",), 60))
    office.now += HOUR
    successor, made, old = office.by().rotate(key.prefix)
    assert (made.project, made.organization, made.scopes, made.rate_limit) == ("web", "acme", ("ingest",), 60)
    assert made.lineage == key.lineage == key.id != made.id
    assert (made.expires, old.expires, old.successor) == (None, office.now + DAY, made.id)
    for at, both in ((office.now, True), (office.now + DAY - 1, True), (office.now + DAY, False)):
        assert office.valid(secret, at) is both
        assert office.valid(successor, at)
    with pytest.raises(Refused, match="rotated already") as caught:
        office.by().rotate(key.id)
    assert why(caught) == "conflict"
    office.now += 1
    _, third, _ = office.by().rotate(made.id, 0)
    assert third.lineage == key.id
    assert not office.valid(successor)


def test_a_keys_handling_is_set_and_kept_over_a_rotation(office: Office) -> None:
    _, key = office.by().create_key(NewKey(handling="strict"))
    assert office.by().set_handling(key.prefix, "lenient").handling == "lenient"
    assert office.by().set_handling(key.id, "lenient").handling == "lenient"
    successor, made, old = office.by().rotate(key.id)
    assert (made.handling, old.handling) == ("lenient", "lenient")
    assert office.by().set_handling(key.id, None) == msgspec.structs.replace(old, handling=None)
    found = {each.id: each for each in office.by().all_keys()}
    assert found == {key.id: msgspec.structs.replace(old, handling=None), made.id: made}
    assert office.valid(successor)


def test_what_no_handling_can_be(office: Office) -> None:
    _, key = office.by().create_key(NewKey("web", "acme"))
    _, whole = office.by().create_key(NewKey(scopes=("admin",), everywhere=True))
    for attempt, reason in (
        (lambda: office.by().create_key(NewKey(handling="odd")), "bad_request"),
        (lambda: office.by().set_handling(key.id, "odd"), "bad_request"),
        (lambda: office.by(admin_of("other")).set_handling(key.id, "strict"), "not_found"),
        (lambda: office.by(admin_of("default")).set_handling(whole.id, "strict"), "forbidden"),
    ):
        with pytest.raises(Refused) as caught:
            attempt()
        assert why(caught) == reason
    late = office.by()
    office.by().revoke(key.id)
    assert late.set_handling(key.id, "strict").handling == "strict"  # it had read the directory before
    [found] = [each for each in office.by().all_keys() if each.id == key.id]
    assert (found.revoked, found.handling) == (NOW, "strict")
    with pytest.raises(Refused, match="not valid any more"):
        office.by().set_handling(key.id, None)


class Dying:
    """A log under a process that is killed after so many appends."""

    def __init__(self, log: Log, appends: int) -> None:
        self._log = log
        self._appends = appends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, appends: Iterable[Append], at: int) -> list[int]:
        if not self._appends:
            raise KilledError
        self._appends -= 1
        return self._log.append(list(appends), at)


class KilledError(BaseException):
    """The process is no more."""


@pytest.mark.parametrize("appends", [0, 1, 2])
def test_a_kill_within_a_rotation_leaves_all_of_it_or_nothing(office: Office, appends: int) -> None:
    """Never a new key that is valid, whose secret nobody has, beside an old one that knows nothing of it."""
    secret, key = office.by().create_key(NewKey())
    with suppress(KilledError):
        Administration(cast("LogWriter", Dying(office.log, appends)), office.now).rotate(key.id)
    found = {each.id: each for each in office.by().all_keys()}
    old = found.pop(key.id)
    assert [old.successor] == ([*found] if appends else [None])
    assert office.valid(secret)
    assert office.valid(secret, office.now + DAY) is (not appends)
    # What was left can be rotated on: the key itself, or the one whose secret was never shown.
    again, made, _ = office.by().rotate(next(iter(found), key.id), 0)
    assert office.valid(again)
    assert [each.id for each in office.by().all_keys() if each.expires is None] == [made.id]


def test_a_rotation_is_one_record_whatever_order_a_copy_of_the_directory_comes_in(office: Office) -> None:
    _, key = office.by().create_key(NewKey(expires=NOW + 10 * DAY))
    by = office.by()
    _, made, old = by.rotate(key.id)
    assert [record[0] for record in by.written] == [f"key/{made.hash}".encode()]
    records = [(record.key, record.value) for record in office.log.read(directory_log.HOME, 0)]
    for copy in (records, records[::-1]):
        directory = Directory()
        for record in copy:
            directory.apply(*record)
        assert {each.id: each for each in directory.all_keys()} == {key.id: old, made.id: made}


def test_a_rotation_that_was_written_as_two_records_is_still_one(office: Office) -> None:
    _, key = office.by().create_key(NewKey())
    made = make_key(new_secret(), at=NOW, family=key.id)
    old = msgspec.structs.replace(key, expires=NOW + DAY, successor=made.id)
    for each in (made, old):
        directory_log.write(office.log, key_record(each), NOW)
    assert {each.id: each for each in office.by().all_keys()} == {key.id: old, made.id: made}


def test_a_rotation_gives_the_successor_as_long_as_its_predecessor_had(office: Office) -> None:
    secret, key = office.by().create_key(NewKey(expires=NOW + 10 * DAY))
    office.now += 10 * DAY - HOUR
    _, made, old = office.by().rotate(secret)
    assert made.expires == office.now + 10 * DAY
    assert old.expires == key.expires
    office.now += HOUR
    with pytest.raises(Refused, match="not valid any more"):
        office.by().rotate(key.id)
    with pytest.raises(Refused, match="negative"):
        office.by().rotate(made.id, -1)


def test_a_revocation_outlives_whatever_is_written_of_the_key_later(office: Office) -> None:
    secret, key = office.by().create_key(NewKey())
    late = office.by()
    assert office.by().revoke(secret).revoked == NOW
    assert not office.valid(secret)
    late.rotate(key.id)  # it had read the directory before
    assert not office.valid(secret)
    office.now += 5
    assert office.by().revoke(key.id).revoked == NOW
    with pytest.raises(Refused, match="not valid any more"):
        office.by().rotate(key.id)


@pytest.mark.parametrize("reference", ["", "lqt_", "lqt_00000000", "nobody", "lqt_" + "0" * 64])
def test_a_key_that_is_not_there(office: Office, reference: str) -> None:
    office.by().create_key(NewKey())
    for operation in (office.by().revoke, office.by().rotate):
        with pytest.raises(Refused, match="No key") as caught:
            operation(reference)
        assert why(caught) == "not_found"
        assert "0" * 20 not in caught.value.message


def test_two_keys_that_begin_alike_are_told_apart_by_their_ids(office: Office) -> None:
    twins = ["lqt_" + "a" * 8 + end * 56 for end in "01"]
    for twin in twins:
        write_key(office.log, directory_log.read_directory(office.log), make_key(twin, at=NOW), NOW)
    with pytest.raises(Refused, match="2 keys start with"):
        office.by().revoke(twins[0][:12])
    office.by().revoke(make_key(twins[0], at=NOW).id)
    assert [office.valid(twin) for twin in twins] == [False, True]
    office.by().revoke(twins[1])
    assert not office.valid(twins[1])


# --- who may what ----------------------------------------------------------------------------------------------------


def test_an_admin_key_sees_and_changes_its_own_organization_only(office: Office) -> None:
    mine_secret, mine = office.by().create_key(NewKey("web", "acme"))
    theirs_secret, theirs = office.by().create_key(NewKey("shop", "beta"))
    office.by().set_quota("beta", 5)
    actor = admin_of("acme")
    assert office.by(actor).all_keys() == [mine]
    assert [each.id for each in office.by(actor).projects()] == ["web"]
    assert [each.id for each in office.by(actor).organizations()] == ["acme"]
    for reference in (theirs.id, theirs.prefix, theirs_secret):
        for operation in (office.by(actor).revoke, office.by(actor).rotate):
            with pytest.raises(Refused) as caught:
                operation(reference)
            assert why(caught) == "not_found"
    assert office.valid(theirs_secret)
    for project, organization in (("new", "beta"), ("shop", "beta")):
        with pytest.raises(Refused) as caught:
            office.by(actor).create_key(NewKey(project, organization))
        assert why(caught) == "forbidden"
    with pytest.raises(Refused) as caught:
        office.by(actor).create_key(NewKey("shop"))
    assert why(caught) == "conflict"
    with pytest.raises(Refused) as caught:
        office.by(actor).set_quota("acme", 10**6)
    assert why(caught) == "forbidden"
    assert office.by(actor).create_key(NewKey("web"))[1].organization == "acme"
    assert office.by(actor).create_key(NewKey("other"))[1].organization == "acme"
    office.by(actor).revoke(mine.id)
    assert not office.valid(mine_secret)


def test_only_the_command_line_makes_keys_for_all_organizations(office: Office) -> None:
    _, whole = office.by().create_key(NewKey(scopes=("admin",), everywhere=True))
    assert whole.everywhere
    assert office.by(whole).set_quota("acme", 7) == Organization("acme", 7)
    assert office.by(whole).create_key(NewKey("web", "acme"))[1].organization == "acme"
    for actor in (whole, admin_of("default")):
        with pytest.raises(Refused) as caught:
            office.by(actor).create_key(NewKey(scopes=("admin",), everywhere=True))
        assert why(caught) == "forbidden"
    local = admin_of("default")
    for operation in (office.by(local).rotate, office.by(local).revoke):
        with pytest.raises(Refused) as caught:
            operation(whole.id)
        assert why(caught) == "forbidden"
    assert office.by(whole).rotate(whole.id)[1].everywhere


@pytest.mark.parametrize("quota", [-1, 2**53])
def test_what_no_quota_can_be(office: Office, quota: int) -> None:
    with pytest.raises(Refused) as caught:
        office.by().set_quota("acme", quota)
    assert why(caught) == "bad_request"


def test_what_was_written_is_what_others_read(office: Office) -> None:
    done = office.by()
    _, key = done.create_key(NewKey("web", "acme"))
    done.set_quota("acme", 3)
    done.revoke(key.id)
    assert done.written == [
        project_record(Project("web", "acme", NOW)),
        key_record(key),
        organization_record(Organization("acme", 3)),
        revocation_record(key, NOW),
    ]
    directory = directory_log.read_directory(office.log)
    assert all(map(directory.has, done.written))
    assert not directory.has(organization_record(Organization("acme", 4)))
