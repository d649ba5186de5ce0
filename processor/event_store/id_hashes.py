"""Hashes of the ids in Arrow arrays of texts, for the index: by the compiled kernel where it runs, else in numpy."""

from typing import Any, Final

import numpy as np

from processor.core.kernel.loaded import kernel
from processor.event_store.id_index import U32, event_hashes, hashes_at

_CHARACTERS: Final = 36
_DIGITS: Final = np.delete(np.arange(_CHARACTERS), (8, 13, 18, 23))


def of_events(texts: Any) -> U32:
    """Return the hashes of event ids, none of which is null."""
    return event_hashes(_event_ids(texts)) if kernel is None else _compiled(texts, are_events=True)


def of_texts(texts: Any) -> U32:
    """Return the hashes of the texts that are not null."""
    if kernel is not None:
        return _compiled(texts, are_events=False)
    return _of_present(texts.drop_null() if texts.null_count else texts)


def of_distinct(texts: Any) -> U32:
    """Return the hashes of the texts that are not null, where most come again: some of them may be there once."""
    return of_texts(texts if kernel is not None else texts.unique())


def _compiled(texts: Any, *, are_events: bool) -> U32:
    assert kernel is not None
    there, offsets, data = texts.buffers()
    return np.frombuffer(kernel.id_hashes(there, data, offsets, texts.offset, len(texts), are_events), np.uint32)


def _event_ids(texts: Any) -> bytes:
    """Return the 16 bytes of each event id."""
    size = len(texts)
    data = np.frombuffer(texts.buffers()[2], np.uint8)
    start = int(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset]) if size else 0
    written = data[start : start + _CHARACTERS * size].reshape(size, _CHARACTERS)
    return bytes.fromhex(written[:, _DIGITS].tobytes().decode())


def _of_present(texts: Any) -> U32:
    if not len(texts):
        return np.empty(0, np.uint32)
    bounds = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return hashes_at(texts.buffers()[2] or b"", bounds[:-1], bounds[1:])
