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


cdef inline uint64_t short_word(const uint8_t* p, int64_t size) noexcept nogil:
    # Up to seven bytes, at least one, as the lowest ones of a word: by loads that overlap, a third of a copy's time.
    if size >= 4:
        return load32(p) | <uint64_t>load32(p + size - 4) << (8 * (size - 4))
    return p[0] | <uint64_t>p[size >> 1] << (8 * (size >> 1)) | <uint64_t>p[size - 1] << (8 * (size - 1))


cdef inline uint32_t text_hash(const uint8_t* p, int64_t size) noexcept nogil:
    cdef uint64_t found = <uint64_t>size * ID_MIX
    while size >= 8:
        found = (found ^ load64(p)) * ID_MIX
        found ^= found >> 32
        p += 8
        size -= 8
    if size:
        found = (found ^ short_word(p, size)) * ID_MIX
        found ^= found >> 32
    return <uint32_t>(found * ID_MIX >> 32)


cdef inline bint same_text(const uint8_t* p, const uint8_t* q, int64_t size) noexcept nogil:
    # Of two texts of the same size; short ones without a call.
    if size > 16:
        return memcmp(p, q, size) == 0
    if size >= 8:
        return load64(p) == load64(q) and load64(p + size - 8) == load64(q + size - 8)
    return size == 0 or short_word(p, size) == short_word(q, size)


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


def sorted_entries(list hashes not None, list groups not None):
    """The different pairs of a hash (uint32) and its row group, sorted: the hashes, and the groups (uint16). `hashes` are
    those of each row group, in the order of `groups`, which grow.

    A radix sort by the hash alone, eleven bits at a time: it leaves the row groups in their order.
    """
    cdef Py_buffer view
    cdef int64_t total = 0, count, i, used = 0, place, sum_, next_
    cdef int64_t starts[3][2048]
    cdef uint64_t* from_ = NULL
    cdef uint64_t* to = NULL
    cdef uint64_t* swapped
    cdef uint64_t number
    cdef uint32_t hashed
    cdef uint16_t group
    cdef int32_t turn
    cdef uint8_t* to_hashes
    cdef uint8_t* to_groups
    cdef object each
    if len(hashes) != len(groups):
        raise ValueError("row groups without hashes")
    for each in hashes:
        PyObject_GetBuffer(each, &view, PyBUF_SIMPLE)
        total += view.len // 4
        PyBuffer_Release(&view)
    try:
        from_ = <uint64_t*>malloc((total + 1) * sizeof(uint64_t))
        to = <uint64_t*>malloc((total + 1) * sizeof(uint64_t))
        if from_ == NULL or to == NULL:
            raise MemoryError
        memset(starts, 0, sizeof(starts))
        for each, group in zip(hashes, groups):
            PyObject_GetBuffer(each, &view, PyBUF_SIMPLE)
            count = min(view.len // 4, total - used)
            for i in range(count):
                hashed = load32(<const uint8_t*>view.buf + 4 * i)
                starts[0][hashed & 2047] += 1
                starts[1][hashed >> 11 & 2047] += 1
                starts[2][hashed >> 22] += 1
                from_[used + i] = <uint64_t>hashed << 16 | group
            used += count
            PyBuffer_Release(&view)
        with nogil:
            for turn in range(3):
                sum_ = 0
                for i in range(2048):
                    next_ = sum_ + starts[turn][i]
                    starts[turn][i] = sum_
                    sum_ = next_
                for i in range(used):
                    place = from_[i] >> (16 + 11 * turn) & 2047
                    to[starts[turn][place]] = from_[i]
                    starts[turn][place] += 1
                swapped, from_, to = from_, to, from_
            total = 0
            for i in range(used):
                if not i or from_[i] != from_[i - 1]:
                    from_[total] = from_[i]
                    total += 1
        found_hashes = PyBytes_FromStringAndSize(NULL, 4 * total)
        found_groups = PyBytes_FromStringAndSize(NULL, 2 * total)
        to_hashes, to_groups = <uint8_t*>PyBytes_AsString(found_hashes), <uint8_t*>PyBytes_AsString(found_groups)
        for i in range(total):
            number = from_[i]
            hashed, group = <uint32_t>(number >> 16), <uint16_t>number
            memcpy(to_hashes + 4 * i, &hashed, 4)
            memcpy(to_groups + 2 * i, &group, 2)
        return found_hashes, found_groups
    finally:
        free(from_)
        free(to)


cdef uint16_t DIGIT_PAIRS[256]  # the two digits of a byte
for _value in range(256):
    _digit = b"%02x" % _value
    DIGIT_PAIRS[_value] = _digit[0] | _digit[1] << 8


def event_id_texts(ids):
    """Event ids of 16 bytes each as they are written: 32 digits and four dashes, 36 bytes each."""
    cdef Views views
    cdef const uint8_t* p
    cdef uint8_t* to
    cdef int64_t count, i, k
    views.count = 0
    try:
        p = <const uint8_t*>opened(&views, ids, -1, 1)
        count = views.view[0].len // 16
        if views.view[0].len % 16:
            raise ValueError("ids of another size")
        found = PyBytes_FromStringAndSize(NULL, 36 * count)
        to = <uint8_t*>PyBytes_AsString(found)
        with nogil:
            for i in range(count):
                for k in range(16):
                    if k == 4 or k == 6 or k == 8 or k == 10:
                        to[0] = 45
                        to += 1
                    memcpy(to, DIGIT_PAIRS + p[k], 2)
                    to += 2
                p += 16
        return found
    finally:
        close(&views)
