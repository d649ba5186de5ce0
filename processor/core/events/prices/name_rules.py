"""Rules by which a price list knows the names of models and providers.

A rule is a text whose first character says how it is read (`=` equal to, `^` begins with, `$` ends with, `*` contains,
`~` a regular expression that is found in the name, `?` a glob), or a list of rules after `|` (any of them) or `&` (all
of them). Names and rules are in lower case, regular expressions aside.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

Rule = str | list[Any]
Test = Callable[[str], bool]


def test_of(rule: Rule) -> Test:
    """Whether a rule holds for a name in lower case. Raises `ValueError` for what is no rule."""
    if isinstance(rule, str):
        kind, text = rule[:1], rule[1:]
        if kind not in _TESTS:
            raise ValueError(f"not a rule for names: {rule!r}")
        try:
            return _TESTS[kind](text)
        except re.error as error:
            raise ValueError(f"not a rule for names: {rule!r}: {error}") from None
    kind, *rules = rule
    if kind not in {"|", "&"}:
        raise ValueError(f"not a rule for names: {rule!r}")
    tests = list(map(test_of, rules))
    if kind == "|":
        return lambda name: any(test(name) for test in tests)
    return lambda name: all(test(name) for test in tests)


def split(rule: Rule) -> tuple[list[str], list[Rule]]:
    """The names that a rule is equal to, which a dictionary finds, and what is left: any of both makes it hold."""
    names: list[str] = []
    others: list[Rule] = []
    for each in _alternatives(rule):
        if isinstance(each, str) and each[:1] == "=":
            names.append(each[1:])
        else:
            others.append(each)
    return names, others


def _alternatives(rule: Rule) -> Iterator[Rule]:
    if isinstance(rule, list) and rule[0] == "|":
        for each in rule[1:]:
            yield from _alternatives(each)
    else:
        yield rule


def _glob(text: str) -> Test:
    found = re.compile(fnmatch.translate(text)).match
    return lambda name: found(name) is not None


def _regex(text: str) -> Test:
    found = re.compile(text).search
    return lambda name: found(name) is not None


_TESTS: Final[dict[str, Callable[[str], Test]]] = {
    "=": lambda text: text.__eq__,
    "^": lambda text: lambda name: name.startswith(text),
    "$": lambda text: lambda name: name.endswith(text),
    "*": lambda text: lambda name: text in name,
    "~": _regex,
    "?": _glob,
}
