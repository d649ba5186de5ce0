"""The ledger that one thread fills with what it reads of the changelog, and another one reads."""

from processor.core.tables import table_rows
from processor.core.tables.table_rows import Counts, Progress
from processor.leases.followed_ledger import FollowedLedger
from processor.leases.lease_messages import Account

MONTH = 1_775_001_600_000_000


def window(partition: int, unique: int) -> tuple[bytes, bytes]:
    """An organization's month as the changelog has it."""
    row = Counts(table_rows.encode_key(partition, "window", "org", "acme", "month", MONTH))
    row.offset, row.unique = unique, unique
    return row.key, table_rows.encode_value(row)


def progress(partition: int, offset: int) -> tuple[bytes, bytes]:
    """How far a partition's rows go."""
    row = Progress(table_rows.encode_key(partition, "progress"))
    row.offset = offset
    return row.key, table_rows.encode_value(row)


def test_a_flush_counts_as_a_whole_and_again_is_nothing() -> None:
    ledger = FollowedLedger()
    account = Account("acme", MONTH)
    user = (b'[0,"user","window","x"]', b"not looked at")
    ledger.apply(0, [user])
    assert ledger.changes == 0
    ledger.apply(0, [user, window(0, 7)])
    with ledger.held() as held:
        assert held.total(account) == 0
    for _ in range(2):
        ledger.apply(0, [window(0, 7), user, progress(0, 3)])
        with ledger.held() as held:
            assert (held.total(account), held.position) == (7, {0: 3})
    ledger.apply(1, [window(1, 5), progress(1, 9), window(0, 100)])
    with ledger.held() as held:
        assert (held.total(account), held.position) == (12, {0: 3, 1: 9})
    assert ledger.changes == 4
