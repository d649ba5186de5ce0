# New ids in the id index, whether any comes twice, and which of a message were claimed.

cdef extern from *:
    """
    static inline void store_mark(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    """
    void store_mark(uint32_t*, uint32_t) nogil  # a thread that reads meanwhile sees all of a claim or none of it

cdef enum:
    MOST_STEPS = 64  # looked at for one key; more are somebody's doing, or keys that are alike


def distinct(keys):
    """Whether no two of these keys, shape (n, 2), are alike. False where that would take long to find out."""
    cdef Py_ssize_t count = len(keys), i
    cdef Views views
    cdef const uint64_t* key
    cdef uint64_t size = 4, at, mask
    cdef uint32_t other
    cdef int steps
    cdef bint outcome = True
    cdef uint32_t* table = NULL
    views.count = 0
    if count < 2:
        return True
    if count >= <Py_ssize_t>1 << 30:
        return False
    while size < 3 * <uint64_t>count:
        size *= 2
    mask = size - 1
    try:
        table = <uint32_t*>calloc(size, sizeof(uint32_t))
        if table == NULL:
            raise MemoryError
        key = <const uint64_t*>opened(&views, keys, count, 16)
        with nogil:
            for i in range(count):
                at, steps = ((key[2 * i] ^ (key[2 * i + 1] >> 7)) * PRIME_1) >> 20 & mask, 0
                while outcome and table[at]:
                    other = table[at] - 1
                    steps += 1
                    if (key[2 * other] == key[2 * i] and key[2 * other + 1] == key[2 * i + 1]) or steps > MOST_STEPS:
                        outcome = False
                    at = (at + 1) & mask
                if not outcome:
                    break
                table[at] = <uint32_t>i + 1
        return outcome
    finally:
        close(&views)
        free(table)


def kept_in_order(keys, claimed):
    """`claimed_ids._kept_in_order` for keys of which shape (n, 2) are given and fewer were claimed: a byte a row, 1: kept.
    None: they were claimed in another order than the rows have, or another copy than the first one was."""
    cdef Py_ssize_t count = len(keys), wanted = len(claimed), i, other, known = 0
    cdef Views views
    cdef const uint64_t* key
    cdef const uint64_t* claim
    cdef uint8_t* kept
    cdef bint outcome = True
    views.count = 0
    found = bytearray(count)
    try:
        key = <const uint64_t*>opened(&views, keys, count, 16)
        claim = <const uint64_t*>opened(&views, claimed, wanted, 16)
        kept = <uint8_t*>opened_to_write(&views, found)
        with nogil:
            for i in range(count):
                if known < wanted and key[2 * i] == claim[2 * known] and key[2 * i + 1] == claim[2 * known + 1]:
                    kept[i] = 1
                    known += 1
            outcome = known == wanted
            for i in range(count):
                if kept[i] or not outcome:
                    continue
                # Of several copies the first one is kept, if any is.
                for other in range(count):
                    if key[2 * other] == key[2 * i] and key[2 * other + 1] == key[2 * i + 1]:
                        if other < i and kept[other]:
                            break
                        if kept[other]:
                            outcome = False
        return found if outcome else None
    finally:
        close(&views)


def insert(words, int64_t first, int64_t wrap, int64_t base, keys, digests, offsets, ends):
    """`probe.insert`: `first`, `wrap` and `base` are those of the segment.

    Raises `ValueError` for arrays that do not fit together, and for a segment without a free place: then some keys may
    be in it.
    """
    cdef Py_ssize_t count = len(keys), i
    cdef Views views
    cdef uint32_t* memory
    cdef uint32_t* w
    cdef const uint64_t* key
    cdef const uint64_t* digest
    cdef const int64_t* offset
    cdef const int64_t* end
    cdef int64_t start = PLACES * first, length, bucket, looked = 0
    cdef int32_t place
    views.count = 0
    if not count:
        return
    try:
        memory = <uint32_t*>opened_to_write(&views, words)
        length = views.view[0].len // 4
        key = <const uint64_t*>opened(&views, keys, count, 16)
        digest = <const uint64_t*>opened(&views, digests, count, 8)
        offset = <const int64_t*>opened(&views, offsets, count, 8)
        end = <const int64_t*>opened(&views, ends, count, 8)
        if first < 0 or wrap < 0 or first > length or wrap > length or start + BUCKET * (wrap + 1) > length:
            raise ValueError("a segment goes beyond the arena")
        for i in range(count):
            if end[i] < start or end[i] >= start + BUCKET * (wrap + 1) or (end[i] - start) % BUCKET >= PLACES:
                raise ValueError("no place of the segment")
        with nogil:
            for i in range(count):
                bucket, looked = (end[i] - start) // BUCKET, 0
                while True:
                    w, place = memory + start + BUCKET * bucket, 0
                    while place < PLACES and load_mark(w + place):
                        place += 1
                    if place < PLACES or looked > wrap:
                        break
                    bucket = (bucket + 1) & wrap
                    looked += 1
                if place == PLACES:
                    break
                w[16 + 5 * place] = <uint32_t>(key[2 * i] >> 32)
                w[17 + 5 * place] = <uint32_t>key[2 * i + 1]
                w[18 + 5 * place] = <uint32_t>(key[2 * i + 1] >> 32)
                w[19 + 5 * place] = <uint32_t>digest[i]
                w[20 + 5 * place] = <uint32_t>(digest[i] >> 32)
                w[PLACES + place] = <uint32_t>key[2 * i]
                store_mark(w + place, <uint32_t>(offset[i] - base + 1))
        if looked > wrap:
            raise ValueError("a segment has no free place left")
    finally:
        close(&views)
