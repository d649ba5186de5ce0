"""Names of providers, as the conventions have them, and ours."""

from typing import Final, NamedTuple


class ProviderName(NamedTuple):
    """One of ours, and what was sent."""

    name: str
    raw: str
    """Empty: nothing."""


UNKNOWN: Final = ProviderName("custom", "")


def provider_of(sent: str) -> str:
    """Our name of a provider; `custom` for one that we have none for."""
    name = sent.lower()
    if name == "openai" or (name.startswith(("azure", "az.")) and "openai" in name):
        return "openai"
    if name == "anthropic":
        return name
    return "google" if name.startswith(("gcp.", "google", "vertex", "gemini")) else "custom"
