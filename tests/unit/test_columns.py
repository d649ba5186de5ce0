"""The columns against the simple way: the last value of each key in a dict, added up."""

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import reduce

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import astuple

from processor.core.tables import row_bytes
from processor.core.tables.row_sums import NO_SUMS, TOTALS, RowSums, Totals
from processor.core.tables.table_rows import Sums, encode_key, encode_value
from processor.view.limbs import SAFE_BITS
from processor.view.query import CAP, SORTS, Range
from processor.view.view import View
from server.reads.params import parse_users

Key = tuple[int, str, str, str | None, int, str, str]
"""partition, kind, project, user, day or hour, model, environment."""
Row = tuple[int, ...]
Change = tuple[Key, Row | None, bool]
"""A row or a tombstone; True: in the old form."""

SMALL: dict[str, int] = {
    "processor.core.hash_index.FIRST": 4,
    "processor.core.hash_index.MOVED": 1,
    "processor.core.growing_arrays.FIRST": 2,
    "processor.core.growing_arrays.BITS": 2,
    "processor.core.growing_arrays.SIZE": 4,
    "processor.view.first_pages.KEPT": 3,
    "processor.view.first_pages.LARGE": 3,
    "processor.view.first_pages.MOST": 4,
    "processor.view.listing.PIECE": 3,
    "processor.view.view.CHUNK": 7,
    "processor.view.view.SMALL": 0,
}
"""So that a few rows grow everything that grows."""

counts = st.integers(0, 3) | st.sampled_from([2**32 - 1, 2**32])
tokens = st.integers(0, 9) | st.sampled_from([2**SAFE_BITS - 1, 2**SAFE_BITS, 2**53, 2**63 - 1, 2**63, 10**30])
costs = st.integers(0, 9) | st.sampled_from([2**32 - 1, 2**32, CAP - 1, CAP, 2**63 - 1, 2**63, 10**30])
times = st.integers(-5, 5) | st.just(1_776_686_400_000_000)
rows = st.builds(
    lambda offset, requests, errors, inputs, outputs, cached, cost, unpriced, first, last: (
        *(offset, requests, errors, inputs, outputs, cached, cost, unpriced),
        *(min(first, last), max(first, last)),
    ),
    *(st.integers(-1, 9), counts, counts, tokens, tokens, tokens, costs, counts, times, times),
)
keys = st.tuples(
    st.integers(0, 1),
    st.just("user"),
    st.sampled_from(["p1", "p2"]),
    st.sampled_from([None, "a", "b", 'ü",', "日本"]),
    st.integers(0, 1),
    st.sampled_from(["m1", "m2"]),
    st.sampled_from(["e1", "e2"]),
) | st.tuples(
    st.integers(0, 1),
    st.just("hour"),
    st.sampled_from(["p1", "p2"]),
    st.none(),
    st.integers(0, 1),
    st.sampled_from(["m1", "m2"]),
    st.just("e1"),
)
changes = st.tuples(keys, st.none() | rows | rows, st.booleans())


def encoded_key(key: Key) -> bytes:
    partition, kind, project, user, at, model, environment = key
    parts: tuple[object, ...] = (project, user) if kind == "user" else (project,)
    return encode_key(partition, kind, *parts, at, "openai", model, environment)


def encoded(row: Row | None, old_form: bool) -> bytes | None:
    if row is None:
        return None
    return str(list(row)).replace(" ", "").encode() if old_form else encode_value(Sums(b"", *row))


def sums_of(said: Iterable[Row]) -> RowSums:
    """What rows come to, the slow way."""
    found = list(said)
    seen = [row for row in found if row[1]]
    sums = [sum(row[column] for row in found) for column in range(1, 8)]
    first, last = min((row[8] for row in seen), default=0), max((row[9] for row in seen), default=0)
    return RowSums(*[*sums, first, last])


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False])
@given(batches=st.lists(st.lists(changes, max_size=12), max_size=8))
@example(batches=[[((0, "user", "p1", "a", 0, "m1", "e1"), (1, 1, 0, 10**30, 0, 0, 5, 0, 3, 4), False)], [
    ((0, "user", "p1", "a", 0, "m1", "e1"), (2, 2, 0, 1, 0, 0, 5, 0, 3, 4), False)]])  # fmt: skip
@example(batches=[[((0, "user", "p1", user, 0, "m1", "e1"), (1, 1, 0, 1, 0, 0, 2**63 + n, 0, 3, 4), False)
                   for n, user in enumerate(["a", "b", None])]])  # fmt: skip
