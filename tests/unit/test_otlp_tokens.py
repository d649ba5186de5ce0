"""Tokens with one meaning, source by source: what each sends of one call, and what it comes to."""

from typing import Any, Final

import pytest

from server.otlp import json_spans
from server.otlp.span_event import context_of, reading_of
from server.otlp.tokens import MAX_TOKENS, count_of
from tests.support.otlp import make_span, request, to_json
from tests.support.otlp_events import events_of

GEN_AI: Final = {"gen_ai.operation.name": "chat"}


def gen_ai(
    provider: str, inputs: int, outputs: int, read: int = 0, written: int = 0, thoughts: int = 0
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.provider.name": provider,
        "gen_ai.usage.input_tokens": inputs,
        "gen_ai.usage.output_tokens": outputs,
        "gen_ai.usage.cache_read.input_tokens": read,
        "gen_ai.usage.cache_creation.input_tokens": written,
        "gen_ai.usage.reasoning.output_tokens": thoughts,
    }
    return GEN_AI | found


def vercel(provider: str, **changes: Any) -> dict[str, Any]:
    return {"ai.operationId": "ai.generateText.doGenerate", "ai.model.provider": provider} | {
        f"ai.{name.replace('_', '.')}": value for name, value in changes.items()
    }


SOURCES: Final[list[tuple[str, str, str, dict[str, Any], tuple[int, int], bool]]] = [
    ("OpenAI, inclusive", "lib", "1", gen_ai("openai", 1000, 300, 600, 0, 200), (1000, 300), False),
    ("Anthropic native, cache above input", "lib", "1", gen_ai("anthropic", 50, 300, 600, 350), (1000, 300), True),
    ("Gemini native, thoughts apart", "lib", "1", gen_ai("gcp.gemini", 1000, 100, 600, 0, 200), (1000, 300), True),
    ("DeepSeek, hit and miss", "lib", "1", gen_ai("deepseek", 1000, 300, 600), (1000, 300), False),
    ("GenAI conventions, summed", "lib", "1", gen_ai("anthropic", 1000, 300, 600, 350), (1000, 300), False),
    (
        "OpenInference, summed",
        "openinference.instrumentation.anthropic",
        "1.0",
        {
            "openinference.span.kind": "LLM",
            "llm.system": "anthropic",
            "llm.token_count.prompt": 1000,
            "llm.token_count.completion": 300,
            "llm.token_count.prompt_details.cache_read": 600,
            "llm.token_count.prompt_details.cache_write": 350,
        },
        (1000, 300),
        False,
    ),
    (
        "Vercel AI SDK 4 with Anthropic, cache in the metadata only",
        "ai",
        "",
        vercel(
            "anthropic.messages",
            usage_promptTokens=400,
            usage_completionTokens=300,
            response_providerMetadata='{"anthropic":{"cacheReadInputTokens":250,"cacheCreationInputTokens":350}}',
        ),
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 5 with Anthropic, cache below input",
        "ai",
        "",
        vercel("anthropic.messages", usage_inputTokens=750, usage_cachedInputTokens=250, usage_outputTokens=300),
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 5 with OpenAI",
        "ai",
        "",
        vercel("openai.chat", usage_inputTokens=1000, usage_cachedInputTokens=250, usage_outputTokens=300),
        (1000, 300),
        False,
    ),
    (
        "Vercel AI SDK 5 with Anthropic, as it sends a whole answer: the cache only in the metadata",
        "ai",
        "",
        vercel(
            "anthropic.messages",
            usage_promptTokens=400,
            usage_completionTokens=300,
            response_providerMetadata='{"anthropic":{"usage":{"cache_read_input_tokens":250},'
            '"cacheCreationInputTokens":350}}',
        )
        | {"gen_ai.usage.input_tokens": 400, "gen_ai.usage.output_tokens": 300},
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 5 with Anthropic, as it streams: what was written only in the metadata",
        "ai",
        "",
        vercel(
            "anthropic.messages",
            usage_inputTokens=600,
            usage_cachedInputTokens=0,
            usage_outputTokens=300,
            response_providerMetadata='{"anthropic":{"cacheCreationInputTokens":400}}',
        )
        | {"gen_ai.usage.input_tokens": 600, "gen_ai.usage.output_tokens": 300},
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 5 with Amazon Bedrock",
        "ai",
        "",
        vercel(
            "amazon-bedrock",
            usage_inputTokens=750,
            usage_cachedInputTokens=250,
            usage_outputTokens=300,
            response_providerMetadata='{"bedrock":{"usage":{"cacheWriteInputTokens":null}}}',
        ),
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 5 with Gemini, thoughts apart and below the candidates",
        "ai",
        "",
        vercel("google.vertex.chat", usage_inputTokens=1000, usage_outputTokens=200, usage_reasoningTokens=100)
        | {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 200},
        (1000, 300),
        True,
    ),
    (
        "Vercel AI SDK 6 with Anthropic, nothing read from the cache",
        "ai",
        "",
        vercel(
            "anthropic.messages",
            usage_inputTokens=1000,
            usage_inputTokenDetails_noCacheTokens=900,
            usage_outputTokens=300,
            response_providerMetadata='{"anthropic":{"cacheCreationInputTokens":100}}',
        ),
        (1000, 300),
        False,
    ),
    (
        "Vercel AI SDK 6 with Anthropic, details within input",
        "ai",
        "",
        vercel(
            "anthropic.messages",
            usage_inputTokens=1000,
            usage_inputTokenDetails_cacheReadTokens=250,
            usage_outputTokens=300,
        ),
        (1000, 300),
        False,
    ),
]


