"""A merge that cannot wait for cuts until these keep up takes turns with them: never both at once, and both go on."""

import threading
import time
from types import SimpleNamespace
from typing import Any

from processor.event_store.upkeep import LOOK, MOST_HELD, MOST_TURN, Upkeep


def test_a_merge_waits_for_a_cut_and_has_the_next_one_wait_as_long() -> None:
    store: Any = SimpleNamespace(is_cutting=True, cuts_wait_until=0.0)
    upkeep = Upkeep(store)
    began = time.monotonic()
    threading.Timer(4 * LOOK, lambda: setattr(store, "is_cutting", False)).start()
    upkeep.take_turns()
    waited = time.monotonic() - began
    assert waited >= 4 * LOOK
    assert began + 2 * waited - LOOK < store.cuts_wait_until <= began + 2 * waited + MOST_TURN
    store.is_cutting = True  # one that has begun before it was to wait
    upkeep.take_turns()


def test_a_merge_that_nothing_is_cut_beside_has_no_cut_wait() -> None:
    store: Any = SimpleNamespace(is_cutting=False, cuts_wait_until=0.0)
    Upkeep(store).take_turns()
    assert store.cuts_wait_until == 0.0


def test_a_merge_of_a_store_far_behind_has_cuts_wait_once_one_is_done() -> None:
    store: Any = SimpleNamespace(is_cutting=True, cuts_wait_until=0.0)
    began = time.monotonic()
    threading.Timer(4 * LOOK, lambda: setattr(store, "is_cutting", False)).start()
    Upkeep(store).hold_cuts()
    assert time.monotonic() >= began + 4 * LOOK
    assert not store.is_cutting
    assert began + 4 * LOOK + MOST_HELD <= store.cuts_wait_until <= time.monotonic() + MOST_HELD
