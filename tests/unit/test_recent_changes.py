from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import NEVER, Sums, encode_key, encode_value
from processor.view.recent_changes import RecentChanges, changed_between
from processor.view.view import View
from tests.support.examples import examples
from tests.support.tables import NOON, Usage, Worker


def numbers(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, np.int64)


def names(view: View, project: str, users: Sequence[int]) -> list[str | None]:
    return sorted((user for user, _ in view.people(project, list(users))), key=lambda user: user or "")


def recent(view: View, project: str, since: Mapping[int, int]) -> list[str | None]:
    _, changed = view.changes(since)
    assert changed is not None
    number = view.number_of(project)
    return [] if number is None else names(view, project, changed.get(number, numbers()).tolist())


def test_the_short_memory_knows_what_it_has_forgotten() -> None:
    trail = RecentChanges(kept=3)
    trail.marks.extend(10)
    trail.note(0, numbers(0, 1), numbers(5, 6), numbers(1, 2), numbers(1, 1))
    assert trail.steps_since({}) is not None
    trail.note(1, numbers(2, 3), numbers(1, 2), numbers(3, 0), numbers(1, 0))
    assert len(trail.steps_since({0: 5}) or []) == 2
    assert len(trail.steps_since({0: 6}) or []) == 1, "a batch without anything newer is of no interest"
    trail.note(1, numbers(4), numbers(3), numbers(4), numbers(2))
    assert trail.steps_since({0: 5}) is None
    steps = trail.steps_since({0: 6})
    assert steps is not None
    found = changed_between(steps, {0: 6}, {0: 6, 1: 3})
    assert {home: users.tolist() for home, users in found.items()} == {1: [3], 2: [4]}
    assert changed_between(steps, {0: 6}, {0: 6, 1: 0}) == {}, "what is not sure to be whole yet has to wait"


def test_marks_are_compared_by_their_own_partition() -> None:
    trail = RecentChanges()
    trail.marks.extend(4)
    trail.note(2, numbers(0, 1), numbers(7, 8), numbers(1, 2), numbers(1, 1))
    trail.note(0, numbers(2), numbers(0), numbers(3), numbers(1))
    everything = numbers(0, 1, 2, 3)
    assert trail.beyond(everything, {}).tolist() == [0, 1, 2], "a row nothing was applied to is beyond nothing"
    assert trail.beyond(everything, {2: 7, 0: 0}).tolist() == [1]
    assert trail.beyond(everything, {0: 0, 1: 99}).tolist() == [0, 1]
    assert trail.beyond(everything, {2: 99}).tolist() == [2]


def test_a_change_of_any_kind_is_found() -> None:
    view = View()
    keys = {user: encode_key(0, "user", "p", user, 1, "openai", "m", "e") for user in ("plain", "wide", "gone", "same")}

    def record(user: str, offset: int, tokens: int = 1) -> tuple[bytes, bytes]:
        return keys[user], encode_value(Sums(keys[user], offset, 1, input_tokens=tokens))

    view.apply(0, [record("plain", 3), record("wide", 4), record("gone", 4), record("same", 4)])
    view.apply(0, [(b'[0,"progress"]', b"[4,1]")])
    assert view.changed("p", {0: 4}) == []
    assert recent(view, "p", {0: 4}) == []
    view.apply(0, [record("plain", 6), record("wide", 5, 2**70), (keys["gone"], None)])
    assert recent(view, "p", {0: 4}) == [], "the progress has not come yet"
    view.apply(0, [(b'[0,"progress"]', b"[6,1]")])
    for found in (names(view, "p", view.changed("p", {0: 4})), recent(view, "p", {0: 4})):
        assert found == ["gone", "plain", "wide"]
    assert names(view, "p", view.changed("p", {0: 5})) == ["plain"]
    assert recent(view, "p", {0: 5}) == ["plain"]
    assert view.changed("p", {0: 6}) == []
    known = view.find("p", keys)
    assert set(known) == {"plain", "wide", "same"}, "one without rows is nobody"
    assert names(view, "p", view.changed("p", {0: 4}, known.values())) == ["plain", "wide"]
    assert [name for _, name in view.next_people("p", None, 10)] == ["plain", "same", "wide"]
    (wide,) = view.people("p", [known["wide"]])
    assert wide[1].input_tokens == 2**70


def test_people_come_in_the_order_of_their_ids() -> None:
    view = View()
    users = ["b", "a", None, "ä", "aa", "日本", "a\0"]
    view.apply(
        0,
        [
            (key, encode_value(Sums(key, 1, 1)))
            for key in (encode_key(0, "user", "p", user, 1, "openai", "m", "e") for user in users)
        ],
    )
    order = ["", "a", "a\0", "aa", "b", "ä", "日本"]
    assert [name for _, name in view.next_people("p", None, 10)] == order
    for place in range(len(order)):
        assert [name for _, name in view.next_people("p", order[place], 3)] == order[place + 1 : place + 4]
    assert [name for _, name in view.next_people("p", None, 2)] == order[:2]
    assert view.next_people("nothing", None, 2) == []
    numbered = [number for number, _ in view.next_people("p", None, 10)]
    assert [user or "" for user, _ in view.people("p", numbered)] == order


Flush = tuple[list[Usage], str, bool, int]

flushes = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.integers(0, 60),
                st.sampled_from([None, "u1", "u2", "u3", "u4"]),
                st.integers(NOON - 10**11, NOON),
                st.sampled_from(["m1", "m2"]),
                st.sampled_from([1, 2**53 - 1]),
            ).map(lambda of: Usage(of[0], of[1], of[2], model=of[3], input_tokens=of[4])),
            min_size=1,
            max_size=4,
        ),
        st.sampled_from(["p1", "p2"]),
        st.booleans(),  # flush
        st.integers(0, 3),  # how many records of what is there are seen at once, 0: all
    ),
    max_size=12,
)


@examples(30)
@given(flushes, st.integers(0, 40))
def test_changes_since_any_position_make_up_the_table(
    steps: list[tuple[list[Usage], str, bool, int]], kept: int
) -> None:
    """Whoever has the table as it was at a position, and takes in who changed since, has the table as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processor.view.view.RecentChanges", partial(RecentChanges, kept))
        worker, view = Worker(2), View()

    def table(project: str) -> dict[str | None, RowSums]:
        numbered = [number for number, _ in view.next_people(project, None, 100)]
        return dict(view.people(project, numbered))

    tables: list[tuple[dict[int, int], dict[str, dict[str | None, RowSums]]]] = [({}, {"p1": {}, "p2": {}})]
    for events, project, is_flushed, piece in steps:
        worker.send(events, project=project)
        if not is_flushed:
            continue
        for partition, records in enumerate(worker.work_all()):
            for start in range(0, len(records), piece or len(records) or 1):
                view.apply(partition, records[start : start + (piece or len(records))])
                tables.append((view.held(), {name: table(name) for name in ("p1", "p2")}))
    for position, then in tables:
        for project in ("p1", "p2"):
            now = table(project)
            full = {**then[project], **dict(view.people(project, view.changed(project, position)))}
            assert full == now
            _, changed = view.changes(position)
            number = view.number_of(project)
            if changed is not None and number is not None:
                users = changed.get(number, numbers()).tolist()
                assert {**then[project], **dict(view.people(project, users))} == now
    assert view.changed("p1", view.held()) == []
    assert all(offset > NEVER for offset in view.held().values())
