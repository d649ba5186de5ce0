# Hashes of the ids of a segment's rows, as `processor.event_store.id_index` has them, from Arrow's buffers of texts.

cdef uint64_t ID_MIX = 0x9E3779B97F4A7C15


cdef struct IdTexts:  # an Arrow array of texts
    Py_buffer views[3]
    int32_t open_views
    const uint8_t* there     # NULL: all
    const uint8_t* data
    int64_t size             # of the data
    const uint8_t* offsets
    int64_t start
    int64_t count


cdef int open_texts(IdTexts* texts, there, data, offsets, int64_t start, int64_t count) except -1:
    cdef object each
    cdef Py_buffer* view
    memset(texts, 0, sizeof(IdTexts))
    texts.start, texts.count = start, count
    for each in (offsets, data, there):
        if each is None:
            continue
        view = texts.views + texts.open_views
        PyObject_GetBuffer(each, view, PyBUF_SIMPLE)
        texts.open_views += 1
        if each is offsets:
            texts.offsets = <const uint8_t*>view.buf
            if start < 0 or count < 0 or view.len < 4 * (start + count + 1):
                raise ValueError("there are fewer texts")
        elif each is data:
            texts.data, texts.size = <const uint8_t*>view.buf, view.len
        else:
            texts.there = <const uint8_t*>view.buf
            if 8 * view.len < start + count:
                raise ValueError("there are fewer texts")
    if texts.offsets == NULL:
        raise ValueError("there are no texts")
    return 0


cdef void close_texts(IdTexts* texts) noexcept:
    cdef int32_t i
    for i in range(texts.open_views):
        PyBuffer_Release(texts.views + i)


cdef inline const uint8_t* text_at(const IdTexts* texts, int64_t i, int64_t* size) noexcept nogil:
    # NULL if it does not lie in the data.
    cdef int32_t low, high
    memcpy(&low, texts.offsets + 4 * (texts.start + i), 4)
    memcpy(&high, texts.offsets + 4 * (texts.start + i + 1), 4)
    if not 0 <= low <= high <= texts.size:
        return NULL
    size[0] = high - low
    return texts.data + low if texts.data != NULL else ZEROS


cdef inline uint32_t text_hash(const uint8_t* p, int64_t size) noexcept nogil:
    cdef uint64_t found = <uint64_t>size * ID_MIX, word
    while size > 0:
        word = 0
        memcpy(&word, p, 8 if size > 8 else size)
        found = (found ^ word) * ID_MIX
        found ^= found >> 32
        p += 8
        size -= 8
    return <uint32_t>(found * ID_MIX >> 32)


cdef inline bint event_hash(const uint8_t* p, int64_t size, uint32_t* hashed) noexcept nogil:
    # Of 32 hexadecimal digits with four dashes; False if it is none.
    cdef uint8_t bytes[16]
    cdef uint8_t high, low, bad = 0
    cdef int32_t i, k
    if size != 36 or p[8] != 45 or p[13] != 45 or p[18] != 45 or p[23] != 45:
        return False
    for i in range(16):
        k = 2 * i + (i >= 4) + (i >= 6) + (i >= 8) + (i >= 10)
        high, low = HEX[p[k]], HEX[p[k + 1]]
        bad |= high | low
        bytes[i] = <uint8_t>(high << 4) | (low & 15)
    hashed[0] = <uint32_t>((load64(bytes) * ID_MIX + load64(bytes + 8)) * ID_MIX >> 32)
    return bad <= 15


cdef int64_t hash_all(const IdTexts* texts, bint are_events, uint8_t* to) noexcept nogil:
    # How many texts there are, whose hashes are written; -1 if one is not as it should be.
    cdef int64_t i, size, written = 0
    cdef uint32_t hashed
    cdef const uint8_t* p
    for i in range(texts.count):
        if texts.there != NULL and not texts.there[(texts.start + i) >> 3] >> ((texts.start + i) & 7) & 1:
            continue
        p = text_at(texts, i, &size)
        if p == NULL:
            return -1
        if not are_events:
            hashed = text_hash(p, size)
        elif not event_hash(p, size, &hashed):
            return -1
        memcpy(to + 4 * written, &hashed, 4)
        written += 1
    return written


def id_hashes(there, data, offsets, int64_t start, int64_t count, bint are_events):
    """The hashes (uint32) of the texts of an Arrow array that are not null, from its three buffers, or of event ids.

    Raises `ValueError` for texts that do not lie in the buffers, and for what is no event id.
    """
    cdef IdTexts texts
    cdef int64_t written
    cdef uint8_t* to
    try:
        open_texts(&texts, there, data, offsets, start, count)
        found = PyBytes_FromStringAndSize(NULL, 4 * count)
        to = <uint8_t*>PyBytes_AsString(found)
        with nogil:
            written = hash_all(&texts, are_events, to)
    finally:
        close_texts(&texts)
    if written < 0:
        raise ValueError("these are not the ids of a segment")
    return found[: 4 * written]
