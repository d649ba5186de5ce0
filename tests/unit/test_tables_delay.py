"""Tables that are too far behind the log are reported once, and once more when that is over."""

from collections.abc import Mapping
from typing import Any

from structlog.testing import capture_logs

from server.health import BEHIND, MAX_ENDS, LogHealth, TablesDelay


class Tables:
    """Tables that a test moves on, and the log that grows by ten messages a second."""

    def __init__(self) -> None:
        self.delay = TablesDelay()
        self.now = self.held = 0

    def contains(self, position: Mapping[int, int]) -> bool:
        return self.held >= position[0]

    def second(self, applied: int) -> float:
        self.now += 1
        self.held = min(self.held + applied, 10 * self.now)
        self.delay.look(float(self.now), {0: 10 * self.now}, self.contains)
        return self.delay.seconds


def events(logged: Any) -> list[tuple[str, int]]:
    return [(line["event"], line.get("seconds", line.get("after"))) for line in logged]


def test_tables_that_keep_up_are_not_behind() -> None:
    tables = Tables()
    with capture_logs() as logged:
        assert [tables.second(10) for _ in range(100)] == [0.0] * 100
    assert logged == []


def test_it_is_said_once_and_once_more_when_it_is_over() -> None:
    tables = Tables()
    with capture_logs() as logged:
        for _ in range(3):
            for _ in range(60):  # half of it: a second is lost in two
                tables.second(5)
            for _ in range(10):
                tables.second(100)
    assert [event for event, _ in events(logged)] == ["tables.behind", "tables.caught_up"] * 3
    assert events(logged)[0] == ("tables.behind", BEHIND + 1)
    assert events(logged)[1][1] in range(50, 70)
    assert not tables.delay.is_reported


def test_the_delay_is_that_of_the_oldest_message_which_the_tables_lack() -> None:
    tables = Tables()
    for _ in range(40):
        tables.second(10)
    assert [tables.second(0) for _ in range(3)] == [0.0, 1.0, 2.0]
    assert tables.second(20) == 1.0
    assert tables.second(0) == 2.0
    assert tables.second(50) == 0.0


def test_a_long_standstill_is_kept_in_fewer_steps() -> None:
    tables = Tables()
    for number in range(3 * MAX_ENDS):
        assert tables.second(0) == number
    tables.held = 10 * 1000
    assert abs(tables.second(0) - (tables.now - 1001)) <= 4, "to the second before it was thinned out"


class Publisher:
    """The part of a publisher that its health is asked about."""

    failure: str | None = None

    def log_end(self) -> dict[int, int]:
        return {0: 5}


class View:
    """Tables that contain nothing."""

    position: Mapping[int, int] = {}

    def contains(self, position: Mapping[int, int]) -> bool:
        return not position


def test_readyz_warns_of_it() -> None:
    now = [0.0]
    publisher: Any = Publisher()
    view: Any = View()
    health = LogHealth(publisher, view, 30, lambda: now[0])
    health.look()
    assert health.warnings() == []
    now[0] = 12.0
    health.look()
    assert health.warnings() == ["the tables are 12 s behind the log"]
