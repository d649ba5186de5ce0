"""Traffic without end: the same events again and again, each time with ids of their own, and what they come to.

A pass has every user once with every model, in an order of chance, and 1 % of its events twice; so the tables have all
of their rows after the first pass, and never more. From pass to pass nothing differs but the ids: what any number of
passes must say in the tables is arithmetic, and a request costs what it takes to write a hundred ids and to compress.
"""

import random
from itertools import product
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from isal import igzip_lib
from msgspec import Struct
from numpy.typing import NDArray

from tests.support.events import to_json_line
from tests.support.traffic import BATCH, DUPLICATES, RECENT, USERS, Plain, user_name
from tests.support.truth import Fact, GroundTruth

Numbers = NDArray[np.int64]

GZIP_LEVEL: Final = 1
"""Of isal: a tenth of what zlib's level 6 costs, bodies 8 % larger than its."""
ID_AT: Final = len('{"event_id":"')
ID_BYTES: Final = 16
HEX_AT: Final = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])
"""Where an id has its digits; between them there are dashes."""
_HEX: Final = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)


class Pass(Struct):
    """The events of one pass."""

    lines: list[bytes]
    """Their JSON, in the order in which they are sent; their ids are not the ones that are sent."""
    firsts: list[int]
    """For each the number of the event that it repeats; its own if it is none that repeats."""
    facts: list[Fact]

    @classmethod
    def make(cls, users: int = USERS, seed: int = 1) -> "Pass":
        """`users` x 8 models, shuffled; the copies are as many as make whole requests of it."""
        rng = random.Random(seed)
        pairs = [(user_name(user), model) for user, model in product(range(users), Plain.MODELS)]
        rng.shuffle(pairs)
        total = -(-int(len(pairs) * (1 + DUPLICATES)) // BATCH) * BATCH
        copies = set(rng.sample(range(1, total), total - len(pairs)))
        made = cls([], [], [])
        plain = Plain(rng)
        for number in range(total):
            if number in copies:
                first = made.firsts[rng.randrange(max(0, number - RECENT), number)]
                made.lines.append(made.lines[first])
                made.facts.append(made.facts[first])
                made.firsts.append(first)
            else:
                event, fact = plain.make(number, *pairs.pop())
                made.lines.append(to_json_line(event))
                made.facts.append(fact)
                made.firsts.append(number)
        return made

    @property
    def requests(self) -> int:
        """Requests of a pass. Request `number` of a generator is number % requests of pass number // requests."""
        return len(self.lines) // BATCH

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.msgpack.encode(self))

    @classmethod
    def read(cls, path: Path) -> "Pass":
        """What `write` wrote."""
        return msgspec.msgpack.decode(path.read_bytes(), type=cls)

    # --- what the tables must say -----------------------------------------------------------------------------------

    def counted(self, taken: Numbers) -> Numbers:
        """How many times each of the pass's events counts when one generator's requests `taken` were taken.

        A copy counts if what it repeats was not taken in the same pass, and then as that.
        """
        firsts = np.array(self.firsts)
        passes, requests = np.divmod(taken, self.requests)
        times = np.zeros(len(firsts), np.int64)
        for number in np.unique(passes):
            was_sent = np.zeros(self.requests, bool)
            was_sent[requests[passes == number]] = True
            counts = np.zeros(len(firsts), bool)
            counts[firsts[np.repeat(was_sent, BATCH)]] = True
            times += counts
        return times

    def counted_first(self, requests: int) -> Numbers:
        """The same when one generator's first `requests` requests were taken."""
        whole, rest = divmod(requests, self.requests)
        return whole * self.counted(np.arange(self.requests)) + self.counted(np.arange(rest))

    def truth(self, times: Numbers) -> GroundTruth:
        """The tables when each event counts so many times, one more for each with ids of its own."""
        truth = GroundTruth(has_details=False)
        for fact, many in zip(self.facts, times.tolist(), strict=True):
            if many:
                truth.add(fact, many)
        return truth


class Bodies:
    """The requests of one generator, which must be asked for in the order of their numbers.

    `seed` decides the ids: those of two seeds never meet, nor those of two passes (122 bits of chance).
    """

    def __init__(self, made: Pass, seed: int) -> None:
        self._requests = made.requests
        self._firsts = np.array(made.firsts)
        self._seed = seed
        self._pass = -1
        self._digits = np.zeros((0, 32), np.uint8)
        self._texts: list[bytearray] = []
        self._places: list[Numbers] = []
        for start in range(0, len(made.lines), BATCH):
            lines = made.lines[start : start + BATCH]
            begins = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])]) + ID_AT
            self._texts.append(bytearray(b"\n".join(lines)))
            self._places.append((begins[:, None] + HEX_AT).ravel())
        self._views = [np.frombuffer(text, np.uint8) for text in self._texts]

    def text(self, number: int) -> bytearray:
        """A request's lines; what is returned is written over when the next pass comes to it."""
        turn, request = divmod(number, self._requests)
        if turn != self._pass:
            self._digits, self._pass = hex_ids(self._seed, turn, self._firsts), turn
        self._views[request][self._places[request]] = self._digits[request * BATCH : (request + 1) * BATCH].ravel()
        return self._texts[request]

    def body(self, number: int) -> bytes:
        """A request's body."""
        return igzip_lib.compress(self.text(number), GZIP_LEVEL, igzip_lib.COMP_GZIP)


def hex_ids(seed: int, turn: int, firsts: Numbers) -> NDArray[np.uint8]:
    """The 32 digits of each id of a pass: UUIDs version 4, the same for what repeats an event as for that event."""
    chance = np.random.Generator(np.random.SFC64([seed, turn])).bytes(ID_BYTES * len(firsts))
    ids = np.frombuffer(bytearray(chance), np.uint8).reshape(-1, ID_BYTES)
    ids[:, 6] = ids[:, 6] & 0x0F | 0x40
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return _HEX[ids[firsts]].view(np.uint8)
