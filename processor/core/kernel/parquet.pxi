# Data pages of version 1 of Parquet, from Arrow's buffers: the bodies of the pages, before they are packed.
#
#     body   = repetition levels, definition levels, values; levels = length (u32), runs, where a column has any
#     runs   = header (varint), then: if it is odd, header >> 1 groups of eight numbers, packed by their lowest bits;
#              else one number, in whole bytes, for header >> 1 times
#     values = plain: those that are there; texts with their length (u32) in front; bits of truths
#              dictionary: bits of a number (u8), runs of numbers
#              deltas: see `delta_values`
#
# A page is (levels, first value, value after the last), counted from where an array starts.
# https://parquet.apache.org/docs/file-format/data-pages/encodings/

cdef extern from *:
    """
    #define POPCOUNT __builtin_popcount
    #define POPCOUNT_64 __builtin_popcountll
    #define BITS_OF(number) ((number) ? 64 - __builtin_clzll(number) : 0)
    /* Short texts in whole words, where that stays within both buffers: a call of memcpy takes longer than the copy. */
    static inline void copy_text(uint8_t *to, const uint8_t *from, int64_t size, const uint8_t *end) {
      if (size > 64 || end - from < 64) memcpy(to, from, size);
      else if (size <= 16) memcpy(to, from, 16);
      else if (size <= 32) memcpy(to, from, 32);
      else memcpy(to, from, 64);
    }
    """
    int32_t POPCOUNT(uint32_t) nogil
    int32_t POPCOUNT_64(uint64_t) nogil
    int32_t BITS_OF(uint64_t) nogil
    void copy_text(uint8_t*, const uint8_t*, int64_t, const uint8_t*) nogil

cdef enum:
    FORM_BYTES, FORM_DECIMALS, FORM_TRUTHS, FORM_DELTAS  # of numbers
    LEVEL_ROOM = 32
    SLACK = 64           # bytes that a copy of a short text may write behind it
    BLOCK = 128          # deltas with a least one of their own, in four parts of so many bits each
    MINIBLOCK = 32
    MOST_DICTIONARY = 1 << 20  # bytes
    MOST_LOOKS = 16            # at slots of a dictionary, a text on average; usual are less than one
    THRIFT_I32 = 5
    THRIFT_I64 = 6
    THRIFT_STRUCT = 12

cdef struct Out:
    uint8_t* at
    int64_t used
    int64_t room


cdef int more_room(Out* out, int64_t size) except -1 nogil:
    # Let there be room for so many bytes more.
    cdef int64_t room
    cdef uint8_t* grown
    if out.used + size <= out.room:
        return 0
    room = 2 * (out.used + size) + 4096
    grown = <uint8_t*>realloc(out.at, room)
    if grown == NULL:
        with gil:
            raise MemoryError
    out.at, out.room = grown, room
    return 0


cdef inline uint8_t* put_number(uint8_t* to, uint64_t number) noexcept nogil:
    while number > 127:
        to[0] = <uint8_t>number | 128
        number >>= 7
        to += 1
    to[0] = <uint8_t>number
    return to + 1


cdef inline uint64_t zigzag(int64_t number) noexcept nogil:
    return (<uint64_t>number << 1) ^ <uint64_t>(number >> 63)


cdef struct Packer:      # of numbers by their lowest bits, the first of them lowest
    uint8_t* to
    uint64_t word
    int32_t used


cdef inline void pack(Packer* packer, uint64_t number, int32_t width) noexcept nogil:
    packer.word |= number << packer.used
    packer.used += width
    if packer.used >= 64:
        memcpy(packer.to, &packer.word, 8)
        packer.to += 8
        packer.used -= 64
        packer.word = number >> (width - packer.used) if packer.used else 0


cdef inline void pack_end(Packer* packer) noexcept nogil:
    # The bytes that have begun.
    cdef int32_t size = (packer.used + 7) >> 3
    memcpy(packer.to, &packer.word, size)
    packer.to += size


cdef inline bint is_there(const uint8_t* there, int64_t place) noexcept nogil:
    return there == NULL or there[place >> 3] >> (place & 7) & 1


