"""The claim keys of a message's events: see `processor.core.tables.dedupe`."""

from typing import Final

import numpy as np

from processor.core.events.message import Message
from processor.core.partitioning import U64
from processor.core.tables import dedupe

MAX_PADS: Final = 10_000
"""Projects whose pads are cached."""


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
                pad = self._pads[project] = dedupe.project_pad(project, self._salt)
            pads.append(pad)
        if all(pad is pads[0] for pad in pads):
            return dedupe.claim_keys(message.rows["id"], pads[0])
        return dedupe.claim_keys(message.rows["id"], np.repeat(pads, message.counts, axis=0))
