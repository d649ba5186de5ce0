# Columns of a segment for metrics: costs from the pages of Parquet, and a tag of each row from Arrow's maps.
#
# A page is a data page of version 1, as it is unpacked: which values are there, then those that are, without gaps.
#
#     page = length (u32), runs, values of `COST_BYTES` bytes, the highest first
#     runs = header (varint), then: if it is odd, header >> 1 bytes with a bit for each value; else one byte, 0 or 1,
#            for header >> 1 values
#
# https://parquet.apache.org/docs/file-format/data-pages/encodings/

cdef enum:
    COST_BYTES = 9  # of 19 digits; Arrow has 16, the lowest first


cdef uint64_t SPREAD[256]  # bits -> bytes
for _value in range(256):
    SPREAD[_value] = sum((_value >> _place & 1) << 8 * _place for _place in range(8))


cdef bint unpack_presence(const uint8_t* p, const uint8_t* end, int64_t count, uint8_t* to) noexcept nogil:
    # A byte, 0 or 1, for each value; False: there are fewer.
    cdef uint64_t header
    cdef int64_t done = 0, i, size, many
    while done < count:
        p = varint(p, end, &header)
        if p == NULL or p == end or header >> 1 == 0 or header >> 32:
            return False
        size = <int64_t>(header >> 1)
        if header & 1:
            if size > end - p:
                return False
            many = min(8 * size, count - done)
            for i in range(many >> 3):
                memcpy(to + done + 8 * i, &SPREAD[p[i]], 8)
            for i in range(many & ~7, many):
                to[done + i] = p[i >> 3] >> (i & 7) & 1
            p += size
        else:
            if p[0] > 1:
                return False
            many = min(size, count - done)
            memset(to + done, p[0], many)
            p += 1
        done += many
    return True


cdef int64_t add_costs(
    const uint8_t* p, const uint8_t* end, int64_t count, uint8_t* defined, uint8_t* bits, int64_t first, uint8_t* to
) noexcept nogil:
    # How many of the page's values are there, which are written from `first` on; -1: it is not as it should be.
    cdef int64_t i, size, present = 0, high
    cdef uint64_t low
    if end - p < 4:
        return -1
    size = load32(p)
    p += 4
    if size > end - p or not unpack_presence(p, p + size, count, defined):
        return -1
    p += size
    for i in range(count):
        present += defined[i]
    if end - p < present * COST_BYTES:
        return -1
    for i in range(first, first + count):
        if defined[i - first]:
            high, low = <signed char>p[0], swap64(load64(p + 1))
            p += COST_BYTES
            bits[i >> 3] |= <uint8_t>(1 << (i & 7))
        else:
            high = low = 0
        memcpy(to + 16 * i, &low, 8)
        memcpy(to + 16 * i + 8, &high, 8)
    return present


def cost_column(list pages, int64_t rows):
    """The costs of a row group as Arrow has decimals, the bits of those that are there, and how many are not, from pages
    as (bytes, number of values, nulls included). None: the pages are not of this form, or have more or fewer rows.
    """
    cdef Py_buffer view
    cdef int64_t total = 0, present = 0, found = 0, count
    cdef uint8_t* to
    cdef uint8_t* bits
    cdef uint8_t* defined
    cdef object data
    if not 0 <= rows <= MOST_OF_PAGE:
        return None
    for _, count in pages:
        if count < 0 or count > rows:
            return None
        total += count
    if total != rows:
        return None
    values = PyBytes_FromStringAndSize(NULL, 16 * rows)
    there = PyBytes_FromStringAndSize(NULL, (rows + 7) >> 3)
    to, bits = <uint8_t*>PyBytes_AsString(values), <uint8_t*>PyBytes_AsString(there)
    memset(bits, 0, (rows + 7) >> 3)
    defined = <uint8_t*>malloc(rows + 1)
    if defined == NULL:
        raise MemoryError
    total = 0
    try:
        for data, count in pages:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            with nogil:
                found = add_costs(
                    <const uint8_t*>view.buf, <const uint8_t*>view.buf + view.len, count, defined, bits, total, to
                )
            PyBuffer_Release(&view)
            if found < 0:
                return None
            total, present = total + count, present + found
    finally:
        free(defined)
    return values, there, rows - present


