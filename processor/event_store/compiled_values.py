"""The values of a message's events by the compiled kernel, where it runs: `event_values` is its twin.

The kernel reads every event that is plain from its bytes into buffers that Arrow takes as they are, without an object
for a value, and gives up all others one by one: those the twin reads. Whatever it takes, the twin takes with the same
values.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.core.events import compiled_rows  # noqa: F401 - it hands the table of fields to the kernel
from processor.core.events.fields import FIELDS, IGNORED
from processor.core.events.ndjson import SEPARATOR, Lines
from processor.core.kernel.loaded import kernel
from processor.event_store.event_values import COUNTS, MILLIS, TEXTS

Buffers = list[bytes]
"""What the kernel returns of some events; see `json_cells`."""

MOST: Final = 65_536
"""Events that the kernel takes at a time."""

_NO_INPUT, _NO_OUTPUT, _IS_FREE = 1, 2, 4
"""Marks of spans."""

_TEXT_COLUMNS: Final = (*TEXTS, "extra")
_NUMBERS: Final = (*MILLIS, *COUNTS)

Mask = NDArray[np.bool_]


class TakenEvents(NamedTuple):
    """What the kernel made of some events."""

    buffers: Buffers
    given_up: list[int]
    """Places of events that the twin reads, which the buffers do not have."""


def take(
    payload: Literal["json", "protobuf"], requests: Sequence[Sequence[bytes]], kept: Mask, *, lenient: bool
) -> TakenEvents | None:
    """Read the events of requests that are kept, by today's rules; `lenient`: how they were taken. None: there is no
    kernel, it does not take so many, or there are more or fewer lines than `kept` says."""
    if kernel is None or not 0 < len(kept) <= MOST or sum(map(len, requests)) != len(kept):
        return None
    chosen = kept.tobytes()
    if payload == "json":
        texts = [text for each in requests for text in (each.texts if isinstance(each, Lines) else each)]
        found = kernel.json_cells(SEPARATOR.join([*texts, kernel.PAD]), chosen, lenient)
    else:
        messages = [record for each in requests for record in each]
        found = kernel.protobuf_cells(b"".join([*messages, kernel.PAD]), messages, chosen, lenient)
    return None if found is None else TakenEvents(*found)


class EventArrays:
    """Values of some events, in their order, as Arrow arrays over the kernel's buffers."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = dict(zip(_KEYS, buffers, strict=True))

    @classmethod
    def joined(cls, parts: Sequence[Buffers]) -> Self:
        """Return the events of several calls of the kernel, at least one, as one. The buffers of all are let go of one
        by one: they may be large, and both of them together are never in memory."""
        found = []
        for place in range(len(_KEYS)):
            found.append(b"".join([each[place] for each in parts]))
            for each in parts:
                each[place] = b""
        return cls(found)

    def __len__(self) -> int:
        return len(self._buffers["stream"])

    def text(self, name: str) -> Any:
        """Return a text, or the unknown fields as JSON. Once: the array has the bytes from then on."""
        return _texts(self._buffers.pop(f"{name} lengths"), self._buffers.pop(name))

    def number(self, name: str) -> Any:
        """Return a number: a double for milliseconds, else a whole one."""
        there = np.frombuffer(self._buffers[f"{name} there"], np.bool_)
        kind = pa.float64() if name in MILLIS else pa.int64()
        if not there.any():
            return pa.nulls(len(there), kind)
        bitmap = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
        return pa.Array.from_buffers(kind, len(there), [bitmap, pa.py_buffer(self._buffers[name])])

    @property
    def streams(self) -> Mask:
        """Return whether the answers were streamed."""
        return np.frombuffer(self._buffers["stream"], np.bool_)

    @property
    def spans(self) -> Mask:
        """Return which events are spans."""
        return np.frombuffer(self._buffers["spans"], np.bool_)

    def absent(self, name: str) -> Mask:
        """Return which spans came without a count of tokens."""
        return self._is_marked(_NO_INPUT if name == "input_tokens" else _NO_OUTPUT)

    @property
    def free(self) -> Mask:
        """Return which spans say that they cost 0."""
        return self._is_marked(_IS_FREE)

    def _is_marked(self, mark: int) -> Mask:
        found: Mask = (np.frombuffer(self._buffers["marks"], np.uint8) & mark) != 0
        return found

    def counts(self, name: str) -> NDArray[np.int32]:
        """Return how many items a collection of each event has."""
        return np.frombuffer(self._buffers[f"{name} counts"], np.int32)

    def keys(self, name: str) -> Any:
        """Return the keys of a collection of all events, end to end."""
        return _texts(self._buffers[f"{name} key lengths"], self._buffers[f"{name} keys"])

    def items(self, name: str) -> Any:
        """Return the items of a collection of all events, end to end."""
        if name == "eval_scores":
            data = self._buffers["eval_scores items"]
            return pa.Array.from_buffers(pa.float64(), len(data) // 8, [None, pa.py_buffer(data)])
        return _texts(self._buffers[f"{name} item lengths"], self._buffers[f"{name} items"])


def _keys() -> list[str]:
    """Return what the buffers are, in their order."""
    found = [key for name in _TEXT_COLUMNS for key in (f"{name} lengths", name)]
    found += [key for name in _NUMBERS for key in (f"{name} there", name)]
    found += ["stream", "spans", "marks"]
    for name in ("tags", "eval_scores", "tools_used"):
        found.append(f"{name} counts")
        if name != "tools_used":
            found += [f"{name} key lengths", f"{name} keys"]
        if name != "eval_scores":
            found.append(f"{name} item lengths")
        found.append(f"{name} items")
    return found


_KEYS: Final = _keys()


def _texts(lengths: bytes, data: bytes) -> Any:
    """Return texts of these lengths, of which -1 is none, that lie end to end."""
    sizes = np.frombuffer(lengths, np.int32)
    is_absent = sizes < 0
    if is_absent.all():
        return pa.nulls(len(sizes), pa.string())
    bitmap = pa.py_buffer(np.packbits(~is_absent, bitorder="little")) if is_absent.any() else None
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(np.maximum(sizes, 0), out=offsets[1:])
    return pa.StringArray.from_buffers(len(sizes), pa.py_buffer(offsets), pa.py_buffer(data), bitmap)


if kernel is not None:
    _fields = {field.name: field for field in FIELDS}
    kernel.configure_cells(
        [
            (
                name,
                int(each.most) if each.is_cut and each.most is not None else None,
                each.lenient == "unknown",
                each.is_empty_absent,
            )
            for name, each in ((name, _fields[name]) for name in TEXTS)
        ],
        _NUMBERS,
        IGNORED.encode(),
    )
