"""Counts of tokens that versions 4 and 5 of the Vercel AI SDK have only in `ai.response.providerMetadata`.

Version 4 has nothing but input and output tokens among its attributes, and version 5 no more than that of calls that
are not streamed; what a provider's own package passes on differs from provider to provider, and between the versions.
"""

from typing import Any, Final, Literal

import msgspec

from server.otlp.tokens import SpanUsage, count_of

Part = Literal["cached_tokens", "cache_write_tokens", "reasoning_tokens"]

COUNTS: Final[tuple[tuple[Part, tuple[str, ...]], ...]] = (
    ("cached_tokens", ("anthropic", "cacheReadInputTokens")),
    ("cached_tokens", ("anthropic", "usage", "cache_read_input_tokens")),
    ("cached_tokens", ("bedrock", "usage", "cacheReadInputTokens")),
    ("cached_tokens", ("google", "usageMetadata", "cachedContentTokenCount")),
    ("cached_tokens", ("openai", "cachedPromptTokens")),
    ("cache_write_tokens", ("anthropic", "cacheCreationInputTokens")),
    ("cache_write_tokens", ("bedrock", "usage", "cacheWriteInputTokens")),
    ("reasoning_tokens", ("google", "usageMetadata", "thoughtsTokenCount")),
    ("reasoning_tokens", ("openai", "reasoningTokens")),
)
"""Where a count stands in the object; the first that is there counts. In the reference."""

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def add_counts(usage: SpanUsage, value: Any) -> None:
    """Give a usage the counts that it lacks and that the attribute's value has."""
    try:
        metadata = _decode_object(value)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        return
    for part, path in COUNTS:
        if getattr(usage, part) is None and path[0] in metadata:
            setattr(usage, part, count_of(_at(metadata, path)))


def _at(found: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