def tag_places(offsets, keys, items, there, int64_t start, int64_t rows, bytes wanted, int64_t absent):
    """Of each row of a map which item, as a number of a dictionary, its first wanted key has, as 64 bits; `absent`: none.

    `offsets`, `keys` and `items`: Arrow's buffers of 32 bits of the map and of both dictionaries' numbers, `there` the bits
    of the items that are not null, None: all; `start`: the first row's place in `offsets`; `wanted`: a byte for each key of
    the dictionary. Raises `ValueError` for what does not lie in the buffers.
    """
    cdef Py_buffer views[4]
    cdef int open_views = 0, i
    cdef const int32_t* bounds
    cdef const int32_t* names
    cdef const int32_t* places
    cdef const uint8_t* bits = NULL
    cdef const uint8_t* is_wanted = <const uint8_t*>PyBytes_AsString(wanted)
    cdef int64_t size, choices = len(wanted), row, pair, found
    cdef int64_t* to
    cdef bint fits = True
    cdef object each
    try:
        for each in (offsets, keys, items, there):
            if each is not None:
                PyObject_GetBuffer(each, views + open_views, PyBUF_SIMPLE)
                open_views += 1
        if open_views < 3 or start < 0 or rows < 0 or views[0].len < 4 * (start + rows + 1):
            raise ValueError("there are fewer maps")
        bounds, names = <const int32_t*>views[0].buf + start, <const int32_t*>views[1].buf
        places, size = <const int32_t*>views[2].buf, min(views[1].len, views[2].len) >> 2
        if open_views == 4:
            bits, size = <const uint8_t*>views[3].buf, min(size, 8 * views[3].len)
        result = PyBytes_FromStringAndSize(NULL, 8 * rows)
        to = <int64_t*>PyBytes_AsString(result)
        with nogil:
            for row in range(rows):
                if not 0 <= bounds[row] <= bounds[row + 1] <= size:
                    fits = False
                    break
                found = absent
                for pair in range(bounds[row + 1] - 1, bounds[row] - 1, -1):
                    if not 0 <= names[pair] < choices:
                        fits = False
                        break
                    if is_wanted[names[pair]]:
                        found = places[pair] if bits == NULL or bits[pair >> 3] >> (pair & 7) & 1 else absent
                to[row] = found
    finally:
        for i in range(open_views):
            PyBuffer_Release(views + i)
    if not fits:
        raise ValueError("there are fewer maps")
    return result


def sums_of_calls(list columns not None, flags, int64_t first, int64_t last):
    """Of the rows from `first` on, before `last`: how many are calls, of these failed ones and such without a cost, and
    the sums of columns over the calls, as two numbers each: of the upper 32 bits, and of the lower ones.

    `flags`: a byte a row, 1 for a call and 2 for what failed. `columns`: (bits, data, start, width) by Arrow's buffers, of
    whole numbers (8) or decimals (16) that are not negative and fit into 64 bits; the last one has the costs.
    """
    cdef Views views
    cdef const uint8_t* marks
    cdef const uint8_t* data
    cdef const uint8_t* bits
    cdef int64_t i, start, width, calls = 0, errors = 0, present = 0
    cdef int32_t views_before
    cdef uint64_t high, low, number
    cdef list found = []
    views.count = 0
    if not 0 <= first <= last:
        raise ValueError("no rows")
    try:
        marks = <const uint8_t*>opened(&views, flags, -1, 1)
        if views.view[0].len < last:
            raise ValueError("there are fewer rows")
        for i in range(first, last):
            calls += marks[i] & 1
            errors += marks[i] == 3
        for there, values, start, width in columns:
            views_before = views.count
            data = <const uint8_t*>opened(&views, values, -1, 1)
            if start < 0 or width not in (8, 16) or views.view[views.count - 1].len < width * (start + last):
                raise ValueError("there are fewer values")
            bits = bits_in(&views, there, start, last)
            high = low = 0
            present = 0
            with nogil:
                for i in range(first, last):
                    if marks[i] & 1 and is_there(bits, start + i):
                        number = load64(data + width * (start + i))
                        high += number >> 32
                        low += <uint32_t>number
                        present += 1
            found.append((high, low))
            while views.count > views_before:
                views.count -= 1
                PyBuffer_Release(&views.view[views.count])
    finally:
        close(&views)
    return calls, errors, calls - present, found
