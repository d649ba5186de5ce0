"""A store that has much to go through says how far it is; one that keeps up says nothing."""

from processor.event_store.first_build import EVERY, MANY, BuildReport, FirstBuild


def test_a_store_that_keeps_up_says_nothing() -> None:
    building = FirstBuild()
    assert [building.report(behind, at) for at, behind in enumerate((0, 500, MANY - 1, 0))] == [None] * 4


def test_a_look_says_the_same_at_any_time() -> None:
    building = FirstBuild()
    assert building.look(MANY - 1, 0.0) is None
    assert building.look(100_000, 5.0) == BuildReport(0, 100_000, None, is_last=False)
    assert building.look(80_000, 6.0) == BuildReport(20_000, 100_000, 4, is_last=False)
    assert building.look(0, 9.0) == BuildReport(100_000, 100_000, 0, is_last=True)
    assert building.look(0, 9.5) is None


def test_done_of_how_many_and_the_time_left() -> None:
    building = FirstBuild()
    assert building.report(100_000, 5.0) == BuildReport(0, 100_000, None, is_last=False)
    assert building.report(90_000, 5.0 + EVERY / 2) is None
    assert building.report(80_000, 5.0 + EVERY) == BuildReport(20_000, 100_000, 40, is_last=False)
    assert building.report(120_000, 5.0 + 2 * EVERY) == BuildReport(0, 120_000, None, is_last=False)
    assert building.report(10, 6.0 + 2 * EVERY) == BuildReport(120_000, 120_000, 0, is_last=True)
    assert building.report(0, 7.0 + 2 * EVERY) is None
