"""The names of attributes in all conventions in use, by what they become: one ordered table.

Of several names of a field that a span has, the first in the order of the row counts; the others stay attributes.
docs/reference/otlp-attributes.md shows the table.
"""

from collections.abc import Mapping, Sequence
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
    "cache_write_1h_tokens",
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
    "invocation",
    "tool",
    "tags",
    "metadata",
    "tagged",
]
"""What an attribute is read as: a field of an event, or what a field is decided by; `tagged` are all of `TAG_PREFIXES`
together, by their names."""


class AttributeNames(NamedTuple):
    """A row of the table."""

    target: Target
    names: tuple[str, ...]
    """First present wins."""
    meaning: str
    """What it becomes, for the reference."""
    stays: bool = False
    """It stays among the attributes, too: it is more than what is made of it."""


TABLE: Final[tuple[AttributeNames, ...]] = (
    AttributeNames("operation_name", ("gen_ai.operation.name",), "`kind`, `operation`", stays=True),
    AttributeNames(
        "vercel_operation", ("ai.operationId",), "`kind`, `operation`, `stream` (Vercel AI SDK)", stays=True
    ),
    AttributeNames(
        "openinference_kind", ("openinference.span.kind",), "`kind`, `operation` (OpenInference)", stays=True
    ),
    AttributeNames("traceloop_kind", ("traceloop.span.kind",), "`kind` (OpenLLMetry)", stays=True),
    AttributeNames(
        "request_type",
        ("llm.request.type", "gen_ai.request.type"),
        "`kind`, `operation` (OpenLLMetry)",
        stays=True,
    ),
    AttributeNames(
        "agent",
        ("gen_ai.agent.name", "gen_ai.agent.id", "agent_name"),
        "`kind`, where nothing above says it: a span of an agent",
        stays=True,
    ),
    AttributeNames(
        "provider",
        ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "ai.model.provider"),
        "`provider`; of a span with `ai.model.provider` (Vercel AI SDK) what stands before the first dot",
    ),
    AttributeNames(
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
    AttributeNames(
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
    AttributeNames(
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
    AttributeNames(
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
    AttributeNames(
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
    AttributeNames(
        "cache_write_1h_tokens",
        ("anthropic.usage.cache_creation.ephemeral_1h_input_tokens",),
        "of `cache_write_tokens` those that are kept for an hour, which have a price of their own",
        stays=True,
    ),
    AttributeNames(
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
    AttributeNames(
        "provider_metadata",
        ("ai.response.providerMetadata",),
        "`cached_tokens`, `cache_write_tokens`, `reasoning_tokens`, where no attribute above has them (Vercel AI SDK)",
        stays=True,
    ),
    AttributeNames("cost_usd", ("llm.cost.total", "gen_ai.usage.cost"), "`cost_usd` of a call"),
    AttributeNames(
        "ttft_seconds",
        ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token"),
        "`ttft_ms`, from seconds",
    ),
    AttributeNames("ttft_ms", ("ai.response.msToFirstChunk", "ai.stream.msToFirstChunk"), "`ttft_ms`"),
    AttributeNames(
        "stream",
        ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming", "gen_ai.request.is_stream"),
        "`stream`",
    ),
    AttributeNames(
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
    AttributeNames(
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
    AttributeNames(
        "environment",
        ("deployment.environment.name", "deployment.environment", "langfuse.environment"),
        "`environment`; of the span, else of its resource",
    ),
    AttributeNames("sdk_version", ("telemetry.sdk.version",), "`sdk_version`; of the span, else of its resource"),
    AttributeNames(
        "error_type", ("error.type",), "`status`, `error_code`; else `exception.type` of an event `exception`"
    ),
    AttributeNames(
        "http_status",
        ("http.response.status_code", "http.status_code"),
        "`status` of a span that failed: 408 is `timeout`, 429 `rate_limited`",
        stays=True,
    ),
    AttributeNames(
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
    AttributeNames(
        "prompt_hash",
        ("llm.prompt_template.version", "prompt.version", "gen_ai.prompt.version", "traceloop.prompt.version"),
        "`prompt_hash`",
    ),
    AttributeNames(
        "invocation",
        ("llm.invocation_parameters",),
        "`model`, `stream`: `model` and `stream` of the JSON object in it, where nothing above says them",
        stays=True,
    ),
    AttributeNames("tool", ("gen_ai.tool.name", "tool.name", "ai.toolCall.name"), "`tools_used` of a span"),
    AttributeNames("tags", ("tag.tags",), "`tags`, each with an empty value"),
    AttributeNames(
        "metadata", ("metadata",), "`tags`: the members of the JSON object in it that are text, numbers or flags"
    ),
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


class _Plan(NamedTuple):
    """What becomes of the attributes of a span, by their names alone."""

    found: tuple[tuple[Target, str], ...]
    rest: tuple[str, ...]
    tagged: tuple[str, ...]


MAX_PLANS: Final = 256
MAX_PLANNED: Final = 64
"""Names up to which a plan is remembered: the spans of a library have few sets of names."""

_plans: dict[tuple[str, ...], _Plan] = {}
_new: Final = tuple.__new__  # half the time of a NamedTuple's own


def read(attributes: Mapping[str, Any], rest: dict[str, Any]) -> dict[Target, Known]:
    """What attributes say, by what they are read as; what is not read, or is more than that, is put into `rest`."""
    names = tuple(attributes)
    plan = _plans.get(names)
    if plan is None:
        plan = _plan(names)
        if len(names) <= MAX_PLANNED:
            if len(_plans) >= MAX_PLANS:
                _plans.clear()
            _plans[names] = plan
    for name in plan.rest:
        rest[name] = attributes[name]
    found = {target: _new(Known, (name, attributes[name])) for target, name in plan.found}
    if plan.tagged:
        found["tagged"] = Known("", {name: attributes[name] for name in plan.tagged})
    return found


def _plan(names: Sequence[str]) -> _Plan:
    found: dict[int, tuple[int, str]] = {}
    rest: dict[str, None] = {}
    for name in names:
        place = PLACES.get(name)
        if place is None:
            rest[name] = None
            continue
        row, rank = place
        other = found.get(row)
        if other is None or rank < other[0]:
            found[row] = (rank, name)
            if other is not None:
                rest[other[1]] = None
            if _STAYS[row]:
                rest[name] = None
        else:
            rest[name] = None
    others = [name for name in rest if not name.startswith(TAG_PREFIXES)]
    tagged = [name for name in rest if name.startswith(TAG_PREFIXES)]
    return _Plan(tuple((_TARGETS[row], name) for row, (_, name) in found.items()), tuple(others), tuple(tagged))
