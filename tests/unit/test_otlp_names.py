"""The table of names, and what a span of each generation of names becomes."""

from typing import Any, Final

import pytest

from server.otlp import attribute_names, content
from server.otlp.attribute_names import TABLE, read
from server.otlp.kinds import kind_of
from tests.support.otlp import make_span, request
from tests.support.otlp_events import events_of

Expected = dict[str, Any]

GENERATIONS: Final[dict[str, tuple[dict[str, Any], Expected]]] = {
    "GenAI before 1.27": (
        {
            "gen_ai.system": "openai",
            "gen_ai.request.model": "gpt-4",
            "gen_ai.usage.prompt_tokens": 10,
            "gen_ai.usage.completion_tokens": 2,
        },
        {"provider": "openai", "model": "gpt-4", "operation": "chat", "input_tokens": 10, "output_tokens": 2},
    ),
    "GenAI before 1.37": (
        {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.system": "anthropic",
            "gen_ai.request.model": "claude",
            "gen_ai.response.model": "claude-1",
            "gen_ai.usage.input_tokens": 10,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.response.finish_reasons": ["stop", "length"],
            "session.id": "s",
            "enduser.id": "u",
        },
        {
            "provider": "anthropic",
            "model": "claude-1",
            "operation": "chat",
            "finish_reason": "stop",
            "session_id": "s",
            "user_id": "u",
            "attributes": {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": "claude",
                "gen_ai.response.finish_reasons": ["stop", "length"],
            },
        },
    ),
    "GenAI 1.37": (
        {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": "gcp.gemini",
            "gen_ai.request.model": "gemini-2.5-flash",
            "gen_ai.conversation.id": "c",
            "user.id": "u",
        },
        {
            "provider": "google",
            "model": "gemini-2.5-flash",
            "session_id": "c",
            "user_id": "u",
            "input_tokens": None,
            "output_tokens": None,
            "attributes": {"gen_ai.operation.name": "generate_content", "gen_ai.provider.name": "gcp.gemini"},
        },
    ),
    "GenAI 1.40": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "aws.bedrock",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.cache_read.input_tokens": 60,
            "gen_ai.usage.cache_creation.input_tokens": 20,
        },
        {
            "provider": "custom",
            "tags": {"provider.raw": "aws.bedrock"},
            "input_tokens": 100,
            "cached_tokens": 60,
            "cache_write_tokens": 20,
        },
    ),
    "GenAI 1.41": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.output_tokens": 100,
            "gen_ai.usage.reasoning.output_tokens": 60,
            "gen_ai.response.time_to_first_chunk": 0.25,
            "gen_ai.request.stream": True,
        },
        {"output_tokens": 100, "reasoning_tokens": 60, "ttft_ms": 250.0, "stream": True},
    ),
    "util-genai 1.3b0": (
        {"gen_ai.operation.name": "chat", "gen_ai.usage.cache_write.input_tokens": 3, "prompt.version": "v2"},
        {"cache_write_tokens": 3, "prompt_hash": "v2"},
    ),
    "OpenInference": (
        {
            "openinference.span.kind": "LLM",
            "llm.system": "openai",
            "llm.provider": "azure",
            "llm.model_name": "gpt-4o",
            "llm.token_count.prompt": 100,
            "llm.token_count.completion": 20,
            "llm.token_count.prompt_details.cache_read": 40,
            "llm.token_count.completion_details.reasoning": 5,
            "llm.cost.total": 0.0012,
            "session.id": "s",
            "user.id": "u",
            "metadata": '{"team": "search", "n": 1, "deep": {"a": 1}}',
            "tag.tags": ["a", "b"],
            "llm.prompt_template.version": "v1",
        },
        {
            "provider": "custom",
            "tags": {"provider.raw": "azure", "team": "search", "n": "1", "a": "", "b": ""},
            "model": "gpt-4o",
            "input_tokens": 100,
            "cached_tokens": 40,
            "reasoning_tokens": 5,
            "cost_usd": 0.0012,
            "prompt_hash": "v1",
        },
    ),
    "OpenInference embedding": (
        {"openinference.span.kind": "EMBEDDING", "embedding.model_name": "e", "llm.token_count.prompt": 7},
        {"operation": "embed", "model": "e", "input_tokens": 7, "output_tokens": 0},
    ),
    "OpenInference with parameters only": (
        {"openinference.span.kind": "LLM", "llm.invocation_parameters": '{"model": "gpt-4o", "stream": true}'},
        {"model": "gpt-4o", "stream": True},
    ),
    "OpenLLMetry": (
        {
            "llm.request.type": "chat",
            "gen_ai.system": "OpenAI",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 20,
            "gen_ai.usage.cache_read_input_tokens": 40,
            "llm.usage.reasoning_tokens": 5,
            "gen_ai.completion.0.finish_reason": "stop",
            "llm.is_streaming": False,
            "traceloop.association.properties.user_id": "u",
            "traceloop.association.properties.team": "search",
        },
        {
            "provider": "openai",
            "input_tokens": 100,
            "cached_tokens": 40,
            "reasoning_tokens": 5,
            "finish_reason": "stop",
            "user_id": "u",
            "tags": {"team": "search"},
        },
    ),
    "Vercel AI SDK 4": (
        {
            "operation.name": "ai.generateText.doGenerate f",
            "ai.operationId": "ai.generateText.doGenerate",
            "ai.model.id": "gpt-4o",
            "ai.model.provider": "openai.chat",
            "ai.usage.promptTokens": 100,
            "ai.usage.completionTokens": 20,
            "ai.response.finishReason": "stop",
            "ai.telemetry.metadata.userId": "u",
            "ai.telemetry.metadata.team": "search",
        },
        {
            "provider": "openai",
            "model": "gpt-4o",
            "operation": "chat",
            "input_tokens": 100,
            "output_tokens": 20,
            "finish_reason": "stop",
            "user_id": "u",
            "tags": {"team": "search"},
        },
    ),
    "Vercel AI SDK with a provider that is none of ours": (
        {
            "ai.operationId": "ai.generateText.doGenerate",
            "ai.model.provider": "groq.chat",
            "gen_ai.system": "groq.chat",
            "gen_ai.request.model": "llama-3.3-70b-versatile",
        },
        {"provider": "custom", "tags": {"provider.raw": "groq"}},
    ),
    "Vercel AI SDK 6": (
        {
            "ai.operationId": "ai.streamText.doStream",
            "gen_ai.system": "openai.responses",
            "gen_ai.request.model": "gpt-4o",
            "ai.usage.inputTokens": 100,
            "ai.usage.inputTokenDetails.cacheReadTokens": 40,
            "ai.usage.outputTokenDetails.reasoningTokens": 5,
            "ai.response.msToFirstChunk": 120.5,
        },
        {"provider": "openai", "cached_tokens": 40, "reasoning_tokens": 5, "stream": True, "ttft_ms": 120.5},
    ),
    "pydantic-ai": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.system": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.details.cache_read_tokens": 40,
            "gen_ai.usage.details.reasoning_tokens": 5,
        },
        {"cached_tokens": 40, "reasoning_tokens": 5},
    ),
    "Sentry": (
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.input_tokens.cached": 40,
            "gen_ai.usage.input_tokens.cache_write": 10,
            "gen_ai.usage.output_tokens.reasoning": 0,
        },
        {"cached_tokens": 40, "cache_write_tokens": 10, "reasoning_tokens": 0},
    ),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_generation_of_names(generation: str) -> None:
    attributes, expected = GENERATIONS[generation]
    (event,) = events_of(request(make_span(attributes=attributes), scope="some.library"))
    assert {name: event.get(name) for name in expected} == expected
    assert event.get("kind", "call") == "call"