cdef int put_runs(Out* out, const int32_t* numbers, int64_t count, int32_t width) except -1 nogil:
    # Equal numbers as one run, others packed.
    cdef int64_t i, groups = (count + 7) >> 3
    cdef Packer packer
    cdef uint32_t first
    more_room(out, LEVEL_ROOM + groups * width)
    if not count:
        return 0
    packer.to, packer.word, packer.used = out.at + out.used, 0, 0
    for i in range(1, count):
        if numbers[i] != numbers[0]:
            break
    else:
        packer.to = put_number(packer.to, <uint64_t>count << 1)
        first = numbers[0]
        memcpy(packer.to, &first, (width + 7) >> 3)
        out.used = packer.to + ((width + 7) >> 3) - out.at
        return 0
    packer.to = put_number(packer.to, <uint64_t>groups << 1 | 1)
    for i in range(count):
        pack(&packer, numbers[i], width)
    for i in range(count, 8 * groups):
        pack(&packer, 0, width)
    pack_end(&packer)
    out.used = packer.to - out.at
    return 0


cdef object levels_of(Out* out, const int32_t* numbers, int64_t count, int32_t width):
    # With their length in front.
    cdef uint32_t size
    out.used = 4
    put_runs(out, numbers, count, width)
    size = <uint32_t>(out.used - 4)
    memcpy(out.at, &size, 4)
    return PyBytes_FromStringAndSize(<const char*>out.at, out.used)


cdef const uint8_t* bits_in(Views* views, object there, int64_t start, int64_t count) except? NULL:
    # Which values are there, by Arrow's buffer; NULL: all.
    cdef const uint8_t* found
    if there is None:
        return NULL
    found = <const uint8_t*>opened(views, there, -1, 1)
    if 8 * views.view[views.count - 1].len < start + count:
        raise ValueError("there are fewer values")
    return found


cdef object presence_of(Out* out, const uint8_t* bits, int64_t start, int64_t count, int64_t* nulls):
    # The levels of rows of which each is there, or is not: Arrow's bits, if they differ.
    cdef int64_t i, present = 0, size = (count + 7) >> 3
    cdef int32_t shift = start & 7
    cdef uint32_t length
    cdef const uint8_t* from_ = NULL
    cdef uint8_t* to
    more_room(out, LEVEL_ROOM + size)
    to = out.at + 4
    if bits == NULL:
        present = count
    else:
        from_ = bits + (start >> 3)
        to = put_number(to, <uint64_t>size << 1 | 1)
        for i in range(size):
            to[i] = from_[i] >> shift
            if shift and 8 * (i + 1) - shift < count:  # else the next byte has none of them
                to[i] |= <uint8_t>(from_[i + 1] << (8 - shift))
        if count & 7:
            to[size - 1] &= (1 << (count & 7)) - 1
        for i in range(size):
            present += POPCOUNT(to[i])
        to += size
    nulls[0] += count - present
    if present == 0 or present == count:
        to = put_number(out.at + 4, <uint64_t>count << 1)
        to[0] = present != 0
        to += 1
    length = <uint32_t>(to - out.at - 4)
    memcpy(out.at, &length, 4)
    return PyBytes_FromStringAndSize(<const char*>out.at, to - out.at)


def flat_pages(there, int64_t start, int64_t rows, int64_t of_page):
    """The pages of a column without items, of so many rows each, and how many rows have no value."""
    cdef Views views
    cdef Out out
    cdef const uint8_t* bits
    cdef int64_t first, last, nulls = 0
    cdef list found = []
    views.count = 0
    memset(&out, 0, sizeof(Out))
    if start < 0 or rows < 0 or of_page < 1:
        raise ValueError("no rows, or no page for them")
    try:
        bits = bits_in(&views, there, start, rows)
        for first in range(0, rows, of_page):
            last = min(rows, first + of_page)
            found.append((presence_of(&out, bits, start + first, last - first, &nulls), first, last, last - first))
    finally:
        close(&views)
        free(out.at)
    return found, nulls


def hides_items(there, offsets, int64_t start, int64_t rows):
    """Whether a list that is not there has items, by Arrow's buffers."""
    cdef Views views
    cdef const uint8_t* bits
    cdef const int32_t* bounds
    cdef int64_t i
    views.count = 0
    if start < 0 or rows < 0:
        raise ValueError("no rows")
    try:
        bounds = <const int32_t*>opened(&views, offsets, -1, 4)
        if views.view[0].len < 4 * (start + rows + 1):
            raise ValueError("there are fewer rows")
        bits = bits_in(&views, there, start, rows)
        for i in range(start, start + rows):
            if bounds[i] != bounds[i + 1] and not is_there(bits, i):
                return True
        return False
    finally:
        close(&views)


