# Columns of rows that point into dictionaries of Python objects, and what a stream's requests hold.

cdef extern from "Python.h":
    int PyObject_RichCompareBool(object, object, int) except -1

cdef enum:
    EQUAL = 2  # Py_EQ


cdef inline int64_t code_at(const uint8_t* rows, Py_ssize_t row, Py_ssize_t width, Py_ssize_t offset) noexcept nogil:
    cdef uint16_t code
    memcpy(&code, rows + row * width + offset, 2)
    return code


cdef Py_ssize_t known_value(list values, list dictionary, int32_t* slots, uint64_t* hashes, uint64_t mask, int32_t* places) except -1:
    # Put what is new of a dictionary behind `values`, and say where each of it is there; returns how many there are then.
    cdef Py_ssize_t known = len(values), i, number
    cdef uint64_t hash, slot
    for i in range(len(dictionary)):
        value = dictionary[i]
        hash = <uint64_t>PyObject_Hash(value)
        slot = (hash * PRIME_1 >> 32) & mask
        while slots[slot]:
            number = slots[slot] - 1
            if hashes[number] == hash:
                other = values[number]
                if other is value or PyObject_RichCompareBool(other, value, EQUAL):
                    break
            slot = (slot + 1) & mask
        if not slots[slot]:
            values.append(value)
            hashes[known] = hash
            known += 1
            slots[slot] = <int32_t>known
        places[i] = slots[slot] - 1
    return known


def one_dictionary(rows, Py_ssize_t width, Py_ssize_t offset, list dictionaries not None, list sizes not None, bint in_order):
    """Let a column of 16 bits of `rows`, which have so many bytes each, point into one dictionary, and return that:
    `sizes` rows point into each of `dictionaries`. It has what some row points to, and that in the order of the rows, or
    as the dictionaries have it where all is pointed to and not `in_order`.

    None: a row points to nothing, or there is more than the column can number; then nothing has been changed.
    """
    cdef Py_ssize_t parts = len(dictionaries), part, start = 0, names = 0, known = 0, i, count, length, used = 0, longest = 0
    cdef uint64_t mask = 16
    cdef Views views
    cdef uint8_t* row
    cdef int32_t* codes = NULL
    cdef int32_t* places
    cdef int32_t* slots = NULL
    cdef int32_t* numbers_of = NULL
    cdef uint64_t* hashes = NULL
    cdef int64_t code
    cdef list values, dictionary, joined = []
    cdef bint is_one = True
    cdef uint16_t narrow
    if not parts or len(sizes) != parts or width < 2 or not 0 <= offset <= width - 2:
        raise ValueError("no column, or no dictionary for it")
    for part in range(parts):
        if part and dictionaries[part] is dictionaries[part - 1]:
            continue
        dictionary = dictionaries[part]
        names += len(dictionary)
        longest = max(longest, len(dictionary))
        is_one = is_one and part == 0
    if names > 0x3FFFFFFF:
        return None
    while mask < 2 * <uint64_t>names:
        mask *= 2
    views.count = 0
    try:
        row = <uint8_t*>opened_to_write(&views, rows)
        count = views.view[0].len // width
        if views.view[0].len % width:
            raise ValueError("rows of another width")
        codes = <int32_t*>malloc((count + longest + 1) * sizeof(int32_t))
        if codes == NULL:
            raise MemoryError
        places = codes + count
        if not is_one:
            slots = <int32_t*>calloc(mask, sizeof(int32_t))
            hashes = <uint64_t*>malloc((names + 1) * sizeof(uint64_t))
            if slots == NULL or hashes == NULL:
                raise MemoryError
        for part in range(parts):
            dictionary = dictionaries[part]
            length = len(dictionary)
            if not is_one and (not part or dictionary is not dictionaries[part - 1]):
                known = known_value(joined, dictionary, slots, hashes, mask - 1, places)
            i = sizes[part]
            if i < 0 or i > count - start:
                return None
            for i in range(start, start + i):
                code = code_at(row, i, width, offset)
                if code >= length:
                    return None
                codes[i] = <int32_t>code if is_one else places[code]
            start += sizes[part]
        values = dictionaries[0] if is_one else joined
        known = len(values)
        if start != count or known > MOST_ROWS:
            return None
        numbers_of = <int32_t*>calloc(known + 1, sizeof(int32_t))
        if numbers_of == NULL:
            raise MemoryError
        for i in range(count):
            if not numbers_of[codes[i]]:
                used += 1
                numbers_of[codes[i]] = <int32_t>used
        if in_order or used < known:
            joined = [None] * used
            for i in range(known):
                if numbers_of[i]:
                    joined[numbers_of[i] - 1] = values[i]
            values = joined
        elif is_one:
            return values
        for i in range(count):
            narrow = <uint16_t>(numbers_of[codes[i]] - 1 if in_order or used < known else codes[i])
            memcpy(row + i * width + offset, &narrow, 2)
        return values
    finally:
        close(&views)
        free(codes)
        free(slots)
        free(hashes)
        free(numbers_of)


def split_request(bytes raw not None, Py_ssize_t limit):
    """The sequence of an `IngestRequest` and the bytes of its events, of which no more than `limit` + 1 are looked for.
    None: it has something else, or is not in its plainest form."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AsString(raw)
    cdef const uint8_t* end = p + PyBytes_Size(raw)
    cdef const uint8_t* start
    cdef uint64_t sequence = 0
    cdef Py_ssize_t count = 0
    cdef list events = []
    while p < end and count <= limit:
        if p[0] == (2 << 3 | BYTES):
            p = sized(p + 1, end, &start)
            if p == NULL:
                return None
            events.append(PyBytes_FromStringAndSize(<const char*>start, p - start))
            count += 1
        elif p[0] == (1 << 3 | VARINT):
            p = varint(p + 1, end, &sequence)
            if p == NULL:
                return None
        else:
            return None
    return sequence, events
