"""What the compiled kernel does for tables, piece by piece, and that it refuses arrays that do not fit together."""

import random
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from processor.core.events import compiled_rows
from processor.core.events.columns import ROW, Dim
from processor.core.events.compiled_rows import PackedDims, PackedUsers
from processor.core.hash_index import hashes_of, name_hashes
from processor.core.kernel.loaded import RUNNING, kernel
from processor.core.tables import row_dtype
from processor.core.tables.user_places import user_places
from tests.support.pure import pure

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")

encode = msgspec.json.Encoder().encode
pack = msgspec.msgpack.Encoder().encode
NAMES = [None, "", "a", "ü", "\U0001f600", 'q"', "back\\slash", "\n", "\x7f", "x" * 240, "y" * 241, "z" * 1000]
MARK = np.dtype([("changelog", "<i8"), ("dirty", "<i4"), ("_", "<i4")])


def test_hashes_are_those_of_the_library() -> None:
    assert kernel is not None
    rng = random.Random(1)
    for size in range(300):
        key, seed = rng.randbytes(size), rng.getrandbits(64)
        found = kernel.key_hashes([key], seed, xxhash.xxh3_128_digest)
        assert bytes(found) == xxhash.xxh3_128_digest(key, seed)
    texts = [b"" if name is None else name.encode() for name in NAMES]
    assert name_hashes(NAMES).tolist() == hashes_of(NAMES, texts).tolist()
    with pytest.raises(UnicodeEncodeError):
        name_hashes(["\ud800"])


def test_keys_of_rows_are_those_of_msgspec() -> None:
    assert kernel is not None
    every = [*NAMES, *(chr(code) for code in range(0x800))]
    texts, lengths = kernel.name_texts(every, encode)
    assert bytes(texts) == b"".join(map(encode, every))
    assert np.frombuffer(lengths, np.int64).tolist() == [len(encode(name)) for name in every]
    with pytest.raises(UnicodeEncodeError):
        kernel.name_texts(["a", "\ud800"], encode)

    groups = (np.arange(len(every)) % 2).astype(np.int32)
    bounds = np.append(0, np.cumsum(np.frombuffer(lengths, np.int64)))
    rows = np.random.default_rng(1).permutation(np.arange(len(every)))
    ways = (b"a%b", b"bcd%bef")
    found = kernel.row_keys([b"a", b"bcd"], [b"", b"ef"], groups, bounds, texts, rows)
    assert found == [ways[row % 2] % encode(every[row]) for row in rows.tolist()]


@pytest.mark.parametrize(
    ("starts", "groups", "bounds", "rows"),
    [
        ([b""], [0, 0], [0, 1, 2], [0]),
        ([b"", b""], [0, 2], [0, 1, 2], [1]),
        ([b"", b""], [0, -1], [0, 1, 2], [1]),
        ([b"", b""], [0, 1], [0, 1], [0]),
        ([b"", b""], [0, 1], [0, 1, 3], [1]),
        ([b"", b""], [0, 1], [0, 2, 1], [1]),
        ([b"", b""], [0, 1], [-1, 1, 2], [0]),
        ([b"", b""], [0, 1], [0, 1, 2], [2]),
        ([b"", b""], [0, 1], [0, 1, 2], [-1]),
    ],
)
def test_keys_of_rows_that_are_not_there(
    starts: list[bytes], groups: list[int], bounds: list[int], rows: list[int]
) -> None:
    assert kernel is not None
    with pytest.raises(ValueError, match=r"group|array|name"):
        kernel.row_keys(starts, [b"", b""], np.array(groups, np.int32), np.array(bounds), b"ab", np.array(rows))


def key(*parts: object) -> bytes:
    return encode([3, "user", *parts])


@pytest.mark.parametrize("odd", [None, 'q"', "\n", "ü"])
def test_places_of_rows_are_read_as_one_by_one(odd: str | None) -> None:
    users = [*NAMES[:5], odd, *(f"u{number}" for number in range(100))]
    keys = [key("p" if n % 3 else "ö", user, n % 5, "openai", f"m{n % 7}", "e") for n, user in enumerate(users)]
    found = user_places(3, keys)
    with pure():
        expected = user_places(3, keys)
    assert (found.groups, found.codes.tolist(), found.users) == (
        expected.groups,
        expected.codes.tolist(),
        expected.users,
    )
    assert len(found.groups) == 70


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b'[3,"user",',
        b'[3,"user","p"',
        b'[3,"user","p",',
        b'[3,"user","p","u"',
        b'[3,"user","p","u",1]',
        b'[3,"user","p",null,1,"o","m","e"],[3,"user","p",null,1,"o","m","e"]',
        b'[3,"user","p","\xff",1,"o","m","e"]',
        b'[3,"user","p\xc3',
        b'[3,"user","p","u",1,"o","m","e",1]',
    ],
)
def test_keys_of_another_form_are_refused_by_both(wrong: bytes) -> None:
    for keys in ([wrong], [key("p", "u", 1, "o", "m", "e"), wrong]):
        with pytest.raises(ValueError, match=r"not a row of the changelog|utf-8"):
            user_places(3, keys)
        with pure(), pytest.raises(ValueError, match=r"not a row of the changelog|utf-8"):
            user_places(3, keys)


