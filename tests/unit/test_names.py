import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from processor.view.names import Names

texts = st.text(st.sampled_from("ab\0ü日😀"), max_size=3) | st.builds(
    lambda head, tail: head * 9 + tail, st.sampled_from(["abcd", "aaaa", "日"]), st.text("ab\0", max_size=3)
)


@given(ids=st.lists(texts, unique=True, max_size=20), count=st.integers(0, 20), bound=texts, step=st.integers(1, 3))
@example(ids=["a\0", "a", ""], count=1, bound="a", step=1)
def test_names_are_found_and_compared_as_text_is(ids: list[str], count: int, bound: str, step: int) -> None:
    names = Names()
    half = len(ids) // 2
    names.add([text.encode() for text in ids[:half]])
    names.add([text.encode() for text in ids[half:]])
    assert len(names) == len(ids)
    numbers = np.arange(0, len(ids), step)
    mine = ids[::step]
    assert names.get(numbers.tolist()) == [text.encode() for text in mine]
    assert sorted(ids[number] for number in names.first(numbers, count).tolist()) == sorted(mine)[:count]
    assert sorted(ids[number] for number in names.after(numbers, bound.encode()).tolist()) == sorted(
        text for text in mine if text > bound
    )
