"""Counts of tokens with one meaning: input includes what was read from and written to a cache, output the reasoning.

Sources differ (docs/reference/otlp-attributes.md). Where the parts are more than the whole, they stood beside it; where
they are not, only the source can say, so those that are known to count beside the whole are in a table.
"""

from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from msgspec import Struct

MAX_TOKENS: Final = 2**53 - 1


class Usage(Struct, gc=False):
    """What a span reports; None: nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    is_normalized: bool = False
    """The whole did not include the parts."""


class Beside(NamedTuple):
    """A source whose parts stand beside the whole."""

    scope: str
    """Of the instrumentation, as a glob."""
    version: str
    """Of the scope, as a glob."""
    provider: str
    """As a glob over what was sent; `*`: any."""
    attribute: str
    """The attribute that its input tokens, or with `reasoning` its output tokens, were read from, as a glob."""
    cache: bool = False
    reasoning: bool = False
    why: str = ""


BESIDE: Final[tuple[Beside, ...]] = (
    Beside(
        "ai",
        "*",
        "*anthropic*",
        "ai.usage.promptTokens",
        cache=True,
        why="Vercel AI SDK 4 passes on what Anthropic counts",
    ),
    Beside(
        "ai",
        "*",
        "*anthropic*",
        "ai.usage.inputTokens",
        cache=True,
        why="so does version 5; what has `ai.usage.inputTokenDetails` includes them",
    ),
    Beside(
        "opentelemetry.instrumentation.google_genai",
        "0.*",
        "*",
        "gen_ai.usage.output_tokens",
        reasoning=True,
        why="its output tokens are the candidates', without the thoughts",
    ),
)
"""In the reference."""

INCLUDES: Final = "ai.usage.inputTokenDetails."
"""An attribute that begins so is of a version of the Vercel AI SDK whose input includes the parts."""


class Source(NamedTuple):
    """Where a usage is from."""

    scope: str
    version: str
    provider: str
    input_name: str
    """The attribute of its input tokens; empty: none."""
    output_name: str
    cached_name: str = ""


def count_of(value: Any) -> int | None:
    """A count of tokens; None for anything that is none."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, float) and value.is_integer():
        return count_of(int(value))
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_TOKENS)):
        return count_of(int(value))
    return None


def normalize(usage: Usage, source: Source) -> None:
    """Make the whole include its parts, and mark the usage where it did not."""
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    parts, whole = cached + written, usage.input_tokens
    if parts and whole is not None and (parts > whole or _stands_beside(source, "cache")):
        usage.input_tokens = min(whole + parts, MAX_TOKENS)
        usage.is_normalized = True
    thoughts, whole = usage.reasoning_tokens or 0, usage.output_tokens
    if thoughts and whole is not None and (thoughts > whole or _stands_beside(source, "reasoning")):
        usage.output_tokens = min(whole + thoughts, MAX_TOKENS)
        usage.is_normalized = True


def _stands_beside(source: Source, part: str) -> bool:
    if source.cached_name.startswith(INCLUDES):
        return False
    name = source.input_name if part == "cache" else source.output_name
    return any(
        getattr(row, part)
        and fnmatchcase(source.scope, row.scope)
        and fnmatchcase(source.version, row.version)
        and fnmatchcase(source.provider.lower(), row.provider)
        and fnmatchcase(name, row.attribute)
        for row in BESIDE
    )
