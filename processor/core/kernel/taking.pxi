# Rows of several Arrow arrays as one: what joining the arrays and then taking from the whole gives, without the whole.
#
# Row i of the result is row `rows[i]` (int32) of array `pieces[i]` (uint16). All functions return the bits of the rows that
# are there, None: all, and then the other buffers. They raise `ValueError` for what does not lie in the buffers.

cdef struct TakenArray:
    Py_buffer views[3]
    int32_t open_views
    const uint8_t* there   # NULL: all
    const uint8_t* data    # or offsets
    const uint8_t* names   # of codes: the number of each in the result
    int64_t start
    int64_t count
    int64_t items          # of lists, or numbers in `names`

cdef struct Taken:
    TakenArray* arrays
    int64_t known
    const uint16_t* pieces
    const int32_t* rows
    int64_t count
    Views views


cdef const uint8_t* taken_view(TakenArray* array, object data, int64_t size) except? NULL:
    cdef Py_buffer* view = array.views + array.open_views
    PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    array.open_views += 1
    if view.len < size:
        raise ValueError("there are fewer values")
    return <const uint8_t*>view.buf


cdef int open_places(Taken* taken, pieces, rows) except -1:
    taken.views.count = 0
    taken.arrays, taken.known = NULL, 0
    taken.rows = <const int32_t*>opened(&taken.views, rows, -1, 4)
    taken.count = taken.views.view[0].len // 4
    taken.pieces = <const uint16_t*>opened(&taken.views, pieces, taken.count, 2)
    return 0


cdef int open_taken(Taken* taken, list arrays, pieces, rows, int64_t width) except -1:
    # Arrays as (bits, data, start, count), and more. `width`: bytes of an item, 0: a bit.
    cdef TakenArray* array
    cdef int64_t size
    open_places(taken, pieces, rows)
    taken.arrays = <TakenArray*>calloc(len(arrays) + 1, sizeof(TakenArray))
    if taken.arrays == NULL:
        raise MemoryError
    for each in arrays:
        array = taken.arrays + taken.known
        taken.known += 1
        array.start, array.count = each[2], each[3]
        if array.start < 0 or array.count < 0:
            raise ValueError("no rows")
        size = array.start + array.count
        if each[0] is not None:
            array.there = taken_view(array, each[0], (size + 7) >> 3)
        array.data = taken_view(array, each[1], width * size if width else (size + 7) >> 3)
    return 0


cdef void close_taken(Taken* taken) noexcept:
    cdef int64_t i
    cdef int32_t k
    for i in range(taken.known):
        for k in range(taken.arrays[i].open_views):
            PyBuffer_Release(taken.arrays[i].views + k)
    free(taken.arrays)
    close(&taken.views)


cdef int check_places(const Taken* taken) except -1:
    # All rows lie in their arrays.
    cdef int64_t i
    cdef uint16_t piece
    cdef bint fits = True
    cdef uint32_t* limits = <uint32_t*>malloc((taken.known + 1) * sizeof(uint32_t))
    if limits == NULL:
        raise MemoryError
    for i in range(taken.known):
        limits[i] = <uint32_t>min(taken.arrays[i].count, 0x7FFFFFFF)
    with nogil:
        for i in range(taken.count):
            piece = taken.pieces[i]
            if piece >= taken.known or <uint32_t>taken.rows[i] >= limits[piece]:
                fits = False
                break
    free(limits)
    if not fits:
        raise ValueError("a row that is not there")
    return 0


cdef object taken_bits(const Taken* taken, int64_t* nulls):
    cdef int64_t i
    cdef const TakenArray* array
    cdef uint8_t* bits
    cdef bint is_whole = True
    check_places(taken)
    for i in range(taken.known):
        is_whole = is_whole and taken.arrays[i].there == NULL
    nulls[0] = 0
    if is_whole:
        return None
    found = PyBytes_FromStringAndSize(NULL, (taken.count + 7) >> 3)
    bits = <uint8_t*>PyBytes_AsString(found)
    memset(bits, 0, (taken.count + 7) >> 3)
    with nogil:
        for i in range(taken.count):
            array = taken.arrays + taken.pieces[i]
            if is_there(array.there, array.start + taken.rows[i]):
                bits[i >> 3] |= <uint8_t>(1 << (i & 7))
            else:
                nulls[0] += 1
    return found if nulls[0] else None