def nested_pages(there, offsets, int64_t start, int64_t rows, items, int64_t items_start, int64_t items_count, bint is_key, int64_t of_page):
    """The pages of a column of the items of a list or a map, of so many rows each, by Arrow's buffers: which rows are
    there, where the items of each begin, and which items are there, of which the first is that of the first row with
    any. `is_key`: an item is always there.

    Raises `ValueError` for what does not lie in the buffers, and where a row that is not there has items.
    """
    cdef Views views
    cdef Out out
    cdef const uint8_t* bits
    cdef const uint8_t* item_bits
    cdef const int32_t* bounds
    cdef int32_t* repeated = NULL
    cdef int32_t* defined
    cdef int64_t first, last, i, k, most, count, base
    cdef list found = []
    views.count = 0
    memset(&out, 0, sizeof(Out))
    if start < 0 or rows < 0 or of_page < 1 or items_start < 0:
        raise ValueError("no rows, or no page for them")
    try:
        bounds = <const int32_t*>opened(&views, offsets, -1, 4)
        if views.view[0].len < 4 * (start + rows + 1):
            raise ValueError("there are fewer rows")
        bounds += start
        bits = bits_in(&views, there, start, rows)
        item_bits = bits_in(&views, items, items_start, items_count)
        most, base = 0, bounds[0]
        for i in range(rows):
            if not base <= bounds[i] <= bounds[i + 1] <= base + items_count:
                raise ValueError("there are fewer items")
            if bounds[i] < bounds[i + 1] and not is_there(bits, start + i):
                raise ValueError("items of what is not there")
            most += max(1, bounds[i + 1] - bounds[i])
        repeated = <int32_t*>malloc((2 * most + 2) * sizeof(int32_t))
        if repeated == NULL:
            raise MemoryError
        defined = repeated + most
        more_room(&out, LEVEL_ROOM)
        for first in range(0, rows, of_page):
            last, count = min(rows, first + of_page), 0
            for i in range(first, last):
                if bounds[i] == bounds[i + 1]:
                    repeated[count], defined[count] = 0, is_there(bits, start + i)
                    count += 1
                for k in range(bounds[i], bounds[i + 1]):
                    repeated[count] = k > bounds[i]
                    defined[count] = 2 if is_key else 2 + is_there(item_bits, items_start + k - base)
                    count += 1
            levels = levels_of(&out, repeated, count, 1)
            levels += levels_of(&out, defined, count, 2)
            found.append((levels, bounds[first] - base, bounds[last] - base, count))
    finally:
        close(&views)
        free(repeated)
        free(out.at)
    return found


# --- values ----------------------------------------------------------------------------------------------------------


cdef int begin_page(Out* out, page, int64_t count, int64_t* first, int64_t* last) except -1:
    cdef bytes levels = page[0]
    cdef Py_ssize_t size = len(levels)
    first[0], last[0] = page[1], page[2]
    if not 0 <= first[0] <= last[0] <= count:
        raise ValueError("a page of other values")
    out.used = 0
    more_room(out, size)
    memcpy(out.at, PyBytes_AsString(levels), size)
    out.used = size
    return 0


cdef int plain_texts(Out* out, const IdTexts* texts, int64_t first, int64_t last) except -1 nogil:
    # Texts lie one behind the other, so that the offsets say how many bytes there may be at most.
    cdef const uint8_t* offsets = texts.offsets + 4 * texts.start
    cdef const uint8_t* data = texts.data if texts.data != NULL else ZEROS
    cdef const uint8_t* end = data + texts.size
    cdef int32_t low, high, least = load32(offsets + 4 * first), most = load32(offsets + 4 * last)
    cdef int64_t i
    cdef uint8_t* to
    cdef bint fits = 0 <= least <= most <= texts.size
    if fits:
        more_room(out, 4 * (last - first) + most - least + SLACK)
    to = out.at + out.used
    for i in range(first, last):
        low, high = load32(offsets + 4 * i), load32(offsets + 4 * (i + 1))
        if not (fits and least <= low <= high <= most):
            with gil:
                raise ValueError("a text outside of the data")
        least = high
        if is_there(texts.there, texts.start + i):
            high -= low
            memcpy(to, &high, 4)
            copy_text(to + 4, data + low, high, end)
            to += 4 + high
    out.used = to - out.at
    return 0


