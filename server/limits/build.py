"""The quotas of one API process, put together: which caps and which rates go with a process that is alone, is one of
several on the embedded log, or is on Kafka."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from processor.view.view import View
from processor.view.view_follower import Arrivals
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from server.limits.leased_caps import LeasedCaps
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quotas import Caps, OwnCaps, Quotas
from server.limits.rates import OwnRates, RequestRates, SharedRates
from server.limits.shared_caps import SharedCaps
from server.processes.siblings import QUOTAS, REQUESTS, ApiSibling
from server.tenancy.directory import Directory


class Leases(NamedTuple):
    """This process's side of the leases on Kafka."""

    holdings: LeaseHoldings
    statements: LeaseStatements


class ProcessQuotas(NamedTuple):
    """The quotas of one API process, and what comes with them."""

    quotas: Quotas
    name: str
    """What the tables count this process's events under; empty: the process is alone, and nothing is counted apart."""
    background: Callable[[], Coroutine[Any, Any, None]] | None
    """To be run for as long as the process lives, if there is anything to run."""


def make_quotas(
    view: View,
    arrivals: Arrivals,
    directory: Directory,
    log_end: Callable[[], Mapping[int, int]],
    sibling: ApiSibling | None,
    leases: Leases | None,
    directory_end: Callable[[], int],
) -> ProcessQuotas:
    """Make the quotas of this process: by its `leases` on Kafka, else by the tables it shares with its siblings.

    `log_end` is that of `MonthlyUsage`, `directory_end` that of `LeasedCaps`. Makes the process the speaker of its
    `leases`. Call it before the first batch is accepted.
    """
    usage = MonthlyUsage(view, log_end)
    rates: RequestRates = OwnRates() if sibling is None else SharedRates(sibling.table(REQUESTS))
    caps: Caps
    name, background = "", None
    if leases is not None:
        leased = LeasedCaps(usage, directory, *leases, directory_end)
        leases.statements.speaker = leased
        caps, name = leased, leases.holdings.instance
    elif sibling is not None:
        shared = SharedCaps(usage, directory, sibling, sibling.table(QUOTAS))
        caps, name, background = shared, sibling.name(sibling.number), shared.run
    else:
        caps = OwnCaps(usage, directory)
    return ProcessQuotas(Quotas(arrivals, directory, usage, caps, rates=rates), name, background)
