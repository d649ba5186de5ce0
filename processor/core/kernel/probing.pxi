# Look-ups of many keys in hash tables that numpy arrays hold: one pass a key instead of rounds over all of them.

cdef extern from "Python.h":
    ctypedef struct Py_buffer:
        void* buf
        Py_ssize_t len
    int PyBUF_SIMPLE
    int PyBUF_WRITABLE
    char* PyByteArray_AsString(object) except NULL
    int PyObject_GetBuffer(object, Py_buffer*, int) except -1
    void PyBuffer_Release(Py_buffer*)

cdef extern from *:
    """
    #define PREFETCH(p) __builtin_prefetch((p), 0, 1)
    static inline uint32_t load_mark(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    uint32_t load_mark(const uint32_t*) nogil  # another thread writes a claim's mark last
    void PREFETCH(const void*) nogil

cdef enum:
    MOST_VIEWS = 12
    AHEAD = 16            # keys whose memory is asked for before it is needed
    PLACES = 8            # ids of a bucket of the id index (processor/ids/probe.py)
    BUCKET = 56           # its words: when claimed, the first word of the key, and five more, of each id

cdef struct Views:
    int32_t count
    Py_buffer view[MOST_VIEWS]


cdef const void* opened(Views* views, object array, Py_ssize_t items, Py_ssize_t size) except NULL:
    # The memory of a contiguous array of so many items of a size; any number of them if `items` is -1.
    cdef Py_buffer* view = &views.view[views.count]
    PyObject_GetBuffer(array, view, PyBUF_SIMPLE)
    views.count += 1
    if (items >= 0 and view.len != items * size) or view.buf == NULL:
        raise ValueError("an array of another size")
    return view.buf


cdef void* opened_to_write(Views* views, object array) except NULL:
    # The same of any number of items.
    cdef Py_buffer* view = &views.view[views.count]
    PyObject_GetBuffer(array, view, PyBUF_WRITABLE)
    views.count += 1
    if view.buf == NULL:
        raise ValueError("an array of another size")
    return view.buf


cdef void close(Views* views) noexcept:
    cdef int32_t i
    for i in range(views.count):
        PyBuffer_Release(&views.view[i])


cdef bint find_claims(
    const uint32_t* words, const int64_t* first, const int64_t* wrap, const uint64_t* shift, const uint64_t* multiplier,
    const uint64_t* twist, const int64_t* base, const uint64_t* keys, const int64_t* rows, const int64_t* segments,
    int64_t count, int64_t* held, uint64_t* digests, int64_t* ends,
) noexcept nogil:
    # False: a segment has no free place left.
    cdef int64_t homes[AHEAD]
    cdef int64_t i, k, s, bucket, at, looked
    cdef uint64_t low, high, mixed
    cdef uint32_t mark, claimed
    cdef int32_t place, free_place
    cdef const uint32_t* w
    for i in range(count):
        if i % AHEAD == 0:
            for k in range(i, min(i + AHEAD, count)):
                s = segments[k]
                mixed = (keys[2 * rows[k] + 1] * multiplier[s]) ^ keys[2 * rows[k]] ^ twist[s]
                homes[k - i] = <int64_t>(mixed * multiplier[s] >> shift[s]) if wrap[s] else 0
                w = words + PLACES * first[s] + BUCKET * homes[k - i]
                PREFETCH(w)
                PREFETCH(w + 16)
        s = segments[i]
        low, high = keys[2 * rows[i]], keys[2 * rows[i] + 1]
        bucket = homes[i % AHEAD]
        held[i], digests[i], looked = -1, 0, 0
        while True:
            at = PLACES * first[s] + BUCKET * bucket
            w = words + at
            mark, free_place = 0, -1
            for place in range(PLACES):
                claimed = load_mark(w + place)
                if claimed == 0:
                    if free_place < 0:
                        free_place = place
                elif (
                    w[PLACES + place] == <uint32_t>low and w[16 + 5 * place] == <uint32_t>(low >> 32)
                    and w[17 + 5 * place] == <uint32_t>high and w[18 + 5 * place] == <uint32_t>(high >> 32)
                ):
                    mark = claimed
                    ends[i] = at + place
                    digests[i] = <uint64_t>w[20 + 5 * place] << 32 | w[19 + 5 * place]
            if mark:
                held[i] = <int64_t>mark + base[s] - 1
                break
            if free_place >= 0:
                ends[i] = at + free_place
                break
            looked += 1
            if looked > wrap[s]:
                return False
            bucket = (bucket + 1) & wrap[s]
    return True


def find(words, first, wrap, shift, multiplier, twist, base, keys, rows, segments):
    """`processor.ids.probe.find`, whose arrays these are: what it returns, as bytearrays of `held`, `digests` and `ends`.

    Raises `ValueError` for arrays that do not fit together, and for a segment without a free place.
    """
    cdef Py_ssize_t count = len(rows), layouts = len(first), known = len(keys), i
    cdef Views views
    cdef const int64_t* starts
    cdef const int64_t* wraps
    cdef const int64_t* asked
    cdef const int64_t* homes
    cdef const uint64_t* shifts
    cdef bint is_whole
    views.count = 0
    held = bytearray(8 * count)
    digests = bytearray(8 * count)
    ends = bytearray(8 * count)
    cdef int64_t* to_held = <int64_t*>PyByteArray_AsString(held)
    cdef uint64_t* to_digests = <uint64_t*>PyByteArray_AsString(digests)
    cdef int64_t* to_ends = <int64_t*>PyByteArray_AsString(ends)
    if not count:
        return held, digests, ends
    try:
        memory = <const uint32_t*>opened(&views, words, -1, 4)
        length = views.view[0].len // 4
        starts = <const int64_t*>opened(&views, first, layouts, 8)
        wraps = <const int64_t*>opened(&views, wrap, layouts, 8)
        shifts = <const uint64_t*>opened(&views, shift, layouts, 8)
        multipliers = <const uint64_t*>opened(&views, multiplier, layouts, 8)
        twists = <const uint64_t*>opened(&views, twist, layouts, 8)
        bases = <const int64_t*>opened(&views, base, layouts, 8)
        numbers = <const uint64_t*>opened(&views, keys, known, 16)
        asked = <const int64_t*>opened(&views, rows, count, 8)
        homes = <const int64_t*>opened(&views, segments, count, 8)
        for i in range(layouts):
            # The home of a key has as many bits as the places of buckets have.
            if starts[i] < 0 or wraps[i] < 0 or (wraps[i] and not 0 < shifts[i] < 64):
                raise ValueError("no layout of a segment")
            if wraps[i] and <uint64_t>wraps[i] != (~<uint64_t>0) >> shifts[i]:
                raise ValueError("no layout of a segment")
            if PLACES * starts[i] + BUCKET * (wraps[i] + 1) > length:
                raise ValueError("a segment goes beyond the arena")
        for i in range(count):
            if not (0 <= asked[i] < known and 0 <= homes[i] < layouts):
                raise ValueError("no such key or segment")
        with nogil:
            is_whole = find_claims(
                memory, starts, wraps, shifts, multipliers, twists, bases, numbers, asked, homes, count, to_held,
                to_digests, to_ends,
            )
        if not is_whole:
            raise ValueError("a segment has no free place left")
        return held, digests, ends
    finally:
        close(&views)


def probe(table, kept, hashes, int bits):
    """`HashIndex._probe`: the numbers of hashes in a table, -1 for those that it does not have, as a bytearray. `kept`: the
    segments of the hashes that are numbered, 2^`bits` of them in each but the last.

    Raises `ValueError` for arrays that do not fit together, and for a table without a free place.
    """
    cdef Py_ssize_t count = len(hashes), size = len(table), segments = len(kept), i
    cdef Views views
    cdef uint64_t mask = size - 1, low, step, at, word, looked
    cdef int64_t number
    cdef const uint64_t* words
    cdef const uint64_t* wanted
    cdef const uint64_t* held
    cdef const uint64_t** parts = <const uint64_t**>malloc((segments + 1) * sizeof(void*))
    cdef int64_t* room = <int64_t*>malloc((segments + 1) * sizeof(int64_t))
    cdef bint is_whole = True
    views.count = 0
    numbers = bytearray(8 * count)
    cdef int64_t* found = <int64_t*>PyByteArray_AsString(numbers)
    try:
        if parts == NULL or room == NULL:
            raise MemoryError
        if not count:
            return numbers
        if not 0 <= bits < 32:
            raise ValueError("no size of a segment")
        if size & (size - 1) or not size:
            raise ValueError("the size of a table is a power of two")
        words = <const uint64_t*>opened(&views, table, size, 8)
        wanted = <const uint64_t*>opened(&views, hashes, count, 16)
        for i in range(segments):
            # An array stays where it is while the list has it: the view need not be kept.
            room[i] = len(kept[i])
            parts[i] = <const uint64_t*>opened(&views, kept[i], room[i], 16)
            views.count -= 1
            PyBuffer_Release(&views.view[views.count])
        with nogil:
            for i in range(count):
                if i + AHEAD < count:
                    PREFETCH(words + (wanted[2 * (i + AHEAD)] & mask))
                low, step, looked = wanted[2 * i], wanted[2 * i + 1] | 1, 0
                at = low & mask
                found[i] = -1
                while True:
                    word = words[at]
                    if word == 0:
                        break
                    if (word ^ low) >> 32 == 0:
                        number = <int64_t>(<uint32_t>word) - 1
                        if number < 0 or number >> bits >= segments:
                            is_whole = False
                            break
                        if (number & ((<int64_t>1 << bits) - 1)) >= room[number >> bits]:
                            is_whole = False
                            break
                        held = parts[number >> bits] + 2 * (number & ((<int64_t>1 << bits) - 1))
                        if held[0] == low and held[1] == wanted[2 * i + 1]:
                            found[i] = number
                            break
                    looked += 1
                    if looked > mask:
                        is_whole = False
                        break
                    at = (at + step) & mask
        if not is_whole:
            raise ValueError("a table of other hashes, or without a free place")
        return numbers
    finally:
        close(&views)
        free(parts)
        free(room)


def put(table, hashes, numbers):
    """`HashIndex._insert`: words for hashes and their numbers, into a table that has room for them.

    Raises `ValueError` for arrays that do not fit together, and for a table without a free place: then some may be in it.
    """
    cdef Py_ssize_t count = len(hashes), size = len(table), i
    cdef Views views
    cdef uint64_t mask = size - 1, at, step, looked = 0
    cdef uint64_t* words
    cdef const uint64_t* hash_of
    cdef const int64_t* number
    views.count = 0
    if not count:
        return
    try:
        if size & (size - 1) or not size:
            raise ValueError("the size of a table is a power of two")
        words = <uint64_t*>opened_to_write(&views, table)
        if views.view[0].len != 8 * size:
            raise ValueError("an array of another size")
        hash_of = <const uint64_t*>opened(&views, hashes, count, 16)
        number = <const int64_t*>opened(&views, numbers, count, 8)
        with nogil:
            for i in range(count):
                if i + AHEAD < count:
                    PREFETCH(words + (hash_of[2 * (i + AHEAD)] & mask))
                at, step, looked = hash_of[2 * i] & mask, hash_of[2 * i + 1] | 1, 0
                while words[at] != 0 and looked <= mask:
                    looked += 1
                    at = (at + step) & mask
                if looked > mask:
                    break
                words[at] = (hash_of[2 * i] >> 32 << 32) | (<uint64_t>number[i] + 1)
        if looked > mask:
            raise ValueError("a table without a free place")
    finally:
        close(&views)
