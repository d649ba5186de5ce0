"""What the log says of a failure that comes again and again."""

from structlog.testing import capture_logs

from processor.recurring import EVERY, Recurring


def test_a_failure_is_told_when_it_begins_once_a_minute_and_when_it_is_over() -> None:
    now = 1000.0
    failing = Recurring("thing.failed", "thing.works_again", lambda: now)
    with capture_logs() as lines:
        failing.worked()
        for _ in range(4 * 150):  # four times a second for 150 seconds
            failing.failed(error=f"at {now}")
            now += 0.25
        failing.worked()
        failing.worked()
        failing.failed(error="again")
    assert [(line["event"], line["log_level"], line["failures"], line.get("error")) for line in lines] == [
        ("thing.failed", "warning", 1, "at 1000.0"),
        ("thing.failed", "warning", 241, f"at {1000.0 + EVERY}"),
        ("thing.failed", "warning", 481, f"at {1000.0 + 2 * EVERY}"),
        ("thing.works_again", "info", 600, None),
        ("thing.failed", "warning", 1, "again"),
    ]
