"""Rows of users in columns: what they say is what Python's integers add up to, and blocks end when their rows moved."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events.message import build_blocks, opened
from processor.core.events.source import Source
from processor.core.tables import row_block, row_bytes, row_dtype, table_rows
from processor.core.tables.apply import Changes, Tables
from processor.core.tables.numbered_rows import Dead
from processor.core.tables.user_rows import MAX_BLOCK
from tests.support.dict_index import DictIndex
from tests.support.examples import examples
from tests.support.tables import NOON, Usage, by_key, columns

edges = st.sampled_from([0, 1, 2**61, 2**62 - 1, 2**62, -(2**62), 2**63 - 1, -(2**63), 10**18])


def _usage(user: str | None, numbers: tuple[int, int, int, int], error: bool) -> Usage:
    inputs, outputs, cached, cost = numbers
    return Usage(0, user, input_tokens=inputs, output_tokens=outputs, cached_tokens=cached, cost=cost, error=error)


usages = st.builds(_usage, st.sampled_from([None, "a", "b"]), st.tuples(edges, edges, edges, edges), st.booleans())


def apply(found: Tables, offset: int, events: Sequence[Usage]) -> None:
    source = Source("org", "p", "key", NOON, "json", "partial")
    message = opened([build_blocks(source, columns(events), 1)[0]])
    found.apply(offset, message, found.prepare(message))


def taken(found: Tables, *, packs: bool = True) -> Changes:
    changes = found.drain_changes(packs=packs)
    assert changes is not None
    return changes


def wrote(changes: Changes, first: int) -> list[Dead]:
    return changes.wrote(range(first, first + len(changes.records)))


@examples(100)
@given(st.lists(st.lists(usages, min_size=1, max_size=4), min_size=1, max_size=8), st.booleans())
def test_sums_are_exact_at_the_edges_and_through_the_changelog(batches: list[list[Usage]], packs: bool) -> None:
    found, index = Tables(0, b"salt", DictIndex()), 0
    changelog: list[tuple[bytes, bytes | None]] = []
    truth: dict[str | None, list[int]] = defaultdict(lambda: [0] * 6)
    for offset, batch in enumerate(batches):
        fresh = [usage._replace(id=(index := index + 1)) for usage in batch]
        apply(found, offset, fresh)
        for usage in fresh:
            tokens = usage.input_tokens, usage.output_tokens, usage.cached_tokens
            row = truth[usage.user]
            truth[usage.user] = [a + b for a, b in zip(row, (1, usage.error, *tokens, usage.cost), strict=True)]
        changes = taken(found, packs=packs)
        changelog += changes.records
        again = Tables(0, b"salt", DictIndex())
        again.restore_all((key, value, number) for number, (key, value) in enumerate(changelog))
        for each in (found, again):
            assert {place[1]: row.value()[1:7] for place, row in by_key(each.users).items()} == truth
        found = again if offset % 2 else found


def test_a_block_ends_when_all_of_its_rows_were_written_again() -> None:
    found = Tables(0, b"salt", DictIndex())
    apply(found, 0, [Usage(n, user=f"u{n}") for n in range(10)])
    assert Dead(0, 10) not in wrote(taken(found), 0)
    apply(found, 1, [Usage(100 + n, user=f"u{n}") for n in range(9)])
    assert Dead(0, 10) not in wrote(taken(found), 10)
    apply(found, 2, [Usage(200, user="u9")])
    dead = wrote(taken(found), 20)
    assert Dead(0, 10) in dead
    assert not any(each.offset == 10 and each.rows > 1 for each in dead)


def test_what_keeps_a_block_is_written_anew() -> None:
    found = Tables(0, b"salt", DictIndex())
    for offset in range(5):  # each block keeps one row that nobody touches again
        apply(
            found,
            offset,
            [Usage(100 * offset + n, user=f"u{n}") for n in range(9)] + [Usage(offset + 50, f"x{offset}")],
        )
        wrote(taken(found), 100 * offset)
    assert found.rewrite(10**9, 2) == 2
    assert found.rewrite(0, 10**9) == 0
    dead = wrote(taken(found), 1000)
    assert {Dead(0, 10), Dead(100, 10)} <= set(dead)
    before = {place: row.value() for place, row in by_key(found.users).items()}
    assert found.rewrite(10**9, 10**9) == 2, "the newest block has no dead row, the one of the rewritten has none"
    changes = taken(found)
    assert {(200, 10), (300, 10)} <= set(wrote(changes, 2000))
    assert {place: row.value() for place, row in by_key(found.users).items()} == before


def test_a_large_flush_is_several_blocks() -> None:
    found = Tables(0, b"salt", DictIndex())
    for start in range(0, 2 * MAX_BLOCK + 10, 1000):
        apply(found, start, [Usage(start + n, user=f"u{start + n}") for n in range(1000)])
    changes = taken(found)
    records: list[Any] = changes.records
    sizes = [len(row_block.decode(value)) for key, value in records if key == row_block.key_of(0)]
    assert sizes[:2] == [MAX_BLOCK] * 2
    assert sum(sizes) == len(found.users) == 17_000
    wrote(changes, 7)
    assert {row.changelog for row in by_key(found.users).values()} == set(range(7, 7 + len(sizes)))
    assert records[-1][0] == table_rows.encode_key(0, "progress")
    assert len(changes) == len(found.users) + len(records) - len(sizes)


def test_values_are_those_of_the_moment_they_were_taken() -> None:
    found = Tables(0, b"salt", DictIndex())
    apply(found, 0, [Usage(1)])
    changes = taken(found, packs=False)
    apply(found, 1, [Usage(2)])
    [(_, value)] = [pair for pair in changes.records if b'"user"' in pair[0]]
    assert value is not None
    assert row_bytes.unpack(value)[1] == 1
    assert np.frombuffer(value, row_dtype.DTYPE)["offset"] == 0
