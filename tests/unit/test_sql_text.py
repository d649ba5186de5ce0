"""No parameter of a question is ever part of the text of a statement: values reach DuckDB as parameters only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import parse_qsl

import pytest

from server.errors import Refused
from server.explore import dispatch, question_params
from server.explore.engine import Engine
from server.explore.event_export import open_export
from server.explore.question_params import Inquiry
from server.explore.questions import TEXT_FILTERS, ExportQuestion, Question
from tests.support.event_store import NOON, StoreDirectory, random_row

MARK: Final = "zq7"
"""In every value that is sent, and in nothing else."""
HOSTILE: Final = f"{MARK}' OR ''='\"; DROP TABLE x; --"
TIMES: Final = "start=2026-01-01T00:00:00.771771Z&end=2026-12-31T00:00:00.771771Z"
NUMBERS: Final = "min_cost_usd=0.000771771&max_cost_usd=771771&min_latency_ms=1&max_latency_ms=771771771"
NUMBER: Final = "771771"

Parse = Callable[[Inquiry], Question]


def everything(**more: str) -> list[tuple[str, str]]:
    """Each filter that takes a text, including and excluding, and all others."""
    names = [name for name in TEXT_FILTERS if name not in {"provider", "operation", "status", "kind"}]
    pairs = [(f"{name}{suffix}", HOSTILE) for name in names for suffix in ("", "!")]
    tags = [(f"tag{suffix}", f"{HOSTILE.replace(':', '')}:{HOSTILE}") for suffix in ("", "!")]
    tools = [(f"tool{suffix}", HOSTILE) for suffix in ("", "!")]
    return [*pairs, *tags, *tools, *parse_qsl(f"{TIMES}&{NUMBERS}"), *more.items()]


def few(query: str = "", **more: str) -> list[tuple[str, str]]:
    """Questions that find something, so that all of their statements are run."""
    return [*parse_qsl(f"{TIMES}&{query}"), ("model!", HOSTILE), ("tag!", f"{MARK}:{HOSTILE}"), *more.items()]


METRICS: Final = "&".join(
    (
        f"group_by=tag:{MARK}'k\"&group_by=model&group_by=tool&interval=day&tz=Europe/Berlin",
        f"measures=score:{MARK}'s\":avg&measures=score:{MARK}'s\":p95&measures=cost_usd:sd&measures=latency_ms:p99",
        "measures=users&measures=sessions&limit=771",
    )
)
QUESTIONS: Final[list[tuple[Parse, list[tuple[str, str]]]]] = [
    (question_params.parse_events, everything()),
    (question_params.parse_events, few("order=asc")),
    (question_params.parse_events, few("order=desc", user_id=HOSTILE)),
    (question_params.parse_traces, everything(sort="cost_usd")),
    (question_params.parse_traces, few("sort=duration_ms")),
    (question_params.parse_traces, few("sort=start")),
    (question_params.parse_sessions, everything(sort="calls")),
    (question_params.parse_sessions, few("sort=cost_usd")),
    (question_params.parse_metrics, everything()),
    (question_params.parse_metrics, few(METRICS)),
    (question_params.parse_prompts, everything()),
    (question_params.parse_prompts, few()),
    (question_params.parse_export, everything(format="csv")),
    (question_params.parse_export, few("format=ndjson")),
    *[
        (lambda inquiry, parse=parse: parse(inquiry, HOSTILE), [])
        for parse in (question_params.parse_event, question_params.parse_trace, question_params.parse_session)
    ],
]


class Listening(Engine):
    """Keeps the text and the parameters of all statements."""

    said: list[tuple[str, Sequence[Any]]]

    def rows(self, sql: str, params: Sequence[Any] = ()) -> Any:
        self.said.append((sql, params))
        return super().rows(sql, params)

    def batches(self, sql: str, params: Sequence[Any] = (), size: int = 2048) -> Iterator[Any]:
        self.said.append((sql, params))
        return super().batches(sql, params, size)

    def table(self, sql: str, params: Sequence[Any] = ()) -> Any:
        self.said.append((sql, params))
        return super().table(sql, params)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    made, rng = StoreDirectory(tmp_path_factory.mktemp("store") / "events"), Random(5)
    for _ in range(3):
        made.append([random_row(rng) for _ in range(40)])
    return made


@pytest.fixture
def engine(store: StoreDirectory, tmp_path: Path) -> Iterator[Listening]:
    made = Listening(store.directory, tmp_path / "spill")
    made.said = []
    yield made
    made.close()


def ask(store: StoreDirectory, engine: Engine, question: Question) -> None:
    snapshot = store.snapshot(engine)
    if isinstance(question, ExportQuestion):
        export = open_export(snapshot, question)
        list(export.pieces)
        export.close()
        return
    with suppress(Refused):  # as not_found
        dispatch.answer(engine, snapshot, question)


@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_no_value_is_in_the_text_of_a_statement(store: StoreDirectory, engine: Listening, number: int) -> None:
    parse, pairs = QUESTIONS[number]
    inquiry = Inquiry("default", tuple(pairs), NOON, "0" * 32)
    ask(store, engine, parse(inquiry))
    for sql, _ in engine.said:
        assert MARK not in sql, sql
        assert NUMBER not in sql, sql


def test_there_are_statements_and_their_parameters_have_the_values(store: StoreDirectory, engine: Listening) -> None:
    """Else the test above would say nothing."""
    for parse, pairs in QUESTIONS:
        ask(store, engine, parse(Inquiry("default", tuple(pairs), NOON, "0" * 32)))
    assert len(engine.said) > len(QUESTIONS) // 2
    given = repr([params for _, params in engine.said])
    assert MARK in given
