"""Counts of tokens with one meaning: input includes what was read from and written to a cache, output the reasoning.

Sources differ (docs/reference/otlp-attributes.md). Where the parts are more than the whole, they stood beside it; where
they are not, only the source can say, so those that are known to count beside the whole are in a table.
"""

from fnmatch import fnmatchcase
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

MAX_TOKENS: Final = 2**53 - 1


class SpanUsage(Struct, gc=False):
    """What a span reports; None: nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """Those of `cache_write_tokens` that are kept for an hour."""
    is_normalized: bool = False
    """The whole did not include the parts."""


class Beside(NamedTuple):
    """A source whose parts stand beside the whole."""

    scope: str
    """Of the instrumentation, as a glob."""
    provider: str
    """As a glob over what was sent, in lower case."""
    part: Literal["cache", "reasoning"]
    """What is not within the input tokens, or within the output tokens."""
    why: str


BESIDE: Final[tuple[Beside, ...]] = (
    Beside("ai", "*anthropic*", "cache", "Vercel AI SDK 4 and 5 pass on what Anthropic counts"),
    Beside("ai", "*bedrock*", "cache", "Vercel AI SDK 4 and 5 pass on what Amazon Bedrock counts"),
    Beside("ai", "*google*", "reasoning", "Vercel AI SDK 4 and 5 pass on Gemini's candidates, without the thoughts"),
)
"""In the reference. What has `DETAILS` among its attributes is of a later version, which includes both."""

DETAILS: Final = "ai.usage.inputTokenDetails."
"""How attributes begin that only a version of the Vercel AI SDK sends whose wholes include the parts."""


class UsageSource(NamedTuple):
    """Where a usage is from."""

    scope: str
    provider: str
    has_details: bool
    """`DETAILS` are among its attributes."""


def count_of(value: Any) -> int | None:
    """A count of tokens; None for anything that is none."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, float) and value.is_integer():
        return count_of(int(value))
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_TOKENS)):
        return count_of(int(value))
    return None


def normalize(usage: SpanUsage, source: UsageSource) -> None:
    """Make the whole include its parts, and mark the usage where it did not."""
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    parts, whole = cached + written, usage.input_tokens
    if parts and whole is not None and (parts > whole or stands_beside(source, "cache")):
        usage.input_tokens = min(whole + parts, MAX_TOKENS)
        usage.is_normalized = True
    thoughts, whole = usage.reasoning_tokens or 0, usage.output_tokens
    if thoughts and whole is not None and (thoughts > whole or stands_beside(source, "reasoning")):
        usage.output_tokens = min(whole + thoughts, MAX_TOKENS)
        usage.is_normalized = True


def stands_beside(source: UsageSource, part: Literal["cache", "reasoning"]) -> bool:
    """Whether a source's parts are not within the whole, by what is known of it."""
    if source.has_details:
        return False
    return any(
        row.part == part and fnmatchcase(source.scope, row.scope) and fnmatchcase(source.provider.lower(), row.provider)
        for row in BESIDE
    )