cdef list index_pages(Out* out, list pages, int64_t count, const int32_t* codes, int32_t* scratch, int64_t entries):
    # `codes`: of each value, -1 where there is none. One entry has a bit, too, as some readers expect.
    cdef int64_t first, last, i, used
    cdef int32_t width = max(1, BITS_OF(entries - 1 if entries else 0))
    cdef list found = []
    for page in pages:
        begin_page(out, page, count, &first, &last)
        more_room(out, 1)
        out.at[out.used] = <uint8_t>width
        out.used += 1
        with nogil:
            used = 0
            for i in range(first, last):
                scratch[used] = codes[i]
                used += codes[i] >= 0
            put_runs(out, scratch, used, width)
        found.append(PyBytes_FromStringAndSize(<const char*>out.at, out.used))
    return found


cdef int64_t number_texts(Out* out, const IdTexts* texts, int32_t* codes, int64_t* plain) except -2:
    # Number texts in the order in which they come, and write each once; `plain`: bytes of all. -1: they are too many, or
    # were chosen to have equal hashes: the looks at slots are counted, which else grow by the square of such texts.
    cdef int64_t i, size, known_size, known = 0, room = 256, slot, other, looks = MOST_LOOKS * texts.count + 4096
    cdef uint64_t mask = room - 1
    cdef int32_t* slots = <int32_t*>calloc(room, sizeof(int32_t))  # number + 1
    cdef int64_t* places = NULL   # row of each text
    cdef uint32_t* hashes = NULL
    cdef const uint8_t* p
    cdef const uint8_t* q
    cdef uint32_t hashed, length
    cdef bint is_over = False
    plain[0] = 0
    places = <int64_t*>malloc((texts.count + 1) * sizeof(int64_t))
    hashes = <uint32_t*>malloc((texts.count + 1) * sizeof(uint32_t))
    try:
        if slots == NULL or places == NULL or hashes == NULL:
            raise MemoryError
        for i in range(texts.count):
            if not is_there(texts.there, texts.start + i):
                codes[i] = -1
                continue
            p = text_at(texts, i, &size)
            if p == NULL:
                raise ValueError("a text outside of the data")
            plain[0] += 4 + size
            hashed = text_hash(p, size)
            slot = hashed & mask
            while slots[slot]:
                other = slots[slot] - 1
                if hashes[other] == hashed:
                    q = text_at(texts, places[other], &known_size)
                    if known_size == size and same_text(p, q, size):
                        break
                slot = (slot + 1) & mask
                looks -= 1
            if looks < 0:
                is_over = True
                break
            if slots[slot]:
                codes[i] = slots[slot] - 1
                continue
            if out.used + 4 + size > MOST_DICTIONARY:
                is_over = True
                break
            more_room(out, 4 + size)
            length = <uint32_t>size
            memcpy(out.at + out.used, &length, 4)
            memcpy(out.at + out.used + 4, p, size)
            out.used += 4 + size
            places[known], hashes[known] = i, hashed
            codes[i] = <int32_t>known
            known += 1
            slots[slot] = <int32_t>known
            if 2 * known > room:
                free(slots)
                room *= 4
                mask = room - 1
                slots = <int32_t*>calloc(room, sizeof(int32_t))
                if slots == NULL:
                    raise MemoryError
                for other in range(known):
                    slot = hashes[other] & mask
                    while slots[slot]:
                        slot = (slot + 1) & mask
                    slots[slot] = <int32_t>other + 1
    finally:
        free(slots)
        free(places)
        free(hashes)
    return -1 if is_over else known


