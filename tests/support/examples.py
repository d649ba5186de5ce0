"""How many examples hypothesis tries: the profile that HYPOTHESIS_PROFILE names.

`quick` is what `make test-quick` uses, `ci` what `.ci/run` does, which tries the properties on a second Python besides,
`thorough` what `make properties` does. With CI set, examples are the same each time.
"""

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

from hypothesis import settings

VARIABLE: Final = "HYPOTHESIS_PROFILE"

EXAMPLES: Final = {"quick": 10, "ci": 25, "default": 50, "thorough": 1000}
"""Profile -> examples of a test that says nothing else."""

F = TypeVar("F", bound=Callable[..., Any])


def chosen() -> str:
    """The profile that the environment names."""
    return os.environ.get(VARIABLE, "default")


def load() -> None:
    """Register the profiles and load the chosen one. Raises `KeyError` for one that does not exist.

    A shared machine is slow now and then: a test that hangs is caught by its timeout, not by hypothesis' deadline.
    """
    ci: dict[str, Any] = {"derandomize": True, "print_blob": True} if os.environ.get("CI") else {}
    for name, count in EXAMPLES.items():
        settings.register_profile(name, deadline=None, max_examples=count, **ci)
    settings.load_profile(chosen())


def examples(count: int, **more: Any) -> Callable[[F], F]:
    """`settings` for a test that needs more or fewer examples than others: `count` in the profile `default`."""
    decorator: Callable[[F], F] = settings(max_examples=tries(count), **more)
    return decorator


def tries(count: int, least: int = 1) -> int:
    """Return how many seeds or turns a test of its own chance takes: `count` in the profile `default`."""
    return max(least, count * EXAMPLES[chosen()] // EXAMPLES["default"])
