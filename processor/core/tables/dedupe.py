"""Deduplication by event_id within a project.

An id becomes a 128-bit *claim key*: the UUID XOR a pad derived from its project and the log's secret salt, so that the
same UUID in two projects gives two keys and no client can target another project's. The first copy of an event *claims*
its key with the offset of its message; a copy is fresh if the key was not claimed before, or was claimed at the very
offset now applied: so a replay from anywhere makes the same decisions again.

The claims log has one record for each flush, with the ids it claimed. The id index on disk is derived from it, and
rebuilt from it.

    value = msgpack [version, [[offset, keys, digests], ...]]
"""

from hashlib import blake2b
from typing import Final, Protocol

import msgspec
import numpy as np
import xxhash
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.events.message import Message
from processor.core.kernel.loaded import kernel
from processor.core.partitioning import U64, Places

VERSION: Final = 1


class Claimed(Struct, array_like=True, gc=False):
    """The ids one message claimed: n keys of 16 bytes, n digests of 8."""

    offset: int
    """The message's offset in the events topic."""
    keys: bytes
    digests: bytes


class _Record(Struct, array_like=True, gc=False):
    version: int
    claimed: list[Claimed]


_encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(_Record).decode


def encode_claims(claimed: list[Claimed]) -> bytes:
    """The value of one record."""
    return _encode_record(_Record(VERSION, claimed))


def digest_of_claims(value: bytes) -> str:
    """Return the digest that identifies a record: XXH3 of 128 bits over its value, hex."""
    return xxhash.xxh3_128_hexdigest(value)


def decode_claims(value: bytes) -> list[Claimed]:
    """Decode a record's value. Raises `ValueError` for another format."""
    try:
        record = _decode_record(value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a claims record: {error}") from None
    if record.version != VERSION:
        raise ValueError(f"claims record of version {record.version}; this program reads {VERSION}")
    return record.claimed


MAX_PADS: Final = 10_000
"""Projects whose pads are cached."""

Mask = NDArray[np.bool_]


def project_pad(project: str, salt: bytes) -> U64:
    """The project's pad: shape (2,), little-endian halves."""
    return np.frombuffer(blake2b(project.encode(), key=salt, digest_size=16).digest(), "<u8")


def claim_keys(ids: U64, pads: U64) -> U64:
    """Claim keys of `ids`, as little-endian halves: shape (n, 2). `pads` is one pad, or one for each id."""
    return ids ^ pads


class ClaimKeys:
    """Derives the claim keys of messages, with the salt of their log."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._pads: dict[str, U64] = {}

    def of(self, message: Message) -> U64:
        """Return the key of each event of a message, in its order, shape (n, 2)."""
        pads = []
        for request in message.requests:
            project = request.source.project
            pad = self._pads.get(project)
            if pad is None:
                if len(self._pads) >= MAX_PADS:
                    self._pads.clear()
                pad = self._pads[project] = project_pad(project, self._salt)
            pads.append(pad)
        if all(pad is pads[0] for pad in pads):
            return claim_keys(message.rows["id"], pads[0])
        return claim_keys(message.rows["id"], np.repeat(pads, message.counts, axis=0))


class ClaimIndex(Protocol):
    """The claims of one partition: which message claimed each id."""

    def claim(self, keys: U64, digests: U64, offset: int | Places) -> tuple[NDArray[np.int64], U64]:
        """Claim `keys` (shape (n, 2), no two the same), those not claimed before, at `offset`: one for all, or each its
        own.

        Returns, for each key, the offset that holds the claim now and the digest kept with it.
        """
        ...


def resolve(index: ClaimIndex, keys: U64, digests: U64, offset: int | Places) -> tuple[Mask, Mask]:
    """Claim all keys of a message, or of several in the order of their offsets; returns the masks (fresh, conflicting).

    Of several copies among them the first is the one that may be fresh. `conflicting` marks the duplicates whose digest
    differs from the one kept with the claim.
    """
    first, copies = _first_copies(keys)
    offsets = np.broadcast_to(offset, len(keys))[first]
    held, kept = index.claim(keys[first], digests[first], offsets)
    fresh = np.zeros(len(keys), np.bool_)
    fresh[first] = held >= offsets
    if copies is None:
        return fresh, ~fresh & (kept != digests)
    return fresh, ~fresh & (kept[copies] != digests)


def _first_copies(keys: U64) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64] | None]:
    """Positions of the first copy of each key, and for every position the index of its key among them (None: all)."""
    if kernel is not None and kernel.distinct(np.ascontiguousarray(keys)):
        return slice(None), None
    return _first_copies_by_numpy(keys)


def _first_copies_by_numpy(keys: U64) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64] | None]:
    """The same for any keys: some may be copies, or there is no kernel."""
    ordered = np.sort(keys[:, 0])
    if (ordered[1:] != ordered[:-1]).all():  # the usual case: no two alike in even one half
        return slice(None), None
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # copies side by side, in the order in which they came
    sorted_keys = keys[order]
    starts = np.append(True, (sorted_keys[1:] != sorted_keys[:-1]).any(axis=1))
    copies = np.empty(len(keys), np.int64)
    copies[order] = np.cumsum(starts) - 1
    return order[starts], copies