def test_keys_with_other_blanks_are_of_the_same_group() -> None:
    found = user_places(3, [key("p", "u", 1, "o", "m", "e"), b'[3,"user","p","v", 1,"o","m","e"]'])
    assert found.groups == [("p", 1, "o", "m", "e")]
    assert found.codes.tolist() == [0, 0]


def test_keys_are_alike_or_not() -> None:
    assert kernel is not None
    rng = np.random.default_rng(1)
    for count in (0, 1, 2, 3000):
        keys = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
        assert kernel.distinct(keys)
        if count:
            assert not kernel.distinct(np.concatenate([keys, keys[-1:]]))


def sums() -> list[Any]:
    """Arguments of `add_sums` for two events of two rows."""
    events = np.zeros(2, ROW)
    events["input"], events["at"] = 5, 7
    rows, offsets, errors = np.array([0, 1]), np.array([3, 3]), np.zeros(2, np.bool_)
    values, marks = np.zeros(2, row_dtype.DTYPE), np.zeros(2, MARK)
    return [[values], [marks], 4, rows, offsets, events, errors, 2**62, 2**31]


def test_sums_are_added_to_rows_that_are_there_only() -> None:
    assert kernel is not None
    args = sums()
    touched, over, came = kernel.add_sums(*args)
    assert (np.frombuffer(touched, np.int64).tolist(), over, came) == ([0, 1], b"", 2)
    assert args[0][0]["input_tokens"].tolist() == [5, 5]
    assert args[0][0]["first_seen"].tolist() == args[0][0]["last_seen"].tolist() == [7, 7]
    assert args[1][0]["dirty"].tolist() == [1, 1]
    before = args[0][0].copy()
    assert kernel.add_sums(*args) is None  # the rows contain the message
    for place, wrong in (
        (0, [before[:1]]),
        (0, []),
        (0, [before.view("V8")[:1]]),
        (1, [args[1][0][:1]]),
        (3, np.array([0, 2])),
        (3, np.array([-1, 1])),
        (3, np.array([0, 1 << 40])),
        (4, np.array([9])),
        (5, args[5][:1]),
        (6, args[6][:1]),
    ):
        with pytest.raises(ValueError, match=r"array|row"):
            kernel.add_sums(*args[:place], wrong, *args[place + 1 :])
        assert (args[0][0] == before).all()


def test_latencies_are_counted_on_pages_that_are_there_only() -> None:
    assert kernel is not None
    held, pages, counts = np.full(2, -1), np.full(32, -1, np.int32), np.zeros(64, np.int64)
    marks, rows, offsets = np.zeros(2, MARK), np.array([0, 1, 1]), np.array([3, 3, 3])
    args: list[Any] = [[held], [pages], [counts], [marks], 6, 4, rows, offsets, np.array([0, 17, 255], np.uint8), -1]
    touched, came, missing = kernel.count_latencies(*args)
    assert (touched, came, np.frombuffer(missing, np.int64).tolist()) == (b"", 0, [17, 31])
    pages[17], pages[31] = 1, 3
    touched, came, missing = kernel.count_latencies(*args)
    assert (np.frombuffer(touched, np.int64).tolist(), came, missing) == ([1], 1, b"")
    assert np.flatnonzero(counts).tolist() == [17, 63]
    assert kernel.count_latencies(*args) is None
    offsets += 1
    pages[31] = 4
    for place, wrong in ((0, []), (6, rows + 1), (6, rows - 2), (6, rows[:1]), (8, args[8][:1]), (5, 0), (5, 8)):
        with pytest.raises(ValueError, match=r"array|row|page"):
            kernel.count_latencies(*args[:place], wrong, *args[place + 1 :])


def test_ids_are_inserted_within_their_segment_only() -> None:
    assert kernel is not None
    words, digests, offsets = np.zeros(8 + 56 * 2, np.uint32), np.ones(3, np.uint64), np.arange(3)
    keys, ends = np.arange(6, dtype=np.uint64).reshape(3, 2), np.full(3, 8)
    kernel.insert(words, 1, 1, 0, keys, digests, offsets, ends)
    assert words[8:11].tolist() == [1, 2, 3]
    for first, wrap, wrong in ((1, 1, ends - 1), (1, 1, ends + 8), (1, 1, ends + 112), (1, 3, ends), (-1, 1, ends)):
        with pytest.raises(ValueError, match=r"segment|place"):
            kernel.insert(words, first, wrap, 0, keys, digests, offsets, wrong)
    many = np.arange(40, dtype=np.uint64).reshape(20, 2)
    with pytest.raises(ValueError, match="no free place"):
        kernel.insert(words, 1, 1, 0, many, np.ones(20, np.uint64), np.arange(20), np.full(20, 8))
    table = np.zeros(4, np.uint64)
    with pytest.raises(ValueError, match="without a free place"):
        kernel.put(table, many[:5], np.arange(5))
    with pytest.raises(ValueError, match="power of two"):
        kernel.put(table[:3], many[:2], np.arange(2))