def take_numbers(list arrays not None, pieces, rows, int64_t width):
    """Rows of numbers of 4, 8 or 16 bytes, or of truths (0); arrays as (bits, data, start, count)."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef const uint8_t* p
    cdef uint8_t* to
    cdef int64_t i, nulls, place
    if width not in (0, 4, 8, 16):
        raise ValueError("numbers of another size")
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, pieces, rows, width)
        bits = taken_bits(&taken, &nulls)
        size = width * taken.count if width else (taken.count + 7) >> 3
        found = PyBytes_FromStringAndSize(NULL, size)
        to = <uint8_t*>PyBytes_AsString(found)
        with nogil:
            if not width:
                memset(to, 0, (taken.count + 7) >> 3)
            for i in range(taken.count):
                array = taken.arrays + taken.pieces[i]
                place = array.start + taken.rows[i]
                if width == 8:
                    memcpy(to + 8 * i, array.data + 8 * place, 8)
                elif width == 4:
                    memcpy(to + 4 * i, array.data + 4 * place, 4)
                elif width:
                    memcpy(to + 16 * i, array.data + 16 * place, 16)
                else:
                    to[i >> 3] |= <uint8_t>((array.data[place >> 3] >> (place & 7) & 1) << (i & 7))
        return bits, found, nulls
    finally:
        close_taken(&taken)


def take_codes(list arrays not None, pieces, rows):
    """Rows of numbers (int32) of dictionaries; arrays as (bits, numbers, start, count, names), where `names` says what
    each number of the array's dictionary is in the result's (int32)."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef TakenArray* opened_array
    cdef uint8_t* to
    cdef int64_t i, nulls
    cdef int32_t code
    cdef bint fits = True
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, pieces, rows, 4)
        for i in range(taken.known):
            opened_array = taken.arrays + i
            opened_array.names = taken_view(opened_array, arrays[i][4], 0)
            opened_array.items = opened_array.views[opened_array.open_views - 1].len >> 2
        bits = taken_bits(&taken, &nulls)
        found = PyBytes_FromStringAndSize(NULL, 4 * taken.count)
        to = <uint8_t*>PyBytes_AsString(found)
        with nogil:
            for i in range(taken.count):
                array = taken.arrays + taken.pieces[i]
                code = 0
                if is_there(array.there, array.start + taken.rows[i]):
                    memcpy(&code, array.data + 4 * (array.start + taken.rows[i]), 4)
                    if not 0 <= code < array.items:
                        fits = False
                        break
                    memcpy(&code, array.names + 4 * code, 4)
                memcpy(to + 4 * i, &code, 4)
        if not fits:
            raise ValueError("a value that the dictionary does not have")
        return bits, found, nulls
    finally:
        close_taken(&taken)


