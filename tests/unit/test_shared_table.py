"""What processes share: rows that all find, words that all see, and a lock that a dead process does not keep."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.core.clock import DAY, MINUTE
from processor.log.errors import Locked, LogError
from server.errors import Refused
from server.limits.rates import OwnRates, SharedRates
from server.processes.shared_table import Busy, SharedTable
from server.processes.siblings import QUOTAS, REQUESTS, VARIABLE, ApiSibling
from tests.support.patience import PROCESS_PATIENCE

NOON = 1_776_686_400_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    SharedTable.create(tmp_path / "table", 2, 4)
    return tmp_path / "table"


@pytest.fixture
def both(path: Path) -> Iterator[tuple[SharedTable, SharedTable]]:
    tables = SharedTable(path, 2, 4), SharedTable(path, 2, 4)
    yield tables
    for table in tables:
        table.close()


def test_what_one_adds_the_other_finds(both: tuple[SharedTable, SharedTable]) -> None:
    one, two = both
    with one:
        assert one.find(b"a") is None
        row = one.add(b"a", [7, -1], 0)
    assert two.version != 0
    with two:
        assert two.find(b"a") == row
        assert two.words(row) == [7, -1]
        two.put(row, 1, 2**62)
        assert two.where(1, 1, 2**63 - 1) == [b"a"]
    assert one.get(row, 1) == 2**62


def test_a_full_table_takes_the_place_of_what_is_stale(both: tuple[SharedTable, SharedTable]) -> None:
    one, two = both
    with one:
        for number in range(4):
            one.add(b"row %d" % number, [number, 0], 0)
    with two:
        assert two.find(b"row 1") == 1
        with pytest.raises(Busy):
            two.add(b"new", [9, 0], 0)
        assert two.add(b"new", [9, 5], 1) == 0
        assert two.find(b"row 0") is None
    with one:
        assert (one.find(b"row 0"), one.find(b"row 1"), one.find(b"new")) == (None, 1, 0)
        assert one.words(0) == [9, 5]


@pytest.mark.parametrize("key", [b"x" * 129, b"a\0b"])
def test_a_key_that_does_not_fit(key: bytes, both: tuple[SharedTable, SharedTable]) -> None:
    with both[0], pytest.raises(ValueError, match="not a key"):
        both[0].add(key, [0, 0], 0)


def test_a_lock_that_is_held_is_not_waited_for_long(both: tuple[SharedTable, SharedTable]) -> None:
    one, two = both
    with one, pytest.raises(Busy), two:
        pass
    with two:
        pass


def test_the_lock_of_a_killed_process_is_free(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server.processes.shared_table import SharedTable\n"
        "with SharedTable(Path(sys.argv[1]), 2, 4): print(flush=True); sys.stdin.read()"
    )
    held = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert held.stdin is not None
    assert held.stdout is not None
    held.stdout.readline()
    table = SharedTable(path, 2, 4)
    with pytest.raises(Busy), table:
        pass
    held.send_signal(signal.SIGKILL)
    held.wait(PROCESS_PATIENCE)
    held.stdin.close()
    held.stdout.close()
    with table:
        table.add(b"a", [1, 1], 0)
    table.close()


# --- the siblings -----------------------------------------------------------------------------------------------------


def test_a_crew_is_named_anew_every_time(tmp_path: Path) -> None:
    first, second = ApiSibling.create_all(tmp_path, 2), ApiSibling.create_all(tmp_path, 2)
    assert len({sibling.name(sibling.number) for sibling in (*first, *second)}) == 4
    assert [sibling.is_first for sibling in first] == [True, False]
    assert ApiSibling.from_environment({VARIABLE: second[1].variable}, tmp_path) == second[1]
    assert ApiSibling.from_environment({}, tmp_path) is None
    assert second[0].name(1) == second[1].name(1)


def test_no_crew_is_made_while_one_of_another_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.processes.siblings.PATIENCE", 0.1)
    one, two = ApiSibling.create_all(tmp_path, 2)
    aboard = [one.hold(), two.hold()]
    os.close(aboard[0])
    with pytest.raises(Locked, match="have not ended"):
        ApiSibling.create_all(tmp_path, 2)
    os.close(aboard[1])
    ApiSibling.create_all(tmp_path, 2)
    assert issubclass(Locked, LogError)


def test_tables_begin_empty(tmp_path: Path) -> None:
    (sibling,) = ApiSibling.create_all(tmp_path, 1)
    table = sibling.table(QUOTAS)
    with table:
        table.add(b"a", [1, 1], 0)
    (sibling,) = ApiSibling.create_all(tmp_path, 1)
    fresh = sibling.table(QUOTAS)
    with fresh:
        assert fresh.find(b"a") is None
    for each in (table, fresh):
        each.close()


# --- requests a minute -----------------------------------------------------------------------------------------------


@pytest.fixture
def rates(tmp_path: Path) -> Iterator[tuple[SharedRates, SharedRates]]:
    (sibling,) = ApiSibling.create_all(tmp_path, 1)
    tables = sibling.table(REQUESTS), sibling.table(REQUESTS)
    yield SharedRates(tables[0]), SharedRates(tables[1])
    for table in tables:
        table.close()


def test_requests_are_counted_over_all_processes(rates: tuple[SharedRates, SharedRates]) -> None:
    one, two = rates
    assert [each.reserve("k", 3, NOON) for each in (one, two, one, two, one)] == [0, 1, 2, 3, 3]
    assert one.reserve("other", 3, NOON) == 0
    assert (one.used("k", NOON), two.used("k", NOON), two.used("k", NOON + MINUTE)) == (3, 3, 0)
    assert two.reserve("k", 3, NOON + MINUTE) == 0
    assert one.reserve("k", 3, NOON + MINUTE - 1) == 1  # asked a moment before, counted with the minute that has begun
    assert two.used("k", NOON + MINUTE) == 2


def test_several_requests_are_counted_all_or_none(rates: tuple[SharedRates, SharedRates]) -> None:
    for one, two in (rates, (OwnRates(),) * 2):
        assert [one.reserve("k", 5, NOON, 3), two.reserve("k", 5, NOON, 3), two.reserve("k", 5, NOON, 2)] == [0, 3, 3]
        assert one.reserve("k", 5, NOON) == 5
        assert one.used("k", NOON) == 5


def test_a_minute_of_months_ahead_locks_nobody_out(rates: tuple[SharedRates, SharedRates]) -> None:
    one, two = rates
    assert [one.reserve("k", 1, NOON + 100 * DAY) for _ in range(2)] == [0, 1]
    assert [two.used("k", NOON), two.reserve("k", 1, NOON), one.reserve("k", 1, NOON)] == [0, 0, 1]


def test_one_process_counts_alike() -> None:
    rates = OwnRates()
    assert [rates.reserve("k", 2, NOON) for _ in range(3)] == [0, 1, 2]
    assert (rates.used("k", NOON), rates.used("k", NOON + MINUTE)) == (2, 0)
    assert rates.reserve("k", 2, NOON + MINUTE) == 0


def test_a_rate_that_cannot_be_known_is_not_guessed(tmp_path: Path) -> None:
    (sibling,) = ApiSibling.create_all(tmp_path, 1)
    held, table = sibling.table(REQUESTS), sibling.table(REQUESTS)
    with held, pytest.raises(Refused) as caught:
        SharedRates(table).reserve("k", 2, NOON)
    assert caught.value.reason == "unavailable"
    for each in (held, table):
        each.close()
