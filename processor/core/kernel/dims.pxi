# The dictionaries of a message in MessagePack: `Dim`s are a list of lists of an hour and five texts, users a list of texts.

cdef enum:
    NAMES = 5  # of a `Dim`, behind the hour


cdef const uint8_t* packed_number_end(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # Behind a number from 0 to 2^32 - 1; NULL: it is none.
    cdef int32_t size
    if p >= end:
        return NULL
    if p[0] < 0x80:
        size = 1
    elif p[0] == 0xCC:
        size = 2
    elif p[0] == 0xCD:
        size = 3
    elif p[0] == 0xCE:
        size = 5
    else:
        return NULL
    return p + size if end - p >= size else NULL


cdef const uint8_t* packed_text_end(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # Behind a text of UTF-8; NULL: it is none. There is a zero byte at `end`, or more of the list.
    cdef int64_t length
    cdef const uint8_t* last
    if p >= end:
        return NULL
    if 0xA0 <= p[0] < 0xC0:
        length = p[0] & 31
        p += 1
    elif p[0] == 0xD9 and end - p >= 2:
        length = p[1]
        p += 2
    elif p[0] == 0xDA and end - p >= 3:
        length = <int64_t>p[1] << 8 | p[2]
        p += 3
    else:
        return NULL
    if end - p < length:
        return NULL
    last = p + length
    while p < last:
        if p[0] < 0x80:
            p += 1
        else:
            p = utf8(p)
            if p == NULL:
                return NULL
    return p if p == last else NULL


def split_dims(bytes packed not None):
    """Hashes of each element, as `hash_index` has them, and where it begins in `packed`, with the end of the last one: as
    bytes. None: it is not such a list, or not as msgspec writes it."""
    cdef const uint8_t* start = <const uint8_t*>PyBytes_AsString(packed)
    cdef const uint8_t* end = start + PyBytes_Size(packed)
    cdef const uint8_t* p = start
    cdef int64_t count = 0, i, length
    cdef int j
    cdef int64_t* found = NULL
    cdef uint64_t* hashed
    if end - p >= 1 and 0x90 <= p[0] < 0xA0:
        count = p[0] & 15
        p += 1
    elif end - p >= 3 and p[0] == 0xDC:
        count = <int64_t>p[1] << 8 | p[2]
        p += 3
    else:
        return None
    hashes = bytearray(16 * count)
    hashed = <uint64_t*>PyByteArray_AsString(hashes)
    try:
        found = <int64_t*>malloc((count + 1) * sizeof(int64_t))
        if found == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                found[i] = p - start
                if p >= end or p[0] != 0x90 + 1 + NAMES:
                    p = NULL
                    break
                p = packed_number_end(p + 1, end)
                for j in range(NAMES):
                    if p == NULL:
                        break
                    p = packed_text_end(p, end)
                if p == NULL:
                    break
        if p != end:
            return None
        found[count] = end - start
        for i in range(count):
            length = found[i + 1] - found[i]
            text = PyBytes_FromStringAndSize(<const char*>start + found[i], length)
            hashed[2 * i] = <uint64_t>PyObject_Hash(text)
            hashed[2 * i + 1] = hash_of_bytes(start + found[i], length)
            if length > MOST_HASHED:
                hashed[2 * i + 1] ^= xxh3(start + found[i + 1] - MOST_HASHED, MOST_HASHED) * PRIME_2
        return hashes, numbers(found, count + 1)
    finally:
        free(found)


def number_pieces(bytes packed not None, starts, ends):
    """Number the different pieces of `packed`, with these bounds (int64), in their order: the number of each (int64), and
    the pieces themselves. Raises `ValueError` for bounds beyond it."""
    cdef Views views
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(packed)
    cdef const int64_t* first
    cdef const int64_t* last
    cdef int64_t count, size = PyBytes_Size(packed), i, slot, mask = 15, known = 0, other, looks
    cdef int64_t* to
    cdef int32_t* slots = NULL  # place of the first one + 1
    cdef list pieces = []
    views.count = 0
    try:
        first = <const int64_t*>opened(&views, starts, -1, 8)
        count = views.view[0].len // 8
        last = <const int64_t*>opened(&views, ends, count, 8)
        while mask < 2 * count:
            mask = 2 * mask + 1
        slots = <int32_t*>calloc(mask + 1, sizeof(int32_t))
        if slots == NULL:
            raise MemoryError
        codes = PyBytes_FromStringAndSize(NULL, 8 * count)
        to = <int64_t*>PyBytes_AsString(codes)
        looks = LOOKS * count + SOME_LOOKS
        for i in range(count):
            if not 0 <= first[i] <= last[i] <= size:
                raise ValueError("no piece of the text")
            slot = text_hash(text + first[i], last[i] - first[i]) & mask
            while slots[slot]:
                other = slots[slot] - 1
                if last[i] - first[i] == last[other] - first[other]:
                    if memcmp(text + first[i], text + first[other], last[i] - first[i]) == 0:
                        break
                looks -= 1
                if looks < 0:
                    break
                slot = (slot + 1) & mask
            if looks < 0:
                break
            if slots[slot]:
                to[i] = to[slots[slot] - 1]
                continue
            slots[slot] = <int32_t>i + 1
            to[i] = known
            known += 1
            pieces.append(PyBytes_FromStringAndSize(<const char*>text + first[i], last[i] - first[i]))
        if looks < 0:  # chosen, so as to meet in one place: Python's own hashes are others in every process
            numbered = {}
            for i in range(count):
                if not 0 <= first[i] <= last[i] <= size:
                    raise ValueError("no piece of the text")
                piece = PyBytes_FromStringAndSize(<const char*>text + first[i], last[i] - first[i])
                to[i] = numbered.setdefault(piece, len(numbered))
            pieces = list(numbered)
        return codes, pieces
    finally:
        close(&views)
        free(slots)


def packed_texts(bytes packed not None):
    """The texts of a list of such and nil, as Arrow has them: which are there (bits, None: all), where each begins (int32)
    and the bytes. None: it is not such a list, or not as msgspec writes it."""
    cdef const uint8_t* start = <const uint8_t*>PyBytes_AsString(packed)
    cdef const uint8_t* end = start + PyBytes_Size(packed)
    cdef const uint8_t* p = start
    cdef const uint8_t* text
    cdef int64_t count, i
    cdef int32_t total = 0, absent = 0
    cdef uint8_t* bits
    cdef uint8_t* bounds
    cdef uint8_t* to
    if end - p > 0x7FFFFFFF:
        return None
    if end - p >= 1 and 0x90 <= p[0] < 0xA0:
        count = p[0] & 15
        p += 1
    elif end - p >= 3 and p[0] == 0xDC:
        count = <int64_t>p[1] << 8 | p[2]
        p += 3
    else:
        return None
    if count > end - p:
        return None
    there = PyBytes_FromStringAndSize(NULL, (count + 7) >> 3)
    offsets = PyBytes_FromStringAndSize(NULL, 4 * (count + 1))
    data = bytearray(end - p)  # as many at most; with what is left Arrow has nothing to do
    bits, bounds = <uint8_t*>PyBytes_AsString(there), <uint8_t*>PyBytes_AsString(offsets)
    to = <uint8_t*>PyByteArray_AsString(data)
    memset(bits, 0, (count + 7) >> 3)
    with nogil:
        for i in range(count):
            memcpy(bounds + 4 * i, &total, 4)
            if p < end and p[0] == 0xC0:
                absent += 1
                p += 1
                continue
            text = p
            p = packed_text_end(p, end)
            if p == NULL:
                break
            text += 1 if text[0] < 0xC0 else text[0] - 0xD7
            memcpy(to + total, text, p - text)
            total += <int32_t>(p - text)
            bits[i >> 3] |= <uint8_t>(1 << (i & 7))
        memcpy(bounds + 4 * count, &total, 4)
    if p != end:
        return None
    return there if absent else None, offsets, data
