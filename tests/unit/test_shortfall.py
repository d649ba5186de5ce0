"""An API whose rows come to less than their owners have written is not ready: it would show less than was counted."""

from typing import Any

from processor.core.tables import table_rows
from processor.view.view import View
from server.health import LogHealth
from tests.support.tables import Records, Usage, Worker


class Publisher:
    """The part of a publisher that its health is asked about."""

    failure: str | None = None

    def log_end(self) -> dict[int, int]:
        return {0: 0}


def changelog(worker: Worker) -> Records:
    worker.send([Usage(number, user=f"u{number}") for number in range(6)])
    return worker.work(0)


def health(view: View, clock: list[float]) -> LogHealth:
    publisher: Any = Publisher()
    return LogHealth(publisher, view, 30, lambda: clock[0])


def test_whole_tables_are_ready() -> None:
    view, clock = View(), [0.0]
    view.apply(0, changelog(Worker()))
    view.mark_current(1)
    asked = health(view, clock)
    assert view.shortfall() == 0
    assert asked.caught_up
    assert asked.unready() == []


def test_rows_that_are_missing_make_it_unready_once_they_stay_so() -> None:
    view, clock = View(), [0.0]
    rows = changelog(Worker())
    lost = next(record for record in rows if b'"user"' in record[0])
    view.apply(0, [record for record in rows if record is not lost])
    assert view.shortfall() is None, "it may be half a flush"
    view.mark_current(1)
    asked = health(view, clock)
    assert view.shortfall() == 1
    assert not asked.caught_up
    asked.unready()
    clock[0] = 3.0
    [behind, missing] = asked.unready()
    assert "not caught up" in behind
    assert "1 events that were counted are not shown" in missing
    view.apply(0, [lost])
    view.mark_current(2)
    clock[0] = 4.0
    assert asked.unready() == []


def test_probes_do_not_add_up_all_projects_each_time() -> None:
    class Counting(View):
        counts = 0

        def shortfall(self) -> int | None:
            self.counts += 1
            return super().shortfall()

    view, clock = Counting(), [0.0]
    view.apply(0, changelog(Worker()))
    view.mark_current(1)
    asked = health(view, clock)
    for tenth in range(21):
        clock[0] = tenth / 10
        assert asked.caught_up
        assert asked.unready() == []
    assert view.counts == 3


def test_what_was_written_without_these_numbers_is_believed() -> None:
    view = View()
    view.apply(0, [*changelog(Worker())[:-1], (table_rows.encode_key(0, "progress"), b"[0,1]")])
    view.mark_current(1)
    assert view.shortfall() is None
    assert health(view, [0.0]).caught_up