DIMS = [
    (0, "openai", "gpt-4o", "production", "chat", "success"),
    (127, "", "ü" * 20, "e" * 40, "chat", "error"),
    (128, "o", "m" * 300, "", "", ""),
    (65536, "o", "\U0001f600", "e", "chat", "success"),
    (2**32 - 1, "o", "m", "e", "chat", "success"),
]


@pytest.mark.parametrize("dims", [[], DIMS[:1], DIMS, DIMS * 5])
def test_kinds_of_a_message_are_read_where_they_are_looked_at(dims: list[Dim]) -> None:
    found = compiled_rows.read_dims(msgspec.Raw(pack(dims)))
    assert isinstance(found, PackedDims)
    assert len(found) == len(dims)
    assert [found.one(place) for place in range(len(dims))] == dims
    assert len({*found.hashes.tolist()}) == len({*dims})
    assert [*found] == dims
    assert found == compiled_rows.read_dims(msgspec.Raw(pack(dims)))
    assert found[:2] == dims[:2]


@pytest.mark.parametrize("dims", [[], DIMS[:1], DIMS, [*DIMS, *DIMS[:2], (7, *DIMS[2][1:])]])
def test_names_without_hours_are_those_of_the_kinds(dims: list[Dim]) -> None:
    found = compiled_rows.read_dims(msgspec.Raw(pack(dims)))
    assert isinstance(found, PackedDims)
    for names, codes in (compiled_rows.without_hours(found), compiled_rows.without_hours(dims)):
        assert [names[code] for code in codes] == [dim[1:] for dim in dims]
        assert len({*names}) == len(names)


GOOD = pack(DIMS)


@pytest.mark.parametrize(
    "packed",
    [
        pack([(-1, *DIMS[0][1:])]),
        pack([(2**40, *DIMS[0][1:])]),
        pack([(1, "o", "m", "e", "c")]),
        pack([(*DIMS[0], "")]),
        pack([(*DIMS[0][:5], None)]),
        pack([("1", *DIMS[0][1:])]),
        pack({}),
        pack(None),
        *(GOOD[:end] for end in range(len(GOOD))),
        GOOD + b"\x90",
        GOOD.replace("ü".encode(), b"\xc3("),
        GOOD.replace("ü".encode() * 20, b"\xc3\xbc" * 19 + b"x\xc3"),
        GOOD.replace(b"gpt-4o", b"gpt\xf0\x9f\x98"),
    ],
)
def test_other_kinds_are_read_or_refused_as_msgspec_does(packed: bytes) -> None:
    try:
        expected = msgspec.msgpack.decode(packed, type=list[Dim])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        with pytest.raises(type(error)):
            compiled_rows.read_dims(msgspec.Raw(packed))
    else:
        assert compiled_rows.read_dims(msgspec.Raw(packed)) == expected


USERS = ["u", None, "", "ü" * 20, "x" * 31, "x" * 32, "\U0001f600" * 64, None]


@pytest.mark.parametrize("users", [[], [None], USERS, USERS * 3, [f"user_{number}" for number in range(2000)]])
def test_users_of_a_message_become_objects_where_they_are_looked_at(users: list[str | None]) -> None:
    found = compiled_rows.read_users(msgspec.Raw(pack(users)), stay_packed=True)
    assert isinstance(found, PackedUsers)
    assert len(found) == len(users)
    there = None if found.there is None else pa.py_buffer(found.there)
    texts = pa.StringArray.from_buffers(len(users), pa.py_buffer(found.bounds), pa.py_buffer(found.data), there)
    texts.validate(full=True)
    assert texts.to_pylist() == users
    assert [*found] == users
    assert found[:2] == users[:2]
    assert found == compiled_rows.read_users(msgspec.Raw(pack(users)), stay_packed=False)


GOOD_USERS = pack(USERS)


@pytest.mark.parametrize(
    "packed",
    [
        pack([1]),
        pack([b"u"]),
        pack([["u"]]),
        pack({}),
        pack(None),
        pack(["x" * 65536]),
        *(GOOD_USERS[:end] for end in range(len(GOOD_USERS))),
        GOOD_USERS + b"\xc0",
        GOOD_USERS.replace("ü".encode(), b"\xc3("),
        GOOD_USERS.replace("ü".encode() * 20, b"\xc3\xbc" * 19 + b"x\xc3"),
        b"\xdc\xff\xff\xc0",
        b"\xdd\x00\x00\x00\x01\xc0",
    ],
)
def test_other_users_are_read_or_refused_as_msgspec_does(packed: bytes) -> None:
    try:
        expected = msgspec.msgpack.decode(packed, type=list[str | None])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        with pytest.raises(type(error)):
            compiled_rows.read_users(msgspec.Raw(packed), stay_packed=True)
    else:
        assert compiled_rows.read_users(msgspec.Raw(packed), stay_packed=True) == expected
