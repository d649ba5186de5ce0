"""The spans of one request among each other: parents of those that are kept, and calls that repeat those below them."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from server.otlp.kinds import Role
from server.otlp.spans import IS_REMOTE

MAX_OUTER: Final = 32
"""Calls around a call that are looked at, from the innermost."""


class Node(Struct, gc=False):
    """What of a span the others depend on."""

    key: bytes
    """Trace id and span id."""
    parent: bytes
    """The same of its parent; empty: it has none."""
    role: Role
    is_kept: bool
    flags: int
    input_tokens: int | None = None
    output_tokens: int | None = None


class Tree:
    """The spans of a request. Of several with the same ids the first is the parent of others."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._places: dict[bytes, int] = {}
        for place, node in enumerate(nodes):
            self._places.setdefault(node.key, place)

    def parents(self) -> list[bytes]:
        """The parent of each span as it is kept: the nearest kept ancestor in the request; empty for a root, which is
        also what hangs on a dropped one that is a root or comes from another service. Ends what is outside of the
        request, it is that. Linear."""
        nodes, places = self._nodes, self._places
        found: list[bytes | None] = [None] * len(nodes)
        for start, node in enumerate(nodes):
            above = places.get(node.parent) if node.parent else None
            if above is None:  # nearly always
                found[start] = b"" if node.flags & IS_REMOTE else node.parent
                continue
            if nodes[above].is_kept:
                found[start] = node.parent
                continue
            way, answer, seen = [start], b"", {start}
            while True:
                if above in seen:  # a cycle of dropped spans
                    answer = b""
                    break
                known = found[above]
                if known is not None:
                    answer = known
                    break
                way.append(above)
                seen.add(above)
                dropped = nodes[above]
                following = places.get(dropped.parent) if dropped.parent else None
                if following is None:
                    answer = b"" if dropped.flags & IS_REMOTE else dropped.parent
                    break
                if nodes[following].is_kept:
                    answer = dropped.parent
                    break
                above = following
            for place in way:
                found[place] = answer
        return [parent or b"" for parent in found]

    def wrappers(self) -> set[int]:
        """The places of calls that only repeat one below them: no agent, tool or retrieval is in between, and the
        tokens they report are none, or at least those of that one."""
        nodes = self._nodes
        calls = [place for place, node in enumerate(nodes) if node.role == "call"]
        found: set[int] = set()
        if len(calls) < 2:
            return found
        outer: dict[int, int | None] = {}
        for call in calls:
            around = self._outer(call, outer)
            for _ in range(MAX_OUTER):
                if around is None or around == call:
                    break
                if around not in found and _repeats(nodes[around], nodes[call]):
                    found.add(around)
                around = self._outer(around, outer)
        return found

    def _outer(self, start: int, known: dict[int, int | None]) -> int | None:
        """The nearest call around a span with no barrier in between; remembered for all spans on the way."""
        if start in known:
            return known[start]
        nodes, places = self._nodes, self._places
        way: list[int] = []
        passed: set[int] = set()
        at: int | None = start
        answer: int | None = None
        while at is not None:
            if at in known:
                answer = known[at]
                break
            if at in passed:  # a cycle
                break
            way.append(at)
            passed.add(at)
            parent = nodes[at].parent
            above = places.get(parent) if parent else None
            if above is None or nodes[above].role == "barrier":
                break
            if nodes[above].role == "call":
                answer = above
                break
            at = above
        for place in way:
            known[place] = answer
        return answer


def _repeats(outer: Node, inner: Node) -> bool:
    return repeats(outer.input_tokens, outer.output_tokens, inner.input_tokens, inner.output_tokens)


def repeats(
    outer_input: int | None, outer_output: int | None, inner_input: int | None, inner_output: int | None
) -> bool:
    """Whether the tokens that an outer call reports are none, or at least those of an inner one; what it does not
    report is not compared."""
    return (outer_input is None or outer_input >= (inner_input or 0)) and (
        outer_output is None or outer_output >= (inner_output or 0)
    )
