"""An API process's side of a lease."""

import time
from pathlib import Path

import pytest

from processor.core.clock import DAY, month_start
from processor.leases.lease_messages import GAP, Account, Cap, Lease, encode
from processor.log.address import LogAddress
from processor.view.view import View
from processor.view.view_follower import Arrivals
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from server.limits.leased_caps import UNUSED, LeasedCaps
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quotas import Quotas
from server.tenancy.directory import Directory, organization_record
from server.tenancy.keys import Organization, make_key, new_secret
from tests.support.tables import NOON

KEY = make_key(new_secret(), at=0)
AHEAD = NOON + 100 * DAY


async def test_a_batch_of_months_ahead_does_not_end_the_account_of_this_month(tmp_path: Path) -> None:
    """The grantor may not know yet of what was charged to it: until a day has passed it is stated."""
    now = 0.0
    months = [NOON, AHEAD, AHEAD + 31 * DAY]
    accounts = [Account("default", month_start(at)) for at in months]
    view, directory, book = View(), Directory(), LeaseHoldings()
    arrivals = Arrivals(view)
    directory.apply(*organization_record(Organization("default", 10)), 0)
    book.stated(1, time.monotonic())
    book.apply(book.instance.encode(), encode(Lease(1, 1, [Cap(account, 10, 10) for account in accounts])))
    stating = LeaseStatements(LogAddress(tmp_path), book, lambda: NOON)
    usage = MonthlyUsage(view, dict)
    caps = LeasedCaps(usage, directory, book, stating, lambda: 0, clock=lambda: now)
    quotas = Quotas(arrivals, directory, usage, caps)

    async def take(at: int) -> None:
        (await quotas.reserve(KEY, 1, at)).settle({})

    def stated() -> set[Account]:
        return {need.account for need in caps.needs()} & set(accounts)

    for at in months[:2]:
        await take(at)
    assert stated() == set(accounts[:2])
    now += UNUSED
    arrivals.notify()  # what was on its way is in the view
    await take(months[2])
    assert stated() == set(accounts[1:]), "a month that is over is, after a day"


async def test_a_lease_of_a_new_grantor_is_confirmed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grants nothing to anybody before."""
    book, arrivals, woken = LeaseHoldings(), Arrivals(View()), []
    stating = LeaseStatements(LogAddress(tmp_path), book, lambda: NOON)
    monkeypatch.setattr(stating, "wake", lambda: woken.append(book.version))
    usage, directory = MonthlyUsage(View(), dict), Directory()
    Quotas(arrivals, directory, usage, LeasedCaps(usage, directory, book, stating, lambda: 0))
    for version in (1, 2, 2 + GAP, 3 + GAP):
        book.apply(book.instance.encode(), encode(Lease(version, 1, [])))
        arrivals.notify()
        book.is_asked = False
    assert woken == [2 + GAP]


def test_an_older_lease_that_comes_again_does_not_count() -> None:
    """The topic lost its end; what it allowed was given back since."""
    book, account = LeaseHoldings(), Account("default", month_start(NOON))
    book.stated(1, time.monotonic())
    old, new = (encode(Lease(version, 1, [Cap(account, cap, cap)])) for version, cap in ((5, 300), (6, 200)))
    for value in (old, new):
        book.apply(book.instance.encode(), value)
    assert book.cap(account) == 200
    book.drop()
    for value in (old, new):
        book.apply(book.instance.encode(), value)
    assert (book.cap(account), book.version) == (0, 6)
    book.apply(book.instance.encode(), encode(Lease(7, 1, [Cap(account, 150, 150)])))
    assert book.cap(account) == 150
