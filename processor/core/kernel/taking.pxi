# Rows of several Arrow arrays as one: what joining the arrays and then taking from the whole gives, without the whole.
#
# Row i of the result is row `rows[i]` (int32) of array `pieces[i]` (uint16): `taken_places` copies both and notes how many
# rows each array has to have at least, so that this is not compared row by row for each column, half of what numbers
# took. All other functions return the bits of the rows that are there, None: all, and then the other buffers. They raise
# `ValueError` for what does not lie in the buffers.

cdef extern from *:
    """
    static const char PLACES_NAME[] = "spendstream.places";
    static void free_places(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, PLACES_NAME)); }
    static PyObject *places_capsule(void *places) { return PyCapsule_New(places, PLACES_NAME, free_places); }
    static void *places_in(PyObject *capsule) { return PyCapsule_GetPointer(capsule, PLACES_NAME); }
    """
    object places_capsule(void*)
    void* places_in(object) except NULL

cdef struct TakenPlaces:
    int64_t count
    int64_t known      # arrays that are named, by their numbers at most
    int64_t* ends      # of each of them, the greatest row and one
    int32_t* rows
    uint16_t* pieces


cdef TakenPlaces* new_places(int64_t count, int64_t known) except NULL:
    # In one piece of memory.
    cdef TakenPlaces* places = <TakenPlaces*>malloc(sizeof(TakenPlaces) + 8 * known + 6 * count)
    if places == NULL:
        raise MemoryError
    places.count, places.known = count, known
    places.ends = <int64_t*>(places + 1)
    places.rows = <int32_t*>(places.ends + known)
    places.pieces = <uint16_t*>(places.rows + count)
    memset(places.ends, 0, 8 * known)
    return places


def taken_places(pieces, rows):
    """TakenPlaces that rows are taken from, for the functions below."""
    cdef Views views
    cdef TakenPlaces* places = NULL
    cdef const int32_t* from_rows
    cdef const uint16_t* from_pieces
    cdef int64_t i, count
    cdef uint16_t most = 0
    cdef int32_t least = 0
    views.count = 0
    try:
        from_rows = <const int32_t*>opened(&views, rows, -1, 4)
        count = views.view[0].len // 4
        from_pieces = <const uint16_t*>opened(&views, pieces, count, 2)
        for i in range(count):
            most = max(most, from_pieces[i])
            least = min(least, from_rows[i])
        if least < 0:
            raise ValueError("a row that is not there")
        places = new_places(count, <int64_t>most + 1 if count else 0)
        memcpy(places.rows, from_rows, 4 * count)
        memcpy(places.pieces, from_pieces, 2 * count)
        for i in range(count):
            if places.rows[i] >= places.ends[places.pieces[i]]:
                places.ends[places.pieces[i]] = <int64_t>places.rows[i] + 1
        return places_capsule(places)
    finally:
        close(&views)


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


cdef const uint8_t* taken_view(TakenArray* array, object data, int64_t size) except? NULL:
    cdef Py_buffer* view = array.views + array.open_views
    PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    array.open_views += 1
    if view.len < size:
        raise ValueError("there are fewer values")
    return <const uint8_t*>view.buf


cdef int open_taken(Taken* taken, list arrays, places, int64_t width) except -1:
    # Arrays as (bits, data, start, count), and more. `width`: bytes of an item, 0: a bit.
    cdef const TakenPlaces* given = <const TakenPlaces*>places_in(places)
    cdef TakenArray* array
    cdef int64_t size
    taken.pieces, taken.rows, taken.count = given.pieces, given.rows, given.count
    if given.known > len(arrays):
        raise ValueError("an array that is not there")
    taken.arrays = <TakenArray*>calloc(len(arrays) + 1, sizeof(TakenArray))
    if taken.arrays == NULL:
        raise MemoryError
    for each in arrays:
        array = taken.arrays + taken.known
        taken.known += 1
        array.start, array.count = each[2], each[3]
        if array.start < 0 or array.count < 0:
            raise ValueError("no rows")
        if taken.known <= given.known and given.ends[taken.known - 1] > array.count:
            raise ValueError("a row that is not there")
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


cdef object taken_bits(const Taken* taken, int64_t* nulls):
    cdef int64_t i
    cdef const TakenArray* array
    cdef uint8_t* bits
    cdef bint is_whole = True
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