def test_no_name_means_two_things() -> None:
    names = [name for row in TABLE for name in row.names]
    assert len(names) == len(set(names))
    assert set(attribute_names.PLACES) == set(names)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.target)
def test_the_first_name_that_is_present_counts(row: attribute_names.AttributeNames) -> None:
    for order in (row.names, row.names[::-1]):
        rest: dict[str, Any] = {}
        found = read({name: place for place, name in enumerate(order)}, rest)
        if "tagged" in found:
            rest |= found.pop("tagged").value
        assert set(found) == {row.target}
        assert found[row.target].name == row.names[0]
        assert set(rest) == set(row.names) - (set() if row.stays else {row.names[0]})


ROLES: Final = [
    ({"gen_ai.operation.name": "embeddings"}, ("call", "embed")),
    ({"gen_ai.operation.name": "image_generation"}, ("call", "image")),
    ({"gen_ai.operation.name": "text_to_speech"}, ("call", "tts")),
    ({"gen_ai.operation.name": "CHAT"}, ("call", "chat")),
    ({"gen_ai.operation.name": "invoke_agent"}, ("barrier", "custom")),
    ({"gen_ai.operation.name": "create_agent"}, ("barrier", "custom")),
    ({"gen_ai.operation.name": "execute_tool"}, ("barrier", "custom")),
    ({"gen_ai.operation.name": "retrieval"}, ("barrier", "custom")),
    ({"gen_ai.operation.name": "invoke_workflow"}, ("step", "custom")),
    ({"gen_ai.operation.name": "something new"}, ("step", "custom")),
    ({"openinference.span.kind": "LLM"}, ("call", "chat")),
    ({"openinference.span.kind": "AGENT"}, ("barrier", "custom")),
    ({"openinference.span.kind": "TOOL"}, ("barrier", "custom")),
    ({"openinference.span.kind": "CHAIN"}, ("step", "custom")),
    ({"openinference.span.kind": "GUARDRAIL"}, ("step", "custom")),
    ({"ai.operationId": "ai.generateText"}, ("step", "custom")),
    ({"ai.operationId": "ai.generateText", "gen_ai.operation.name": "chat"}, ("step", "custom")),
    ({"ai.operationId": "ai.embedMany.doEmbed"}, ("call", "embed")),
    ({"ai.operationId": "ai.toolCall"}, ("barrier", "custom")),
    ({"traceloop.span.kind": "workflow"}, ("step", "custom")),
    ({"traceloop.span.kind": "tool"}, ("barrier", "custom")),
    ({"llm.request.type": "rerank"}, ("step", "custom")),
    ({"llm.request.type": "unknown", "traceloop.span.kind": "agent"}, ("barrier", "custom")),
    ({"gen_ai.agent.name": "a", "gen_ai.usage.input_tokens": 5}, ("barrier", "custom")),
    ({"gen_ai.tool.name": "t"}, ("barrier", "custom")),
    ({"gen_ai.usage.input_tokens": 5}, ("step", "custom")),
    ({"gen_ai.request.model": "m"}, ("other", "custom")),
    ({"http.request.method": "POST"}, ("other", "custom")),
    ({"gen_ai.operation.name": 7}, ("other", "custom")),
    ({}, ("other", "custom")),
]


