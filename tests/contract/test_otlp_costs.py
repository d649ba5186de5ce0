"""What calls cost that come over OTLP, source by source: in picodollars, computed by hand, over every wire.

A price of $1 a million tokens is 1,000,000 picodollars a token. The built-in list's prices of 2026-04-20, 10:00 UTC.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from processor.core.events.prices.pricing import Pricer
from server.prices.builtin import builtin_list
from tests.contract.doors import open_doors
from tests.contract.test_otlp import WIRES, stored
from tests.support.otlp import make_span, request, span_id

LIST: Final = builtin_list().name
M: Final = 1_000_000
COPIES: Final = range(1, 5)
"""From the third one on the compiled kernel makes the lines, where it runs."""


class Source(NamedTuple):
    """A call as a source reports it, and what it costs; None: it is unpriced."""

    name: str
    attributes: dict[str, Any]
    picodollars: int | None
    scope: str = "some.library"


def gen_ai(provider: str, model: str, inputs: int | None, outputs: int | None, **parts: int) -> dict[str, Any]:
    names = {
        "read": "gen_ai.usage.cache_read.input_tokens",
        "written": "gen_ai.usage.cache_creation.input_tokens",
        "thoughts": "gen_ai.usage.reasoning.output_tokens",
        "hourly": HOURLY,
    }
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": inputs,
        "gen_ai.usage.output_tokens": outputs,
    }
    every = found | {names[name]: count for name, count in parts.items()}
    return {name: value for name, value in every.items() if value is not None}


def openinference(provider: str, model: str, inputs: int, outputs: int, **parts: int) -> dict[str, Any]:
    return {
        "openinference.span.kind": "LLM",
        "llm.system": provider,
        "llm.model_name": model,
        "llm.token_count.prompt": inputs,
        "llm.token_count.completion": outputs,
        **{f"llm.token_count.prompt_details.cache_{name}": count for name, count in parts.items()},
    }


def vercel(provider: str, model: str, metadata: str, **counts: int) -> dict[str, Any]:
    return {
        "ai.operationId": "ai.generateText.doGenerate",
        "ai.model.provider": provider,
        "ai.model.id": model,
        "ai.response.providerMetadata": metadata,
        **{f"ai.usage.{name.replace('_', '.')}": count for name, count in counts.items()},
    }


HOURLY: Final = "anthropic.usage.cache_creation.ephemeral_1h_input_tokens"
SONNET: Final = "claude-sonnet-4-5"
"""$3, read $0.30, written for 5 minutes $3.75 and for an hour $6, output $15; above 200,000 tokens twice that, but
output $22.50."""
IN_FIVE: Final = 50 * 3 * M + 600 * 300_000 + 350 * 3_750_000 + 300 * 15 * M
"""1,000 tokens of which 600 were read and 350 written, and an answer of 300."""
IN_HOUR: Final = 50 * 3 * M + 600 * 300_000 + 250 * 3_750_000 + 100 * 6 * M + 300 * 15 * M
"""The same, of which 100 were written for an hour."""

SOURCES: Final = (
    # --- OpenAI: input with what was cached, output with reasoning; $2.50, cached $1.25, $10 ---
    Source(
        "OpenAI, inclusive",
        gen_ai("openai", "gpt-4o", 1000, 300, read=600, thoughts=200),
        400 * 2_500_000 + 600 * 1_250_000 + 300 * 10 * M,
    ),
    Source("Azure OpenAI", gen_ai("azure.ai.openai", "gpt-4o", 1000, 300), 1000 * 2_500_000 + 300 * 10 * M),
    Source("OpenAI, up to the tier", gen_ai("openai", "gpt-5.4", 272_000, 1), 272_000 * 2_500_000 + 15 * M),
    Source("OpenAI, above the tier", gen_ai("openai", "gpt-5.4", 272_001, 1), 272_001 * 5 * M + 22_500_000),
    Source(
        "OpenAI, embeddings",
        {**gen_ai("openai", "text-embedding-3-small", 1000, None), "gen_ai.operation.name": "embeddings"},
        1000 * 20_000,
    ),
    # --- Anthropic ---
    Source("Anthropic, exclusive", gen_ai("anthropic", SONNET, 50, 300, read=600, written=350), IN_FIVE),
    Source("Anthropic, summed", gen_ai("anthropic", SONNET, 1000, 300, read=600, written=350), IN_FIVE),
    Source(
        "Anthropic, none written for an hour",
        gen_ai("anthropic", SONNET, 1000, 300, read=600, written=350, hourly=0),
        IN_FIVE,
    ),
    Source(
        "Anthropic, some written for an hour",
        gen_ai("anthropic", SONNET, 1000, 300, read=600, written=350, hourly=100),
        IN_HOUR,
    ),
    Source(
        "Anthropic, all written for an hour, exclusive",
        gen_ai("anthropic", SONNET, 50, 300, read=600, written=350, hourly=350),
        50 * 3 * M + 600 * 300_000 + 350 * 6 * M + 300 * 15 * M,
    ),
    Source(
        "Anthropic, up to the tier, which what is read counts towards",
        gen_ai("anthropic", SONNET, 200_000, 1, read=199_999),
        3 * M + 199_999 * 300_000 + 15 * M,
    ),
    Source(
        "Anthropic, above the tier",
        gen_ai("anthropic", SONNET, 200_001, 1, read=200_000),
        6 * M + 200_000 * 600_000 + 22_500_000,
    ),
    Source(
        "Anthropic, written for an hour above the tier",
        gen_ai("anthropic", SONNET, 200_001, 1, written=200_000, hourly=200_000),
        6 * M + 200_000 * 12 * M + 22_500_000,
    ),
    Source(
        "OpenInference for Anthropic, summed",
        openinference("anthropic", SONNET, 1000, 300, read=600, write=350),
        IN_FIVE,
        "openinference.instrumentation.anthropic",
    ),
    Source(
        "Vercel AI SDK 4 with Anthropic",
        vercel(
            "anthropic.messages",
            SONNET,
            '{"anthropic":{"cacheReadInputTokens":600,"cacheCreationInputTokens":350}}',
            promptTokens=50,
            completionTokens=300,
        ),
        IN_FIVE,
        "ai",
    ),
    Source(
        "Vercel AI SDK 5 with Anthropic, some written for an hour",
        vercel(
            "anthropic.messages",
            SONNET,
            '{"anthropic":{"usage":{"cache_read_input_tokens":600,"cache_creation":{"ephemeral_5m_input_tokens":250,'
            '"ephemeral_1h_input_tokens":100}},"cacheCreationInputTokens":350}}',
            promptTokens=50,
            completionTokens=300,
        ),
        IN_HOUR,
        "ai",
    ),
    Source(
        "Vercel AI SDK 6 with Anthropic, some written for an hour",
        vercel(
            "anthropic.messages",
            SONNET,
            '{"anthropic":{"usage":{"cache_creation":{"ephemeral_1h_input_tokens":100}}}}',
            inputTokens=1000,
            inputTokenDetails_cacheReadTokens=600,
            inputTokenDetails_cacheWriteTokens=350,
            outputTokens=300,
        ),
        IN_HOUR,
        "ai",
    ),
    # --- Google: thoughts beside the candidates; $0.30, cached $0.03, $2.50 ---
    Source(
        "Gemini, thoughts apart",
        gen_ai("gcp.gemini", "gemini-2.5-flash", 1000, 100, read=600, thoughts=200),
        400 * 300_000 + 600 * 30_000 + 300 * 2_500_000,
    ),
    Source(
        "Gemini, up to the tier",
        gen_ai("gcp.vertex_ai", "gemini-2.5-pro", 200_000, 1000),
        200_000 * 1_250_000 + 1000 * 10 * M,
    ),
    Source(
        "Gemini, above the tier",
        gen_ai("gcp.gemini", "gemini-2.5-pro", 200_001, 1000),
        200_001 * 2_500_000 + 15_000 * M,
    ),
    Source(
        "Vercel AI SDK 5 with Gemini, thoughts apart and below the candidates",
        vercel(
            "google.generative-ai",
            "gemini-2.5-flash",
            '{"google":{"usageMetadata":{"cachedContentTokenCount":600,"thoughtsTokenCount":100}}}',
            promptTokens=1000,
            completionTokens=200,
        ),
        400 * 300_000 + 600 * 30_000 + 300 * 2_500_000,
        "ai",
    ),
    # --- others, by the names that senders have for them ---
    # from 00:30 to 16:30 UTC $0.27, cached $0.07, $1.10
    Source(
        "DeepSeek, hits and misses together",
        gen_ai("deepseek", "deepseek-chat", 1000, 300, read=600),
        400 * 270_000 + 600 * 70_000 + 300 * 1_100_000,
    ),
    Source("Groq", gen_ai("groq", "llama-3.3-70b-versatile", 1000, 300), 1000 * 590_000 + 300 * 790_000),
    Source(
        "Bedrock", gen_ai("aws.bedrock", "anthropic.claude-3-haiku-20240307-v1:0", 1000, 100), 250 * M + 100 * 1_250_000
    ),
    # $2, $8, reasoning $3
    Source(
        "OpenRouter, reasoning with a price of its own",
        gen_ai("openrouter", "perplexity/sonar-deep-research", 10, 100, thoughts=60),
        10 * 2 * M + 40 * 8 * M + 60 * 3 * M,
    ),
    Source("no tokens of either", gen_ai("openai", "gpt-4o", 0, 0), 0),
    # --- unpriced, never free ---
    Source("a model that no list knows", gen_ai("openai", "nobody-knows", 10, 1), None),
    Source("a provider that no list knows", gen_ai("my-proxy", "gpt-4o", 10, 1), None),
    Source("no input tokens", gen_ai("openai", "gpt-4o", None, 1), None),
    Source("no output tokens", gen_ai("openai", "gpt-4o", 10, None), None),
    Source("a write without a price", gen_ai("openai", "gpt-4o", 10, 1, written=5), None),
    Source("an hour without a price", gen_ai("deepseek", "deepseek-chat", 10, 1, written=5, hourly=5), None),
    Source("more for an hour than was written", gen_ai("anthropic", SONNET, 10, 1, written=5, hourly=6), None),
    Source("pictures", {**gen_ai("openai", "gpt-image-1", 10, 1), "gen_ai.operation.name": "image_generation"}, None),
    Source("speech", {**gen_ai("openai", "gpt-4o", 10, 1), "gen_ai.operation.name": "text_to_speech"}, None),
    Source("more than a million dollars", gen_ai("openai", "gpt-4o", 2**53 - 1, 1), None),
)


def spans(source: Source) -> Iterator[dict[str, Any]]:
    for number in COPIES:
        yield make_span(number, attributes=source.attributes)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
async def test_what_a_call_costs(source: Source) -> None:
    for name, wire in WIRES.items():
        async with open_doors(pricer=Pricer([builtin_list()])) as doors:
            for span in spans(source):
                outcome = await wire.send(doors, request(span, scope=source.scope))
                assert (outcome.reason, outcome.rejected) == ("", 0)
            found = stored(doors)
            assert [event.span_id for event in found] == [span_id(number) for number in COPIES]
            wanted = (0, False, None) if source.picodollars is None else (source.picodollars, True, LIST)
            assert {(event.cost, event.priced, event.cost_source) for event in found} == {wanted}, name


async def test_a_cost_that_was_sent_is_taken_and_a_wrapper_has_none() -> None:
    call = gen_ai("openai", "gpt-4o", 1000, 300)
    for wire in WIRES.values():
        async with open_doors(pricer=Pricer([builtin_list()])) as doors:
            sent = request(
                make_span(1, attributes=call),
                make_span(2, 1, attributes=call),
                make_span(3, attributes=call | {"gen_ai.usage.cost": 0.25}),
                make_span(4, attributes=call | {"llm.cost.total": 0}),
            )
            await wire.send(doors, sent)
            found = [(event.kind, event.cost, event.cost_source) for event in stored(doors)]
            assert found == [
                ("span", 0, None),
                ("call", 5_500_000_000, LIST),
                ("call", 250_000_000_000, "client"),
                ("call", 0, "client"),
            ]
