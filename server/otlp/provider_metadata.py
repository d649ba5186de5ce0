"""Counts of tokens that the Vercel AI SDK has only in `ai.response.providerMetadata`.

What was written to a cache for an hour no version of it has anywhere else. Version 4 has nothing but input and output
tokens among its attributes, and version 5 no more than that of calls that are not streamed; what a provider's own
package passes on differs from provider to provider, and between the versions.
"""

from typing import Any, Final, Literal

import msgspec

from server.otlp.tokens import SpanUsage, count_of

Part = Literal["cached_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"]

COUNTS: Final[tuple[tuple[Part, tuple[str, ...]], ...]] = (
    ("cached_tokens", ("anthropic", "cacheReadInputTokens")),
    ("cached_tokens", ("anthropic", "usage", "cache_read_input_tokens")),
    ("cached_tokens", ("bedrock", "usage", "cacheReadInputTokens")),
    ("cached_tokens", ("google", "usageMetadata", "cachedContentTokenCount")),
    ("cached_tokens", ("openai", "cachedPromptTokens")),
    ("cache_write_tokens", ("anthropic", "cacheCreationInputTokens")),
    ("cache_write_tokens", ("bedrock", "usage", "cacheWriteInputTokens")),
    ("cache_write_1h_tokens", ("anthropic", "usage", "cache_creation", "ephemeral_1h_input_tokens")),
    ("reasoning_tokens", ("google", "usageMetadata", "thoughtsTokenCount")),
    ("reasoning_tokens", ("openai", "reasoningTokens")),
)
"""Where a count stands in the object; the first that is there counts. In the reference."""

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def add_counts(usage: SpanUsage, value: Any, *, has_details: bool) -> None:
    """Give a usage the counts that it lacks and that the attribute's value has; `has_details`: its attributes have all
    counts but the one that they never have."""
    try:
        metadata = _decode_object(value)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        return
    for part, path in COUNTS:
        if has_details and part != "cache_write_1h_tokens":
            continue
        if getattr(usage, part) is None and path[0] in metadata:
            setattr(usage, part, count_of(_at(metadata, path)))


def _at(found: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