def take_texts(list arrays not None, pieces, rows):
    """Rows of texts; arrays as (bits, offsets, start, count, data)."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef IdTexts* texts = NULL
    cdef const uint8_t* p
    cdef uint8_t* to
    cdef uint8_t* bounds
    cdef int64_t i, nulls, size, total = 0, known = 0
    cdef int32_t end
    cdef bint fits = True
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, pieces, rows, 4)
        bits = taken_bits(&taken, &nulls)
        texts = <IdTexts*>calloc(len(arrays) + 1, sizeof(IdTexts))
        if texts == NULL:
            raise MemoryError
        for each in arrays:
            known += 1
            open_texts(texts + known - 1, each[0], each[4], each[1], each[2], each[3])
        offsets = PyBytes_FromStringAndSize(NULL, 4 * (taken.count + 1))
        bounds = <uint8_t*>PyBytes_AsString(offsets)
        with nogil:
            for i in range(taken.count):
                end = <int32_t>total
                memcpy(bounds + 4 * i, &end, 4)
                if is_there(texts[taken.pieces[i]].there, texts[taken.pieces[i]].start + taken.rows[i]):
                    if text_at(texts + taken.pieces[i], taken.rows[i], &size) == NULL:
                        fits = False
                        break
                    total += size
            end = <int32_t>total
            memcpy(bounds + 4 * taken.count, &end, 4)
        if not fits or total > 0x7FFFFFFF - SLACK:
            raise ValueError("a text outside of the data")
        found = bytearray(total + SLACK)
        to = <uint8_t*>PyByteArray_AsString(found)
        with nogil:
            for i in range(taken.count):
                if is_there(texts[taken.pieces[i]].there, texts[taken.pieces[i]].start + taken.rows[i]):
                    p = text_at(texts + taken.pieces[i], taken.rows[i], &size)
                    copy_text(to, p, size, texts[taken.pieces[i]].data + texts[taken.pieces[i]].size)
                    to += size
        return bits, offsets, found, nulls
    finally:
        if texts != NULL:
            for i in range(known):
                close_texts(texts + i)
            free(texts)
        close_taken(&taken)


def take_lists(list arrays not None, pieces, rows):
    """Rows of lists or maps; arrays as (bits, offsets, start, count, items). Instead of items, for each the piece
    (uint16) and the row (int32) that it is to be taken from."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef uint8_t* bounds
    cdef uint8_t* homes
    cdef uint8_t* places
    cdef int64_t i, nulls, total = 0, items
    cdef int32_t end, low, high, k
    cdef bint fits = True
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, pieces, rows, 4)
        for i in range(taken.known):
            taken.arrays[i].items = arrays[i][4]
            if taken.arrays[i].views[taken.arrays[i].open_views - 1].len < 4 * (taken.arrays[i].start + taken.arrays[i].count + 1):
                raise ValueError("there are fewer rows")
        bits = taken_bits(&taken, &nulls)
        offsets = PyBytes_FromStringAndSize(NULL, 4 * (taken.count + 1))
        bounds = <uint8_t*>PyBytes_AsString(offsets)
        with nogil:
            for i in range(taken.count):
                end = <int32_t>total
                memcpy(bounds + 4 * i, &end, 4)
                array = taken.arrays + taken.pieces[i]
                if not is_there(array.there, array.start + taken.rows[i]):
                    continue
                memcpy(&low, array.data + 4 * (array.start + taken.rows[i]), 4)
                memcpy(&high, array.data + 4 * (array.start + taken.rows[i] + 1), 4)
                if not 0 <= low <= high <= array.items:
                    fits = False
                    break
                total += high - low
                if total > 0x7FFFFFFF:
                    fits = False
                    break
            end = <int32_t>total
            memcpy(bounds + 4 * taken.count, &end, 4)
        if not fits:
            raise ValueError("items outside of the data")
        item_pieces = PyBytes_FromStringAndSize(NULL, 2 * total)
        item_rows = PyBytes_FromStringAndSize(NULL, 4 * total)
        homes, places = <uint8_t*>PyBytes_AsString(item_pieces), <uint8_t*>PyBytes_AsString(item_rows)
        items = 0
        with nogil:
            for i in range(taken.count):
                array = taken.arrays + taken.pieces[i]
                if not is_there(array.there, array.start + taken.rows[i]):
                    continue
                memcpy(&low, array.data + 4 * (array.start + taken.rows[i]), 4)
                memcpy(&high, array.data + 4 * (array.start + taken.rows[i] + 1), 4)
                for k in range(low, high):
                    memcpy(homes + 2 * items, taken.pieces + i, 2)
                    memcpy(places + 4 * items, &k, 4)
                    items += 1
        return bits, offsets, item_pieces, item_rows, nulls
    finally:
        close_taken(&taken)