def text_bodies(there, data, offsets, int64_t start, int64_t count, list pages not None, bint coded):
    """The bodies of pages of texts, by Arrow's buffers; with `coded` the numbers of those in a dictionary, and this as the
    body of a page and the number of its texts. None: the dictionary would save nothing."""
    cdef IdTexts texts
    cdef Out out, dictionary
    cdef int32_t* codes = NULL
    cdef int64_t known = -1, first, last, plain = 0
    cdef list found = []
    memset(&out, 0, sizeof(Out))
    memset(&dictionary, 0, sizeof(Out))
    try:
        open_texts(&texts, there, data, offsets, start, count)
        if coded:
            codes = <int32_t*>malloc((2 * count + 2) * sizeof(int32_t))
            if codes == NULL:
                raise MemoryError
            more_room(&dictionary, 1)
            known = number_texts(&dictionary, &texts, codes, &plain)
            if known < 0 or dictionary.used + (count * BITS_OF(known) >> 3) > plain + 64:
                return None
            found = index_pages(&out, pages, count, codes, codes + count + 1, known)
            return found, (PyBytes_FromStringAndSize(<const char*>dictionary.at, dictionary.used), known)
        for page in pages:
            begin_page(&out, page, count, &first, &last)
            plain_texts(&out, &texts, first, last)
            found.append(PyBytes_FromStringAndSize(<const char*>out.at, out.used))
        return found
    finally:
        close_texts(&texts)
        free(codes)
        free(out.at)
        free(dictionary.at)


def counted_texts(there, data, offsets, int64_t start, int64_t count, flags):
    """Of the different texts of an Arrow array, in the order in which they come, the row of each that is the first one
    (int32), how many rows have it, and how many of those that are calls (int64), whose flag (a byte a row) is odd. None:
    they take more than a dictionary may."""
    cdef IdTexts texts
    cdef Out dictionary
    cdef Views views
    cdef const uint8_t* marks
    cdef int32_t* codes = NULL
    cdef int32_t* firsts
    cdef int64_t* rows
    cdef int64_t* calls
    cdef int64_t known = 0, plain = 0, used = 0, i
    views.count = 0
    memset(&dictionary, 0, sizeof(Out))
    memset(&texts, 0, sizeof(IdTexts))
    try:
        open_texts(&texts, there, data, offsets, start, count)
        marks = <const uint8_t*>opened(&views, flags, count, 1)
        codes = <int32_t*>malloc((count + 1) * sizeof(int32_t))
        if codes == NULL:
            raise MemoryError
        more_room(&dictionary, 1)
        known = number_texts(&dictionary, &texts, codes, &plain)
        if known < 0:
            return None
        found_firsts = PyBytes_FromStringAndSize(NULL, 4 * known)
        found_rows, found_calls = PyBytes_FromStringAndSize(NULL, 8 * known), PyBytes_FromStringAndSize(NULL, 8 * known)
        firsts = <int32_t*>PyBytes_AsString(found_firsts)
        rows, calls = <int64_t*>PyBytes_AsString(found_rows), <int64_t*>PyBytes_AsString(found_calls)
        with nogil:
            memset(rows, 0, 8 * known)
            memset(calls, 0, 8 * known)
            for i in range(count):
                if codes[i] < 0:
                    continue
                if codes[i] == used:
                    firsts[used] = <int32_t>i
                    used += 1
                rows[codes[i]] += 1
                calls[codes[i]] += marks[i] & 1
        return found_firsts, found_rows, found_calls
    finally:
        close_texts(&texts)
        close(&views)
        free(codes)
        free(dictionary.at)


