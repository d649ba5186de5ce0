"""Summaries of row groups that are kept."""

from server.explore.kept_summaries import FIXED, KeptSummaries, SummaryKey


def key(segment: str, group: int = 0) -> SummaryKey:
    """Return the key of a row group."""
    return SummaryKey(segment, group, "default", ("sums", None))


def test_the_least_recently_used_is_forgotten() -> None:
    kept = KeptSummaries(3 * (FIXED + 100))
    for segment in "abc":
        kept.keep(key(segment), segment, 100)
    assert kept.get(key("a")) == "a"
    kept.keep(key("d"), "d", 100)
    assert [kept.get(key(segment)) for segment in "abcd"] == ["a", None, "c", "d"]
    assert kept.bytes == 3 * (FIXED + 100)


def test_one_takes_the_place_of_an_earlier_one() -> None:
    kept = KeptSummaries(2 * (FIXED + 100))
    kept.keep(key("a"), "first", 100)
    kept.keep(key("a"), "second", 50)
    assert kept.get(key("a")) == "second"
    assert kept.bytes == FIXED + 50
    kept.keep(key("a"), "too large", 10_000)
    assert kept.get(key("a")) is None
    assert kept.bytes == 0


def test_those_of_other_segments_are_forgotten() -> None:
    kept = KeptSummaries()
    for segment in "ab":
        for group in range(2):
            kept.keep(key(segment, group), (segment, group), 10)
    kept.keep_only(["b", "c"])
    assert [kept.get(key("a", group)) for group in range(2)] == [None, None]
    assert [kept.get(key("b", group)) for group in range(2)] == [("b", 0), ("b", 1)]
    assert kept.bytes == 2 * (FIXED + 10)
