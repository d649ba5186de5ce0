import time

import pytest

from server.ingest.prefer import handling


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([], None),
        ([""], None),
        (["handling=strict"], "strict"),
        (["handling=lenient"], "lenient"),
        (["Handling = Strict"], "strict"),
        (['handling="lenient"'], "lenient"),
        (["handling=strict; foo=bar"], "strict"),
        (["respond-async, wait=10, handling=lenient"], "lenient"),
        (["respond-async;x=1;y, handling=lenient"], "lenient"),
        (['foo="a, handling=strict", handling=lenient'], "lenient"),
        (['foo="\\"", handling=strict'], "strict"),
        (["return=minimal", "handling=strict"], "strict"),
        (["handling=strict, handling=lenient"], "strict"),
        (["handling=lenient", "handling=strict"], "lenient"),
        ([",, handling=strict"], "strict"),
        (["handling=partial"], None),
        (["handling=gentle, handling=strict"], None),  # only the first instance of a preference counts
        (["handling"], None),
        (['handling=""'], None),
        (["handling=(strict)"], None),
        (["nothandling=strict"], None),
        (["é, handling=strict"], None),
    ],
)
def test_handling(headers: list[str], wanted: str | None) -> None:
    assert handling(headers) == wanted


@pytest.mark.parametrize(
    "text", ["; " * 4000, "a=" + '"\\' * 4000, "a;" * 4000 + "(", "a" + " ;" * 4000 + "(", " " * 8000]
)
def test_no_header_costs_time(text: str) -> None:
    began = time.thread_time()
    assert handling([text]) is None
    assert time.thread_time() - began < 0.5
