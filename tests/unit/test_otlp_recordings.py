"""What real libraries sent (tests/otlp_spans): each call that the provider answered is counted, by its tokens."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.otlp_events import events_of

FOLDER: Final = Path(__file__).parent.parent / "otlp_spans"
SUMMED: Final = ("provider", "operation", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")

WITHOUT: Final = {
    "openinference-anthropic-and-sdk-3.1.0": "a streamed call has two spans in two traces",
    "openinference-langchain-and-openai-0.1.80": "the framework and the library make traces of their own",
    "openllmetry-anthropic-0.62.4": "a streamed call reports an output token too many",
    "otel-openai-v2-2.4b0": "it does not report cached tokens",
    "otel-openai-v2-latest-2.4b0": "it does not report cached tokens",
    "vercel-ai4-google-4.3.19": "it reports neither cached tokens nor thoughts",
    "vercel-ai5-openai-5.0.277": "it does not report cached tokens of a call that is not streamed",
}
"""Recordings that lack something that the provider counted."""


def counted(calls: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(call.get(name) or 0 for name in SUMMED) for call in calls if call["status"] == "success")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.calls.json")), ids=lambda path: path.stem.removesuffix(".calls"))
def test_calls_of_a_real_library(path: Path) -> None:
    name = path.name.removesuffix(".calls.json")
    sent = json.loads(path.with_name(f"{name}.json").read_text())
    events = events_of(sent)
    calls = [event for event in events if event.get("kind") != "span"]
    assert len({event["event_id"] for event in events}) == len(events)
    assert calls
    found, answered = counted(calls), counted(json.loads(path.read_text()))
    if name in WITHOUT:
        assert found != answered, "it is complete by now: take it from the list"
    else:
        assert found == answered
