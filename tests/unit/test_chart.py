"""The picture of the row `growth`: well-formed, of its own, and every point where its value is."""

import xml.etree.ElementTree as ET

import pytest

from tests.bench.growth import Report, Sample, Timed, quarters, rates
from tests.bench.machine import Memory
from tools.chart import Axis, draw, short, step_for

ROLES = ("supervisor", "api", "worker")


def sample(number: int, events: int) -> Sample:
    memory = {role: Memory(100.0, 60.0 + number, 40.0) for role in ROLES}
    rate = 100_000.0 if events else 0.0
    return Sample(10.0 * number, events, rate, 1.0, 2.0, memory, {}, 1.0, 1.0, 1.0, 50.0)


def report() -> Report:
    made = Report({}, [sample(number, number * 1_000_000) for number in range(361)])
    made.timed = [Timed(size, rate, rate, {}, 0.0) for size in (10**6, 10**7, 10**8) for rate in (9e4, 1e5, 1.2e5)]
    return made


def test_the_picture_is_well_formed_and_shows_every_size() -> None:
    text = draw(report())
    root = ET.fromstring(text)
    names = [found.text for found in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1 M", "10 M", "100 M", *ROLES} <= set(names)
    assert names.count("100 k") >= 3
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3
    assert "href" not in text


def test_a_short_run_can_be_drawn_too() -> None:
    made = Report({}, [sample(0, 0), sample(1, 300_000)])
    ET.fromstring(draw(made))


@pytest.mark.parametrize(("span", "step"), [(1.0, 0.2), (4, 1), (10, 2), (60, 10), (165_000, 20_000)])
def test_steps_are_round(span: float, step: float) -> None:
    assert step_for(span) == pytest.approx(step)


def test_an_axis_puts_values_where_they_belong() -> None:
    assert Axis(0, 10, 0, 100).at(2.5) == 25
    assert Axis(0, 10, 0, 100).at(99) == 100
    assert Axis(1, 100, 0, 100, logarithmic=True).at(10) == pytest.approx(50)
    assert Axis(100_000, 2e8, 0, 100, logarithmic=True).ticks() == [1e5, 1e6, 1e7, 1e8]
    assert Axis(0, 45, 0, 100).ticks() == [0, 10, 20, 30, 40]


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 500, 150_000, 1e6, 1e8)] == ["0", "500", "150 k", "1 M", "100 M"]


def test_a_report_says_what_memory_was_in_each_quarter_of_the_time() -> None:
    found = quarters(report(), "worker")
    assert found == {
        "at rest": 60.0,
        "first quarter": 105.5,
        "second quarter": 195.5,
        "third quarter": 285.5,
        "last quarter": 375.5,
    }
    assert rates(report()) == {size: [9e4, 1e5, 1.2e5] for size in (10**6, 10**7, 10**8)}