def coded_bodies(there, numbers, int64_t start, int64_t count, data, offsets, int64_t texts_start, int64_t texts_count, list pages not None):
    """The same of a column that Arrow has as numbers (int32) of the texts of a dictionary, none of which is null: only
    texts that are used are written. And the places of these in the dictionary (int32)."""
    cdef IdTexts texts
    cdef Views views
    cdef Out out, dictionary
    cdef const uint8_t* bits
    cdef const int32_t* given
    cdef int32_t* codes = NULL
    cdef int32_t* renamed
    cdef int32_t* places
    cdef int64_t known = 0, i, size
    cdef const uint8_t* p
    cdef uint32_t length
    views.count = 0
    memset(&out, 0, sizeof(Out))
    memset(&dictionary, 0, sizeof(Out))
    memset(&texts, 0, sizeof(IdTexts))
    if start < 0 or count < 0:
        raise ValueError("no values")
    try:
        open_texts(&texts, None, data, offsets, texts_start, texts_count)
        given = <const int32_t*>opened(&views, numbers, -1, 4)
        if views.view[0].len < 4 * (start + count):
            raise ValueError("there are fewer values")
        given += start
        bits = bits_in(&views, there, start, count)
        codes = <int32_t*>malloc((2 * count + 2 * texts_count + 4) * sizeof(int32_t))
        if codes == NULL:
            raise MemoryError
        renamed = codes + 2 * count + 2
        places = renamed + texts_count + 1
        memset(renamed, 255, texts_count * sizeof(int32_t))
        more_room(&dictionary, 1)
        for i in range(count):
            if not is_there(bits, start + i):
                codes[i] = -1
                continue
            if not 0 <= given[i] < texts_count:
                raise ValueError("a value that the dictionary does not have")
            if renamed[given[i]] < 0:
                p = text_at(&texts, given[i], &size)
                if p == NULL:
                    raise ValueError("a text outside of the data")
                more_room(&dictionary, 4 + size)
                length = <uint32_t>size
                memcpy(dictionary.at + dictionary.used, &length, 4)
                memcpy(dictionary.at + dictionary.used + 4, p, size)
                dictionary.used += 4 + size
                places[known] = given[i]
                renamed[given[i]] = <int32_t>known
                known += 1
            codes[i] = renamed[given[i]]
        found = index_pages(&out, pages, count, codes, codes + count + 1, known)
        used = PyBytes_FromStringAndSize(<const char*>places, known * sizeof(int32_t))
        return found, (PyBytes_FromStringAndSize(<const char*>dictionary.at, dictionary.used), known), used
    finally:
        close(&views)
        close_texts(&texts)
        free(codes)
        free(out.at)
        free(dictionary.at)


