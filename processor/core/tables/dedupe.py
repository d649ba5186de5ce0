"""Deduplication by event_id within a project.

An id becomes a 128-bit *claim key*: the UUID XOR a pad derived from its project and the log's secret salt, so that the
same UUID in two projects gives two keys and no client can target another project's. The first copy of an event *claims*
its key with the offset of its message; a copy is fresh if the key was not claimed before, or was claimed at the very
offset now applied: so a replay from anywhere makes the same decisions again.
"""

from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from processor.core.partitioning import U64, Places

Mask = NDArray[np.bool_]


def project_pad(project: str, salt: bytes) -> U64:
    """The project's pad: shape (2,), little-endian halves."""
    return np.frombuffer(blake2b(project.encode(), key=salt, digest_size=16).digest(), "<u8")


def claim_keys(ids: U64, pads: U64) -> U64:
    """Claim keys of `ids`, as little-endian halves: shape (n, 2). `pads` is one pad, or one for each id."""
    return ids ^ pads


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
    ordered = np.sort(keys[:, 0])
    if (ordered[1:] != ordered[:-1]).all():  # the usual case: no two alike in even one half
        return slice(None), None
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # copies side by side, in the order in which they came
    sorted_keys = keys[order]
    starts = np.append(True, (sorted_keys[1:] != sorted_keys[:-1]).any(axis=1))
    copies = np.empty(len(keys), np.int64)
    copies[order] = np.cumsum(starts) - 1
    return order[starts], copies
