"""The id index: every claim of one partition, for ever, on disk.

The claims log is the truth; the index is a picture of it that is never rewritten: segments of growing size, of which
only the newest takes new ids. `checkpoint` remembers up to where in the claims log everything is known to be on disk;
after any crash the claims from there on are put in again, which changes nothing where they are there already.
"""

import json
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.dedupe import U64
from processor.state.segment import MAX_SPAN, Segment

FIRST_CAPACITY: Final = 1 << 16
GROWTH: Final = 4
MAX_CAPACITY: Final = 1 << 28


class IdIndex:
    """A `ClaimIndex` of memory-mapped segments in a directory."""

    def __init__(self, directory: Path, identity: str, *, first_capacity: int = FIRST_CAPACITY) -> None:
        """Open or make the index of the log called `identity`; segments of another log are thrown away."""
        self._directory = directory
        self._identity = identity
        self._first_capacity = first_capacity
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.checkpointed = self._read_checkpoint()
        if self.checkpointed is None:
            for path in directory.glob("*.idx"):
                path.unlink()
            self.checkpointed = 0
            self._write_checkpoint(0)
        for path in directory.glob("*.new"):
            path.unlink()
        self._segments = [Segment(path) for path in sorted(directory.glob("*.idx"))]

    def __len__(self) -> int:
        return sum(segment.used for segment in self._segments)

    def claim(self, keys: U64, digests: U64, offset: int) -> tuple[NDArray[np.int64], U64]:
        """See `ClaimIndex.claim`."""
        held, kept = self.find(keys)
        missing = np.flatnonzero(held < 0)
        if len(missing):
            self._insert(keys[missing], digests[missing], offset)
            held[missing] = offset
            kept[missing] = digests[missing]
        return held, kept

    def find(self, keys: U64) -> tuple[NDArray[np.int64], U64]:
        """For each key the offset that claimed it (-1: none did) and the digest kept with it."""
        held = np.full(len(keys), -1, np.int64)
        kept = np.zeros(len(keys), np.uint64)
        missing = np.arange(len(keys))
        for segment in reversed(self._segments):
            found, their = segment.find(keys[missing])
            hit = found >= 0
            if hit.any():
                held[missing[hit]] = found[hit]
                kept[missing[hit]] = their[hit]
                missing = missing[~hit]
            if not len(missing):
                break
        return held, kept

    def _insert(self, keys: U64, digests: U64, offset: int) -> None:
        done = 0
        while done < len(keys):
            segment = self._newest(offset)
            count = min(segment.room, len(keys) - done)
            segment.insert(keys[done : done + count], digests[done : done + count], offset)
            done += count

    def _newest(self, offset: int) -> Segment:
        if self._segments:
            last = self._segments[-1]
            if last.room > 0 and last.base <= offset < last.base + MAX_SPAN:
                return last
            capacity = min(last.capacity * GROWTH, MAX_CAPACITY) if last.room <= 0 else last.capacity
        else:
            capacity = self._first_capacity
        path = self._directory / f"{len(self._segments):04d}.idx"
        # A replay may go back before the offset at hand, so the base leaves half of the span below it.
        segment = Segment.create(path, capacity, max(0, offset - MAX_SPAN // 2))
        self._segments.append(segment)
        return segment

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def sync(self, claims_offset: int) -> None:
        """Flush to the disk and remember that the claims log is contained up to `claims_offset` (exclusive).

        The claims below it must have been put in before the call. Blocks, without the GIL; may run beside `claim`.
        """
        for segment in list(self._segments):
            segment.sync()
        self._write_checkpoint(claims_offset)
        self.checkpointed = claims_offset

    @property
    def _checkpoint_path(self) -> Path:
        return self._directory / "checkpoint.json"

    def _read_checkpoint(self) -> int | None:
        try:
            found = json.loads(self._checkpoint_path.read_text())
            return int(found["claims"]) if found["log"] == self._identity else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _write_checkpoint(self, claims_offset: int) -> None:
        draft = self._checkpoint_path.with_suffix(".tmp")
        with draft.open("w") as file:
            json.dump({"log": self._identity, "claims": claims_offset}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._checkpoint_path)
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def distrust(self) -> None:
        """Have the next one who opens the index throw it away and build it again from the claims log."""
        self._checkpoint_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap all segments."""
        for segment in self._segments:
            segment.close()
        self._segments = []
