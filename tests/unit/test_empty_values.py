"""An empty text is the same as none: the filter that asks for it finds what its group of the metrics counts."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from server.explore.events import answer_events
from server.explore.metrics import answer_metrics
from server.explore.prompts import answer_prompts
from server.explore.questions import EventsQuestion, Filters, MetricsQuestion, PromptsQuestion, Times
from tests.support.event_store import StoreDirectory, make_row

ABSENT: Final[Mapping[str, tuple[Filters, Filters]]] = {
    "error_code": (Filters(equal={"error_code": (None,)}), Filters(unequal={"error_code": (None,)})),
    "prompt_hash": (Filters(equal={"prompt_hash": (None,)}), Filters(unequal={"prompt_hash": (None,)})),
    "tag:team": (Filters(tags=(("team", None),)), Filters(no_tags=(("team", None),))),
    "tool": (Filters(tools=(None,)), Filters(no_tools=(None,))),
}
"""What is grouped by -> the filters for events without one, and for all others."""


@pytest.fixture
def store(tmp_path: Path) -> StoreDirectory:
    """Three events for each field: without a value, with an empty one, with one."""
    made, rng = StoreDirectory(tmp_path / "events"), random.Random(3)
    rows = [make_row(rng)]
    rows += [make_row(rng, error_code=text, prompt_hash=text) for text in ("", "x")]
    rows += [make_row(rng, error_code="e", prompt_hash="p", tags={"team": text}) for text in ("", "x")]
    rows += [make_row(rng, error_code="e", prompt_hash="p", tools_used=tools) for tools in ([], [""], ["x"])]
    made.append(rows)
    return made


def ask(store: StoreDirectory, question: Any) -> Any:
    answers: dict[type, Callable[[Any, Any], bytes]] = {
        EventsQuestion: answer_events,
        MetricsQuestion: answer_metrics,
        PromptsQuestion: answer_prompts,
    }
    engine = store.engine()
    try:
        return msgspec.json.decode(answers[type(question)](store.snapshot(engine), question))
    finally:
        engine.close()


@pytest.mark.parametrize("field", ABSENT)
def test_the_group_of_the_absent_ones_has_what_the_filter_finds(store: StoreDirectory, field: str) -> None:
    asked = MetricsQuestion(project="default", filters=Filters(), times=Times(), group_by=(field,))
    groups = {group["key"][field]: group["values"]["requests"] for group in ask(store, asked)["groups"]}
    assert "" not in groups
    for filters, expected in zip(ABSENT[field], (groups[None], 8 - groups[None]), strict=True):
        found = ask(store, EventsQuestion(project="default", filters=filters, times=Times()))
        assert (found["total"], len(found["events"])) == (expected, expected)


def test_an_empty_hash_is_no_version_of_a_prompt(store: StoreDirectory) -> None:
    found = ask(store, PromptsQuestion(project="default", filters=Filters(), times=Times()))
    assert {each["prompt_hash"]: each["requests"] for each in found["prompts"]} == {"p": 5, "x": 1}
