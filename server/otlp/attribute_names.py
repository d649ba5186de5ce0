"""The names of attributes in all conventions in use, by what they become: one ordered table.

Of several names of a field that a span has, the first in the order of the row counts; the others stay attributes.
docs/reference/otlp-attributes.md shows the table.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

Target = Literal[
    "operation_name",
    "vercel_operation",
    "openinference_kind",
    "traceloop_kind",
    "request_type",
    "agent",
    "provider",
    "model",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "provider_metadata",
    "cost_usd",
    "ttft_seconds",
    "ttft_ms",
    "stream",
    "user_id",
    "session_id",
    "environment",
    "sdk_version",
    "error_type",
    "http_status",
    "finish_reason",
    "prompt_hash",
    "tool",
    "tags",
    "metadata",
]
"""What an attribute is read as: a field of an event, or what a field is decided by."""


class Names(NamedTuple):
    """A row of the table."""

    target: Target
    names: tuple[str, ...]
    """First present wins."""
    meaning: str
    """What it becomes, for the reference."""
    stays: bool = False
    """It stays among the attributes, too: it is more than what is made of it."""


TABLE: Final[tuple[Names, ...]] = (
    Names("operation_name", ("gen_ai.operation.name",), "`kind`, `operation`", stays=True),
    Names("vercel_operation", ("ai.operationId",), "`kind`, `operation`, `stream` (Vercel AI SDK)", stays=True),
    Names("openinference_kind", ("openinference.span.kind",), "`kind`, `operation` (OpenInference)", stays=True),
    Names("traceloop_kind", ("traceloop.span.kind",), "`kind` (OpenLLMetry)", stays=True),
    Names(
        "request_type",
        ("llm.request.type", "gen_ai.request.type"),
        "`kind`, `operation` (OpenLLMetry)",
        stays=True,
    ),
    Names(
        "agent",
        ("gen_ai.agent.name", "gen_ai.agent.id", "agent_name"),
        "`kind`, where nothing above says it: a span of an agent",
        stays=True,
    ),
    Names(
        "provider",
        ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "ai.model.provider"),
        "`provider`; of `ai.model.provider` what stands before the first dot",
    ),
    Names(
        "model",
        (
            "gen_ai.response.model",
            "gen_ai.request.model",
            "llm.model_name",
            "llm.response.model_name",
            "llm.request.model_name",
            "llm.response.model",
            "llm.request.model",
            "embedding.model_name",
            "ai.response.model",
            "ai.model.id",
        ),
        "`model`",
    ),
    Names(
        "input_tokens",
        (
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.prompt_tokens",
            "llm.token_count.prompt",
            "llm.usage.prompt_tokens",
            "ai.usage.inputTokens",
            "ai.usage.promptTokens",
            "ai.usage.tokens",
            "gen_ai.response.input_tokens",
        ),
        "`input_tokens`",
    ),
    Names(
        "output_tokens",
        (
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.completion_tokens",
            "llm.token_count.completion",
            "llm.usage.completion_tokens",
            "ai.usage.outputTokens",
            "ai.usage.completionTokens",
            "gen_ai.response.output_tokens",
        ),
        "`output_tokens`",
    ),
    Names(
        "cached_tokens",
        (
            "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.cache_read_input_tokens",
            "llm.token_count.prompt_details.cache_read",
            "llm.token_count.prompt_details.cache_input",
            "llm.usage.cache_read_input_tokens",
            "ai.usage.inputTokenDetails.cacheReadTokens",
            "ai.usage.cachedInputTokens",
            "gen_ai.usage.input_tokens.cached",
            "gen_ai.usage.details.cache_read_tokens",
            "gen_ai.usage.details.cache_read_input_tokens",
            "gen_ai.usage.details.cached_tokens",
        ),
        "`cached_tokens`",
    ),
    Names(
        "cache_write_tokens",
        (
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
            "llm.token_count.prompt_details.cache_write",
            "llm.usage.cache_creation_input_tokens",
            "ai.usage.inputTokenDetails.cacheWriteTokens",
            "gen_ai.usage.input_tokens.cache_write",
            "gen_ai.usage.details.cache_write_tokens",
            "gen_ai.usage.details.cache_creation_input_tokens",
        ),
        "`cache_write_tokens`",
    ),
    Names(
        "reasoning_tokens",
        (
            "gen_ai.usage.reasoning.output_tokens",
            "gen_ai.usage.reasoning_tokens",
            "llm.token_count.completion_details.reasoning",
            "llm.usage.reasoning_tokens",
            "ai.usage.outputTokenDetails.reasoningTokens",
            "ai.usage.reasoningTokens",
            "gen_ai.usage.output_tokens.reasoning",
            "gen_ai.usage.details.reasoning_tokens",
            "gen_ai.usage.details.thoughts_tokens",
        ),
        "`reasoning_tokens`",
    ),
    Names(
        "provider_metadata",
        ("ai.response.providerMetadata",),
        "`cached_tokens`, `cache_write_tokens` of Anthropic, where no attribute above has them (Vercel AI SDK)",
        stays=True,
    ),
    Names("cost_usd", ("llm.cost.total", "gen_ai.usage.cost"), "`cost_usd` of a call"),
    Names(
        "ttft_seconds",
        ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token"),
        "`ttft_ms`, from seconds",
    ),
    Names("ttft_ms", ("ai.response.msToFirstChunk", "ai.stream.msToFirstChunk"), "`ttft_ms`"),
    Names(
        "stream",
        ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming", "gen_ai.request.is_stream"),
        "`stream`",
    ),
    Names(
        "user_id",
        (
            "user.id",
            "enduser.id",
            "gen_ai.user",
            "llm.user",
            "traceloop.association.properties.user_id",
            "ai.telemetry.metadata.userId",
            "langfuse.user.id",
        ),
        "`user_id`",
    ),
    Names(
        "session_id",
        (
            "gen_ai.conversation.id",
            "session.id",
            "traceloop.association.properties.session_id",
            "ai.telemetry.metadata.sessionId",
            "langfuse.session.id",
        ),
        "`session_id`",
    ),
    Names(
        "environment",
        ("deployment.environment.name", "deployment.environment", "langfuse.environment"),
        "`environment`; of the span, else of its resource",
    ),
    Names("sdk_version", ("telemetry.sdk.version",), "`sdk_version`; of the span, else of its resource"),
    Names("error_type", ("error.type",), "`status`, `error_code`; else `exception.type` of an event `exception`"),
    Names(
        "http_status",
        ("http.response.status_code", "http.status_code"),
        "`status` of a span that failed: 408 is `timeout`, 429 `rate_limited`",
        stays=True,
    ),
    Names(
        "finish_reason",
        (
            "gen_ai.response.finish_reasons",
            "gen_ai.response.finish_reason",
            "llm.output_messages.0.message.finish_reason",
            "gen_ai.completion.0.finish_reason",
            "llm.response.finish_reason",
            "llm.response.stop_reason",
            "llm.finish_reason",
            "ai.response.finishReason",
        ),
        "`finish_reason`, the first of a list",
    ),
    Names(
        "prompt_hash",
        ("llm.prompt_template.version", "prompt.version", "gen_ai.prompt.version", "traceloop.prompt.version"),
        "`prompt_hash`",
    ),
    Names("tool", ("gen_ai.tool.name", "tool.name", "ai.toolCall.name"), "`tools_used` of a span"),
    Names("tags", ("tag.tags",), "`tags`, each with an empty value"),
    Names("metadata", ("metadata",), "`tags`: the members of the JSON object in it that are text, numbers or flags"),
)

TAG_PREFIXES: Final = ("ai.telemetry.metadata.", "traceloop.association.properties.")
"""What stands behind one of these is the name of a tag, unless the whole name is in the table."""

PLACES: Final[dict[str, tuple[int, int]]] = {
    name: (row, rank) for row, names in enumerate(TABLE) for rank, name in enumerate(names.names)
}
"""Of every name its row, and its place there."""

_STAYS: Final = tuple(names.stays for names in TABLE)
_TARGETS: Final = tuple(names.target for names in TABLE)


class Known(NamedTuple):
    """An attribute that is in the table."""

    name: str
    value: Any


def read(attributes: Mapping[str, Any], rest: dict[str, Any]) -> dict[Target, Known]:
    """What attributes say, by what they are read as; what is not read, or is more than that, is put into `rest`."""
    found: dict[int, tuple[int, str]] = {}
    for name, value in attributes.items():
        place = PLACES.get(name)
        if place is None:
            rest[name] = value
            continue
        row, rank = place
        other = found.get(row)
        if other is None or rank < other[0]:
            found[row] = (rank, name)
            if other is not None:
                rest[other[1]] = attributes[other[1]]
            if _STAYS[row]:
                rest[name] = value
        else:
            rest[name] = value
    return {_TARGETS[row]: Known(name, attributes[name]) for row, (_, name) in found.items()}