def take_numbers(list arrays not None, places, int64_t width):
    """Rows of numbers of 4, 8 or 16 bytes, or of truths (0); arrays as (bits, data, start, count)."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef uint8_t* to
    cdef int64_t i, nulls, place
    if width not in (0, 4, 8, 16):
        raise ValueError("numbers of another size")
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, places, width)
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


def take_codes(list arrays not None, places):
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
        open_taken(&taken, arrays, places, 4)
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


def take_texts(list arrays not None, places):
    """Rows of texts; arrays as (bits, offsets, start, count, data)."""
    cdef Taken taken
    cdef IdTexts* texts = NULL
    cdef const IdTexts* array
    cdef const uint8_t** found_at = NULL
    cdef const uint8_t** ends = NULL
    cdef const uint8_t* p
    cdef uint8_t* to
    cdef int32_t* bounds
    cdef int64_t i, nulls, size, total = 0, known = 0
    cdef int32_t row
    cdef uint16_t piece
    cdef bint fits = True
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, places, 4)
        bits = taken_bits(&taken, &nulls)
        texts = <IdTexts*>calloc(len(arrays) + 1, sizeof(IdTexts))
        found_at = <const uint8_t**>malloc((taken.count + 1) * sizeof(void*))
        ends = <const uint8_t**>malloc((len(arrays) + 1) * sizeof(void*))
        if texts == NULL or found_at == NULL or ends == NULL:
            raise MemoryError
        for each in arrays:
            known += 1
            open_texts(texts + known - 1, each[0], each[4], each[1], each[2], each[3])
            ends[known - 1] = texts[known - 1].data + texts[known - 1].size
        offsets = PyBytes_FromStringAndSize(NULL, 4 * (taken.count + 1))
        bounds = <int32_t*>PyBytes_AsString(offsets)
        # Where each text lies is looked up once: the copies go by this, and by the bounds.
        with nogil:
            for i in range(taken.count):
                bounds[i] = <int32_t>total
                array, row = texts + taken.pieces[i], taken.rows[i]
                if is_there(array.there, array.start + row):
                    found_at[i] = text_at(array, row, &size)
                    if found_at[i] == NULL:
                        fits = False
                        break
                    total += size
            bounds[taken.count] = <int32_t>total
        if not fits or total > 0x7FFFFFFF - SLACK:
            raise ValueError("a text outside of the data")
        found = bytearray(total + SLACK)
        to = <uint8_t*>PyByteArray_AsString(found)
        with nogil:
            for i in range(taken.count):
                size = bounds[i + 1] - bounds[i]
                if size:
                    copy_text(to + bounds[i], found_at[i], size, ends[taken.pieces[i]])
        return bits, offsets, found, nulls
    finally:
        if texts != NULL:
            for i in range(known):
                close_texts(texts + i)
            free(texts)
        free(found_at)
        free(ends)
        close_taken(&taken)


def take_lists(list arrays not None, places):
    """Rows of lists or maps; arrays as (bits, offsets, start, count, items). Instead of items, the places that they are
    to be taken from, and how many these are."""
    cdef Taken taken
    cdef const TakenArray* array
    cdef TakenPlaces* of_items
    cdef uint8_t* bounds
    cdef int64_t i, nulls, total = 0, items
    cdef int32_t end, low, high, k
    cdef bint fits = True
    memset(&taken, 0, sizeof(Taken))
    try:
        open_taken(&taken, arrays, places, 4)
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
        of_items = new_places(total, taken.known)
        places_of_items = places_capsule(of_items)
        items = 0
        with nogil:
            for i in range(taken.count):
                array = taken.arrays + taken.pieces[i]
                if not is_there(array.there, array.start + taken.rows[i]):
                    continue
                memcpy(&low, array.data + 4 * (array.start + taken.rows[i]), 4)
                memcpy(&high, array.data + 4 * (array.start + taken.rows[i] + 1), 4)
                for k in range(low, high):
                    of_items.pieces[items] = taken.pieces[i]
                    of_items.rows[items] = k
                    items += 1
                of_items.ends[taken.pieces[i]] = max(of_items.ends[taken.pieces[i]], high)
        return bits, offsets, places_of_items, total, nulls
    finally:
        close_taken(&taken)