def test_the_view_equals_the_last_values_added_up(small: bool, batches: list[list[Change]]) -> None:
    with ExitStack() as stack:
        if small:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in SMALL.items():
                patch.setattr(name, value)
        view = View()
        kept: dict[Key, Row] = {}
        for number, batch in enumerate(batches):
            for partition in (0, 1):
                mine = [change for change in batch if change[0][0] == partition]
                progress = (b'[%d,"progress"]' % partition, b"[%d,%d]" % (number, number))
                records = [(encoded_key(key), encoded(row, old)) for key, row, old in mine]
                view.apply(partition, [*records, progress, *records[-1:]])
            for key, row, _ in batch:
                kept.pop(key, None)
                if row is not None:
                    kept[key] = row
            check(view, kept)
            view.tidy()
            check(view, kept)  # the first pages from what is kept of the leaders
        assert view.position == ({0: len(batches) - 1, 1: len(batches) - 1} if batches else {})


def check(view: View, kept: dict[Key, Row]) -> None:
    assert len(view) == len(kept) + len(view.position)
    for project in ("p1", "p2"):
        users = {key: row for key, row in kept.items() if key[1:3] == ("user", project)}
        for sort in SORTS:
            for filters in ({}, {"model": "m1"}, {"environment": "e2"}, {"start": "1970-01-02"}):
                for more in ({}, {"unattributed": "true"}):
                    check_list(view, project, users, {"sort": sort, **filters, **more})
        for user in {key[3] for key in users}:
            mine = {key: row for key, row in users.items() if key[3] == user}
            found = view.user(project, user)
            assert Counter(map(astuple, (sums for _, sums in found))) == Counter(
                astuple(sums_of([row])) for row in mine.values()
            )
            assert reduce(RowSums.merge, (sums for _, sums in found), NO_SUMS) == sums_of(mine.values())
            by_dim = {(dim.at, dim.model, dim.environment) for dim, _ in found}
            assert by_dim == {key[4:] for key in mine}
        hours = {key: row for key, row in kept.items() if key[1:3] == ("hour", project)}
        expected = {at: sums_of(row for key, row in hours.items() if key[4:] == at) for at in {k[4:] for k in hours}}
        assert {(hour, *rest): sums for hour, _, *rest, sums in view.hours(project)} == expected
        of_one = {key: sums for key, sums in expected.items() if key[0] == 1}
        assert {(h, *rest): sums for h, _, *rest, sums in view.hours(project, Range(1, 2))} == of_one
        assert view.user_size(project, "a") == (sum(key[3] == "a" for key in users) or None)
    assert view.user("p3", "a") == []


def check_list(view: View, project: str, users: dict[Key, Row], params: dict[str, str]) -> None:
    chosen = {
        key: row
        for key, row in users.items()
        if params.get("model", key[5]) == key[5]
        and params.get("environment", key[6]) == key[6]
        and ("start" not in params or key[4] >= 1)
        and ("unattributed" not in params or key[3] is None)
    }
    sums = {user: sums_of(row for key, row in chosen.items() if key[3] == user) for user in {key[3] for key in chosen}}
    order = sorted(sums.items(), key=lambda user: (-getattr(user[1], SORTS[params["sort"]]), user[0] or ""))
    totals = Totals(*(sum(row[number] for row in chosen.values()) for number in range(1, 1 + len(TOTALS))))
    listed = []
    cursor: dict[str, str] = {}
    while True:
        query = parse_users(project, {**params, "limit": "2", **cursor})
        dims = [
            dim
            for dim in view.dims(project)
            if query.model in {None, dim.model}
            and query.environment in {None, dim.environment}
            and dim.at in query.days
        ]
        page = view.filtered(query, dims) if query.is_filtered else view.all_time(query)
        assert view.first(query, 1) in (None, page)
        assert (page.totals, page.size) == (totals, len(sums))
        listed += page.users
        if not page.more:
            break
        user, last = page.users[-1]
        cursor = {"cursor": query.cursor((query.value_of(last), user or ""))}
    assert listed == order


def test_nothing_changes_when_one_record_of_a_batch_is_of_another_format() -> None:
    good = encode_key(0, "user", "p", "a", 1, "openai", "m", "e"), encode_value(Sums(b"", 1, 1))
    for bad in (
        (b'[0,"user","p","a","day","openai","m","e"]', good[1]),
        (b'[0,"hour","p","a"]', good[1]),
        (b'[0,"moon",1]', good[1]),
        (b'[1,"user","p","a",1,"openai","m","e"]', good[1]),
        (b"nonsense", good[1]),
        (b'[0,"progress"]', b"[1]"),
        (good[0], row_bytes.MARK * 3),
    ):
        view = View()
        with pytest.raises(ValueError, match=r"row|changelog"):
            view.apply(0, [good, bad])
        assert len(view) == 0
        view.apply(0, [good])
        assert view.all_time(parse_users("p", {})).totals.requests == 1