cdef int delta_values(Out* out, const int64_t* numbers, int64_t count) except -1 nogil:
    # DELTA_BINARY_PACKED:
    #     header = numbers of a block, parts of a block, numbers in all, first number; varints, the last one zigzag
    #     block  = least delta (zigzag varint), bits of each part (u8), deltas of each part less the least one, packed
    # A part has 32 deltas, the last one is filled up; one without any has 0 bits.
    cdef uint64_t deltas[BLOCK]
    cdef uint64_t widest
    cdef int64_t least, done, many, i, part
    cdef uint8_t* widths
    cdef Packer packer
    more_room(out, 64)
    packer.to = put_number(out.at + out.used, BLOCK)
    packer.to = put_number(packer.to, BLOCK // MINIBLOCK)
    packer.to = put_number(packer.to, count)
    packer.to = put_number(packer.to, zigzag(numbers[0] if count else 0))
    out.used = packer.to - out.at
    done = 1
    while done < count:
        many, least = min(BLOCK, count - done), 0x7FFFFFFFFFFFFFFF
        for i in range(many):
            deltas[i] = <uint64_t>numbers[done + i] - <uint64_t>numbers[done + i - 1]
            least = min(least, <int64_t>deltas[i])
        for i in range(many):
            deltas[i] -= <uint64_t>least
        for i in range(many, BLOCK):
            deltas[i] = 0
        more_room(out, 16 + BLOCK // MINIBLOCK + 8 * BLOCK)
        widths = put_number(out.at + out.used, zigzag(least))
        packer.to, packer.word, packer.used = widths + BLOCK // MINIBLOCK, 0, 0
        for part in range(BLOCK // MINIBLOCK):
            widest = 0
            for i in range(part * MINIBLOCK, (part + 1) * MINIBLOCK):
                widest |= deltas[i]
            widths[part] = BITS_OF(widest)
            if widest:
                for i in range(part * MINIBLOCK, (part + 1) * MINIBLOCK):
                    pack(&packer, deltas[i], widths[part])
        pack_end(&packer)
        out.used = packer.to - out.at
        done += many
    return 0


def number_bodies(there, data, int64_t start, int64_t count, int64_t width, int64_t form, list pages not None):
    """The bodies of pages of numbers of so many bytes, by Arrow's buffers: as they are, decimals in `COST_BYTES`, truths
    (of which Arrow has bits, `width` 0), or whole numbers as deltas (`FORMS`)."""
    cdef Views views
    cdef Out out
    cdef const uint8_t* bits
    cdef const uint8_t* values
    cdef const uint8_t* p
    cdef int64_t* numbers = NULL
    cdef int64_t first, last, i, used
    cdef int32_t narrow
    cdef uint64_t high
    cdef uint8_t* to
    cdef Packer packer
    cdef list found = []
    views.count = 0
    memset(&out, 0, sizeof(Out))
    if start < 0 or count < 0 or width < 0 or form != FORM_TRUTHS and width not in (4, 8, 16):
        raise ValueError("no values")
    if (form == FORM_DECIMALS) != (width == 16):
        raise ValueError("numbers of another size")
    try:
        values = <const uint8_t*>opened(&views, data, -1, 1)
        if views.view[0].len < (width * (start + count) if width else (start + count + 7) >> 3):
            raise ValueError("there are fewer values")
        bits = bits_in(&views, there, start, count)
        if form == FORM_DELTAS:
            numbers = <int64_t*>malloc((count + 1) * sizeof(int64_t))
            if numbers == NULL:
                raise MemoryError
        for page in pages:
            begin_page(&out, page, count, &first, &last)
            with nogil:
                more_room(&out, (width if width else 1) * (last - first) + 8)
                to, used = out.at + out.used, 0
                if form == FORM_DELTAS:
                    for i in range(first, last):
                        if is_there(bits, start + i):
                            if width == 8:
                                memcpy(numbers + used, values + 8 * (start + i), 8)
                            else:
                                memcpy(&narrow, values + 4 * (start + i), 4)
                                numbers[used] = narrow
                            used += 1
                    delta_values(&out, numbers, used)
                elif form == FORM_TRUTHS:
                    packer.to, packer.word, packer.used = to, 0, 0
                    for i in range(first, last):
                        if is_there(bits, start + i):
                            pack(&packer, values[(start + i) >> 3] >> ((start + i) & 7) & 1, 1)
                    pack_end(&packer)
                    out.used = packer.to - out.at
                elif form == FORM_DECIMALS:
                    for i in range(first, last):
                        if is_there(bits, start + i):
                            p = values + 16 * (start + i)
                            high = swap64(load64(p))
                            to[0] = p[8]
                            memcpy(to + 1, &high, 8)
                            to += COST_BYTES
                    out.used = to - out.at
                elif bits == NULL:
                    memcpy(to, values + width * (start + first), width * (last - first))
                    out.used += width * (last - first)
                else:
                    for i in range(first, last):
                        if is_there(bits, start + i):
                            memcpy(to, values + width * (start + i), width)
                            to += width
                    out.used = to - out.at
            found.append(PyBytes_FromStringAndSize(<const char*>out.at, out.used))
        return found
    finally:
        close(&views)
        free(numbers)
        free(out.at)


def number_bounds(there, data, int64_t start, int64_t count, int64_t width, bint are_doubles):
    """The least and the greatest number of a column by Arrow's buffers, among those that are there and are numbers: whole
    ones of 4 or 8 bytes, doubles (8), or the 16 bytes each of decimals. None: there is none."""
    cdef Views views
    cdef const uint8_t* bits
    cdef const uint8_t* values
    cdef int64_t i, low, least = 0x7FFFFFFFFFFFFFFF, most = -0x7FFFFFFFFFFFFFFF - 1, first = -1, last = -1
    cdef int64_t upper, upper_of_first = 0, upper_of_last = 0
    cdef uint64_t lower, lower_of_first = 0, lower_of_last = 0
    cdef int32_t narrow
    cdef double number, least_number = 0.0, most_number = 0.0
    views.count = 0
    if start < 0 or count < 0 or width not in (4, 8, 16) or are_doubles and width != 8:
        raise ValueError("no values")
    try:
        values = <const uint8_t*>opened(&views, data, -1, 1)
        if views.view[0].len < width * (start + count):
            raise ValueError("there are fewer values")
        bits = bits_in(&views, there, start, count)
        with nogil:
            if are_doubles:
                for i in range(start, start + count):
                    memcpy(&number, values + 8 * i, 8)
                    if not is_there(bits, i) or number != number:
                        continue
                    if first < 0:
                        first, least_number, most_number = i, number, number
                    least_number, most_number = min(least_number, number), max(most_number, number)
            elif width == 16:
                for i in range(start, start + count):
                    if not is_there(bits, i):
                        continue
                    lower, upper = load64(values + 16 * i), <int64_t>load64(values + 16 * i + 8)
                    if first < 0 or upper < upper_of_first or upper == upper_of_first and lower < lower_of_first:
                        first, lower_of_first, upper_of_first = i, lower, upper
                    if last < 0 or upper > upper_of_last or upper == upper_of_last and lower > lower_of_last:
                        last, lower_of_last, upper_of_last = i, lower, upper
            else:
                for i in range(start, start + count):
                    if is_there(bits, i):
                        first = i
                        if width == 8:
                            low = <int64_t>load64(values + 8 * i)
                        else:
                            memcpy(&narrow, values + 4 * i, 4)
                            low = narrow
                        least, most = min(least, low), max(most, low)
        if first < 0:
            return None
        if are_doubles:
            return least_number, most_number
        if width == 16:
            return (
                PyBytes_FromStringAndSize(<const char*>values + 16 * first, 16),
                PyBytes_FromStringAndSize(<const char*>values + 16 * last, 16),
            )
        return least, most
    finally:
        close(&views)


cdef inline uint8_t* put_field(uint8_t* to, int32_t step, int64_t number) noexcept nogil:
    # A whole number of 32 bits in Thrift's compact protocol, `step` behind the field before.
    to[0] = <uint8_t>(step << 4 | THRIFT_I32)
    return put_number(to + 1, zigzag(number))


cdef object page_header(bint is_dictionary, int64_t size, int64_t packed, int64_t count, int64_t encoding):
    # Of a page of so many values, whose body has so many bytes before and after it is packed.
    cdef uint8_t header[64]
    cdef uint8_t* to = put_field(header, 1, 2 if is_dictionary else 0)  # type
    to = put_field(to, 1, size)    # uncompressed_page_size
    to = put_field(to, 1, packed)  # compressed_page_size
    to[0] = <uint8_t>((4 if is_dictionary else 2) << 4 | THRIFT_STRUCT)  # dictionary_page_header (7), data_page_header (5)
    to = put_field(to + 1, 1, count)  # num_values
    to = put_field(to, 1, encoding)
    if not is_dictionary:  # encodings of the levels: runs
        to = put_field(put_field(to, 1, 3), 1, 3)
    to[0] = to[1] = 0
    return PyBytes_FromStringAndSize(<const char*>header, to + 2 - header)


def column_chunk(
    bytes about not None, bytes statistics not None, dictionary, list pages not None, list bodies not None,
    int64_t encoding, pack, int64_t start, list parts not None,
):
    """Add the pages of a column that begins at `start` to `parts`, packed by `pack` if that is not None, the dictionary
    first. Returns what the footer says of the column, and its bytes before and after it is packed.

    `about`: the first four fields of its metadata; `statistics`: field 12, as a struct, empty: none.
    """
    cdef int64_t unpacked = 0, packed = 0, levels = 0, first_data = start, count
    cdef Py_ssize_t i
    cdef bytes body, header
    cdef uint8_t numbers[96]
    cdef uint8_t* to
    for i in range(-1 if dictionary is not None else 0, len(bodies)):
        if i < 0:
            body, count = dictionary
        else:
            body, count = bodies[i], pages[i][3]
            levels += count
        data = body if pack is None else pack(body)
        header = page_header(i < 0, len(body), len(data), count, 0 if i < 0 else encoding)
        parts.append(header)
        parts.append(data)
        unpacked += len(header) + len(body)
        packed += len(header) + len(data)
        if i < 0:
            first_data = start + packed
    to = numbers
    to[0] = THRIFT_I64 | 1 << 4  # num_values (5)
    to = put_number(to + 1, zigzag(levels))
    to[0] = THRIFT_I64 | 1 << 4  # total_uncompressed_size (6)
    to = put_number(to + 1, zigzag(unpacked))
    to[0] = THRIFT_I64 | 1 << 4  # total_compressed_size (7)
    to = put_number(to + 1, zigzag(packed))
    to[0] = THRIFT_I64 | 2 << 4  # data_page_offset (9)
    to = put_number(to + 1, zigzag(first_data))
    if dictionary is not None:
        to[0] = THRIFT_I64 | 2 << 4  # dictionary_page_offset (11)
        to = put_number(to + 1, zigzag(start))
    if statistics:
        to[0] = THRIFT_STRUCT | (1 if dictionary is not None else 3) << 4
        to += 1
    # file_offset (2) is 0; meta_data (3)
    return (
        b"\x26\x00\x1c" + about + PyBytes_FromStringAndSize(<const char*>numbers, to - numbers) + statistics + b"\0\0",
        unpacked, packed,
    )