@pytest.mark.parametrize(
    ("scope", "version", "attributes", "expected", "is_normalized"),
    [each[1:] for each in SOURCES],
    ids=[each[0] for each in SOURCES],
)
def test_a_source(
    scope: str, version: str, attributes: dict[str, Any], expected: tuple[int, int], is_normalized: bool
) -> None:
    (event,) = events_of(request(make_span(attributes=attributes), scope=scope, version=version))
    assert (event["input_tokens"], event["output_tokens"]) == expected
    assert event.get("usage_normalized", False) is is_normalized


@pytest.mark.parametrize(("details", "written"), [({}, 100), ({"usage_inputTokenDetails_noCacheTokens": 900}, None)])
def test_counts_of_the_metadata_are_those_that_no_attribute_has(details: dict[str, Any], written: int | None) -> None:
    """A version that has details of the input has them all; what is kept for an hour is read in any case."""
    metadata = (
        '{"anthropic":{"cacheCreationInputTokens":100,"usage":{"cache_creation":{"ephemeral_1h_input_tokens":7}}}}'
    )
    counts = {"usage_inputTokens": 1000, "usage_outputTokens": 300, "response_providerMetadata": metadata}
    sent = request(make_span(attributes=vercel("anthropic.messages", **counts, **details)), scope="ai")
    (event,) = events_of(sent)
    assert event.get("cache_write_tokens") == written
    opened = json_spans.open_request(to_json(sent))
    group = opened.groups[0]
    reading = reading_of(opened.read(group.spans[0]), context_of(group.origin, "keep", 1))
    assert reading.usage.cache_write_1h_tokens == 7


def test_parts_without_a_whole_stay_parts() -> None:
    (event,) = events_of(request(make_span(attributes=GEN_AI | {"gen_ai.usage.cache_read.input_tokens": 5})))
    assert event["cached_tokens"] == 5
    assert "input_tokens" not in event
    assert "usage_normalized" not in event


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (12, 12),
        (12.0, 12),
        ("12", 12),
        (MAX_TOKENS, MAX_TOKENS),
        (MAX_TOKENS + 1, None),
        (-1, None),
        (1.5, None),
        ("1.5", None),
        ("-1", None),
        ("9" * 400, None),
        ("²", None),
        (True, None),
        (None, None),
        ([1], None),
        (float("inf"), None),
    ],
)
def test_what_is_a_count(value: Any, expected: int | None) -> None:
    assert count_of(value) == expected


def test_what_is_no_count_stays_an_attribute() -> None:
    (event,) = events_of(request(make_span(attributes=GEN_AI | {"gen_ai.usage.input_tokens": "many"})))
    assert event["attributes"]["gen_ai.usage.input_tokens"] == "many"
    assert "input_tokens" not in event