@pytest.mark.parametrize(("attributes", "expected"), ROLES, ids=str)
def test_the_role_of_a_span(attributes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert kind_of(read(attributes, {}), "name") == expected


def test_a_model_named_by_an_embedding_span() -> None:
    found = read({"gen_ai.system": "openai", "gen_ai.request.model": "e"}, {})
    assert kind_of(found, "openai.embeddings") == ("call", "embed")


PROVIDERS: Final = [
    ("openai", "openai"),
    ("OpenAI", "openai"),
    ("azure.ai.openai", "openai"),
    ("azure_openai", "openai"),
    ("az.ai.openai", "openai"),
    ("azure", "custom"),
    ("azure.ai.inference", "custom"),
    ("anthropic", "anthropic"),
    ("Anthropic", "anthropic"),
    ("gcp.gemini", "google"),
    ("gcp.vertex_ai", "google"),
    ("gcp.gen_ai", "google"),
    ("google", "google"),
    ("google_genai", "google"),
    ("vertexai", "google"),
    ("vertex_ai", "google"),
    ("gemini", "google"),
    ("aws.bedrock", "custom"),
    ("mistral_ai", "custom"),
    ("groq", "custom"),
    ("my-openai", "custom"),
]


@pytest.mark.parametrize(("sent", "expected"), PROVIDERS)
def test_a_provider(sent: str, expected: str) -> None:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": sent}
    (event,) = events_of(request(make_span(attributes=attributes)))
    assert event["provider"] == expected
    assert event.get("tags", {}) == ({"provider.raw": sent} if expected == "custom" else {})


PROMPTS: Final = {
    "gen_ai.input.messages": "secret",
    "gen_ai.prompt.0.content": "secret",
    "gen_ai.completion.0.content": "secret",
    "llm.input_messages.0.message.content": "secret",
    "input.value": "secret",
    "ai.prompt.messages": "secret",
    "ai.response.text": "secret",
    "traceloop.entity.input": "secret",
    "gen_ai.tool.call.arguments": "secret",
    "retrieval.documents.0.document.content": "secret",
}


def test_prompts_can_be_dropped() -> None:
    events = [{"name": "gen_ai.user.message", "attributes": {"content": "secret", "role": "user"}}]
    span = make_span(attributes={"gen_ai.operation.name": "chat", **PROMPTS}, events=events)
    sent = request(span, resource={"gen_ai.prompt": "secret"})
    (kept,) = events_of(sent)
    assert PROMPTS.items() <= kept["attributes"].items()
    (dropped,) = events_of(sent, content="drop")
    assert "secret" not in str(dropped)
    assert dropped["attributes"] == {"gen_ai.operation.name": "chat"}
    assert dropped["events"] == [{"name": "gen_ai.user.message", "attributes": {"role": "user"}}]
    assert not any(content.is_content(name) for row in TABLE for name in row.names)


def test_all_spans_can_be_kept() -> None:
    sent = request(make_span(1, attributes={"http.request.method": "GET"}, name="GET"), make_span(2, 1, attributes={}))
    assert events_of(sent) == []
    found = events_of(sent, which="all")
    assert [(each["kind"], each["name"], each.get("parent_span_id")) for each in found] == [
        ("span", "GET", None),
        ("span", "chat gpt-4o", "0000000000000001"),
    ]
