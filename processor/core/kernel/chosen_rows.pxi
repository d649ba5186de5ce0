# A few rows of a column of Parquet: only pages are unpacked that have one of them, and only their values are read.
#
# A column is what the file has of it in a row group: data pages of version 1, each behind its header, perhaps with a
# dictionary in front. Read are levels as runs, values that are plain, numbers of a dictionary and deltas (`parquet.pxi`).
# Whatever has another form, or does not lie in its bytes, is None: pyarrow, which is the twin, has to read it.
#
# https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
# https://parquet.apache.org/docs/file-format/data-pages/encodings/

cdef enum:
    VALUE_TEXTS, VALUE_NUMBERS, VALUE_DOUBLES, VALUE_DECIMALS, VALUE_TRUTHS
    PLAIN_ENCODED = 0
    OLD_DICTIONARY = 2
    DELTA_ENCODED = 5
    DICTIONARY = 8
    DATA_PAGE = 0
    DICTIONARY_PAGE = 2
    RUNS = 3
    MOST_LEVELS = 1 << 26   # of a page
    MOST_STRUCTS = 4        # one in the other, in a page's header
    STEP = 64               # levels that are counted at once

cdef struct PageHead:
    int64_t kind
    int64_t unpacked
    int64_t packed
    int64_t values       # nulls included
    int64_t encoding

cdef struct Column:      # as it is read
    const uint8_t* at
    const uint8_t* end
    int64_t most         # bytes of a page, unpacked
    int64_t most_values
    PageHead head
    const uint8_t* body  # of the present page
    const uint8_t* body_end
    const uint8_t* words       # the dictionary; NULL: none
    const uint8_t* words_end
    int64_t known        # how many it has
    int32_t* starts      # where its texts begin; NULL: not known yet
    uint8_t* levels      # room for those of a page, twice
    int64_t room

cdef struct Places:      # of values that are wanted among those of a page, ascending; -1: it is null
    int64_t* at
    int64_t count
    int64_t room


# --- headers ---------------------------------------------------------------------------------------------------------


cdef inline int64_t unzigzag(uint64_t number) noexcept nogil:
    return <int64_t>(number >> 1) ^ -<int64_t>(number & 1)


cdef const uint8_t* skip_field(const uint8_t* p, const uint8_t* end, int32_t kind, int32_t nested) noexcept nogil:
    # Behind a value of Thrift's compact protocol; NULL: it is none, or a list.
    cdef uint64_t number
    cdef uint8_t head
    if kind == 1 or kind == 2:
        return p
    if kind == 4 or kind == 5 or kind == 6:
        return varint(p, end, &number)
    if kind == 8:
        p = varint(p, end, &number)
        return NULL if p == NULL or number > <uint64_t>(end - p) else p + number
    if kind != 12 or nested == MOST_STRUCTS:
        return NULL
    while p != NULL and p < end:
        head = p[0]
        p += 1
        if not head:
            return p
        if not head >> 4:
            p = varint(p, end, &number)
        if p != NULL:
            p = skip_field(p, end, head & 15, nested + 1)
    return NULL


cdef const uint8_t* read_page(const uint8_t* p, const uint8_t* end, PageHead* found, bint is_inner) noexcept nogil:
    # Behind a page's header, or what that says of its values; NULL: it is none.
    cdef int64_t number = 0
    cdef uint64_t value
    cdef uint8_t head
    while p != NULL and p < end:
        head = p[0]
        p += 1
        if not head:
            return p
        if head >> 4:
            number += head >> 4
        else:
            p = varint(p, end, &value)
            if p == NULL:
                return NULL
            number = unzigzag(value)
        if not is_inner and (number == 5 or number == 7) and head & 15 == 12:
            if (number == 5) != (found.kind == DATA_PAGE) or (number == 7) != (found.kind == DICTIONARY_PAGE):
                return NULL
            p = read_page(p, end, found, True)
        elif (head & 15) != 5:
            p = skip_field(p, end, head & 15, 0)
        else:
            p = varint(p, end, &value)
            if is_inner and number == 1:
                found.values = unzigzag(value)
            elif is_inner and number == 2:
                found.encoding = unzigzag(value)
            elif is_inner and found.kind == DATA_PAGE and (number == 3 or number == 4):
                if unzigzag(value) != RUNS:
                    return NULL
            elif not is_inner and number == 1:
                found.kind = unzigzag(value)
            elif not is_inner and number == 2:
                found.unpacked = unzigzag(value)
            elif not is_inner and number == 3:
                found.packed = unzigzag(value)
    return NULL


cdef object page_body(Column* column, object data, object unpack):
    # The bytes of the present page, which `body` is set to; None: it is not as its header says.
    cdef Py_ssize_t start = column.at - <const uint8_t*>PyBytes_AsString(data)
    cdef Py_ssize_t size = column.head.packed
    cdef object found = data
    column.body, column.body_end = column.at, column.at + size
    if unpack is not None:
        found = unpack(memoryview(data)[start : start + size], column.head.unpacked)
        if type(found) is not bytes:
            return None
        column.body = <const uint8_t*>PyBytes_AsString(found)
        column.body_end = column.body + PyBytes_Size(found)
    if column.body_end - column.body != column.head.unpacked:
        return None
    return found


cdef bint next_page(Column* column) noexcept nogil:
    # Whether another header could be read; the page itself is behind it, at `at`.
    cdef PageHead* head = &column.head
    head.kind = head.unpacked = head.packed = head.values = head.encoding = -1
    column.at = read_page(column.at, column.end, head, False)
    if column.at == NULL or not 0 <= head.packed <= column.end - column.at or not 0 <= head.unpacked <= column.most:
        return False
    if not 0 <= head.values <= (column.most_values if head.kind == DATA_PAGE else column.most):  # of texts, 4 bytes each
        return False
    return head.kind == DATA_PAGE or (head.kind == DICTIONARY_PAGE and column.words == NULL)


cdef bint has_known_encoding(const Column* column) noexcept nogil:
    cdef int64_t encoding = column.head.encoding
    if column.head.kind == DICTIONARY_PAGE:
        return encoding == PLAIN_ENCODED or encoding == OLD_DICTIONARY
    if encoding == DICTIONARY or encoding == OLD_DICTIONARY:
        return column.words != NULL
    return encoding == PLAIN_ENCODED or encoding == DELTA_ENCODED


# --- levels ----------------------------------------------------------------------------------------------------------


cdef const uint8_t* level_bytes(Column* column, const uint8_t* p, const uint8_t** end) noexcept nogil:
    # The runs of levels, which have their length in front, and their end.
    cdef int64_t size
    if column.body_end - p < 4:
        return NULL
    size = load32(p)
    if size > column.body_end - p - 4:
        return NULL
    end[0] = p + 4 + size
    return p + 4


cdef bint unpack_levels(const uint8_t* p, const uint8_t* end, int64_t count, int32_t width, uint8_t* to) noexcept nogil:
    # A byte for each level of one or two bits; False: there are fewer.
    cdef uint64_t header
    cdef int64_t done = 0, i, size, many
    if width == 1:
        return unpack_presence(p, end, count, to)
    while done < count:
        p = varint(p, end, &header)
        if p == NULL or p == end or header >> 1 == 0 or header >> 32:
            return False
        size = <int64_t>(header >> 1)
        if header & 1:
            if 2 * size > end - p:
                return False
            many = min(8 * size, count - done)
            for i in range(many):
                to[done + i] = p[i >> 2] >> (2 * (i & 3)) & 3
            p += 2 * size
        else:
            if p[0] > 3:
                return False
            many = min(size, count - done)
            memset(to + done, p[0], many)
            p += 1
        done += many
    return True


cdef bint make_level_room(Column* column) noexcept nogil:
    cdef uint8_t* grown
    if column.head.values > MOST_LEVELS:
        return False
    if column.room < column.head.values:
        grown = <uint8_t*>realloc(column.levels, 2 * column.head.values + 2)
        if grown == NULL:
            return False
        column.levels, column.room = grown, column.head.values
    return True


cdef int32_t presence(Column* column) noexcept nogil:
    # Of a column without items: 1: all of the page's values are there, 2: `levels` say which; 0: neither can be read.
    # `body` is behind them then.
    cdef const uint8_t* end
    cdef const uint8_t* p = level_bytes(column, column.body, &end)
    cdef const uint8_t* run
    cdef uint64_t header
    if p == NULL:
        return 0
    column.body = end
    run = varint(p, end, &header)
    if run != NULL and run < end and not header & 1 and <int64_t>(header >> 1) >= column.head.values and run[0] == 1:
        return 1
    if not make_level_room(column) or not unpack_presence(p, end, column.head.values, column.levels):
        return 0
    return 2


# --- values ----------------------------------------------------------------------------------------------------------


cdef inline uint64_t bits_at(const uint8_t* p, const uint8_t* end, int64_t bit, int32_t width) noexcept nogil:
    # A number of up to 64 bits that lies in the bytes.
    cdef uint8_t copied[16]
    cdef int32_t shift = bit & 7
    cdef uint64_t found
    p += bit >> 3
    if end - p < 9:
        memset(copied, 0, 16)
        memcpy(copied, p, end - p)
        p = copied
    found = load64(p) >> shift
    if shift + width > 64:
        found |= <uint64_t>p[8] << (64 - shift)
    return found if width == 64 else found & ((<uint64_t>1 << width) - 1)


cdef struct Codes:       # the numbers of a dictionary in a page, run by run
    const uint8_t* p
    const uint8_t* end
    int32_t width
    int64_t first        # of the present run
    int64_t count
    bint is_packed
    uint64_t same        # where it is not


cdef bint open_codes(Codes* codes, const Column* column) noexcept nogil:
    codes.p, codes.end = column.body, column.body_end
    codes.first = codes.count = 0
    if codes.p == codes.end or codes.p[0] > 32:
        return False
    codes.width = codes.p[0]
    codes.p += 1
    codes.is_packed = False
    return True


cdef bint next_run(Codes* codes) noexcept nogil:
    # Behind the run before; False: there is none.
    cdef uint64_t header
    cdef int64_t size
    if codes.is_packed:
        codes.p += codes.count // 8 * codes.width
    codes.first += codes.count
    codes.p = varint(codes.p, codes.end, &header)
    if codes.p == NULL or header >> 1 == 0 or header >> 32:
        return False
    codes.is_packed = header & 1
    if codes.is_packed:
        size = <int64_t>(header >> 1) * codes.width
        codes.count = <int64_t>(header >> 1) * 8
        if size > codes.end - codes.p:
            return False
    else:
        size = (codes.width + 7) >> 3
        codes.count = <int64_t>(header >> 1)
        if size > codes.end - codes.p:
            return False
        codes.same = 0
        memcpy(&codes.same, codes.p, size)
        codes.p += size
    return True


cdef bint find_words(Column* column) noexcept nogil:
    # Where each text of the dictionary begins; False: they are fewer.
    cdef const uint8_t* p = column.words
    cdef int64_t i, size
    if column.starts != NULL:
        return True
    if column.words_end - p > 0x7FFFFFFF or 4 * column.known > column.words_end - p:
        return False
    column.starts = <int32_t*>malloc((column.known + 1) * sizeof(int32_t))
    if column.starts == NULL:
        return False
    for i in range(column.known):
        if column.words_end - p < 4:
            return False
        size = load32(p)
        if size > column.words_end - p - 4:
            return False
        column.starts[i] = <int32_t>(p - column.words)
        p += 4 + size
    return True


cdef object value_at(const uint8_t* p, int32_t form, int32_t width):
    cdef int64_t number
    cdef int32_t narrow
    cdef double real
    if form == VALUE_TEXTS:
        return PyUnicode_DecodeUTF8(<const char*>p + 4, load32(p), NULL)
    if form == VALUE_NUMBERS:
        if width == 8:
            memcpy(&number, p, 8)
            return number
        memcpy(&narrow, p, 4)
        return narrow
    if form == VALUE_DOUBLES:
        memcpy(&real, p, 8)
        return real
    number = <signed char>p[0]
    return (<object>number << 64) + swap64(load64(p + 1))


cdef bint add_plain(list found, const Column* column, const Places* places, int32_t form, int32_t width) except *:
    # False: there are fewer values.
    cdef const uint8_t* p = column.body
    cdef const uint8_t* end = column.body_end
    cdef int64_t i, k, at = 0
    for i in range(places.count):
        k = places.at[i]
        if k < 0:
            found.append(None)
            continue
        if form == VALUE_TEXTS:
            with nogil:
                while at < k and end - p >= 4 and <int64_t>load32(p) <= end - p - 4:
                    p += 4 + load32(p)
                    at += 1
            if at < k or end - p < 4 or <int64_t>load32(p) > end - p - 4:
                return False
            found.append(value_at(p, form, width))
        elif form == VALUE_TRUTHS:
            if k >> 3 >= end - p:
                return False
            found.append(True if p[k >> 3] >> (k & 7) & 1 else False)
        else:
            if (k + 1) * width > end - p:
                return False
            found.append(value_at(p + k * width, form, width))
    return True


cdef bint add_coded(list found, Column* column, const Places* places, int32_t form, int32_t width) except *:
    cdef Codes codes
    cdef int64_t i, k
    cdef uint64_t code
    if form == VALUE_TRUTHS or not open_codes(&codes, column):
        return False
    if form == VALUE_TEXTS:
        if not find_words(column):
            return False
    elif column.known * width > column.words_end - column.words:
        return False
    for i in range(places.count):
        k = places.at[i]
        if k < 0:
            found.append(None)
            continue
        while k >= codes.first + codes.count:
            if not next_run(&codes):
                return False
        code = codes.same
        if codes.is_packed:
            code = bits_at(codes.p, codes.end, (k - codes.first) * codes.width, codes.width)
        if code >= <uint64_t>column.known:
            return False
        if form == VALUE_TEXTS:
            found.append(value_at(column.words + column.starts[code], form, width))
        else:
            found.append(value_at(column.words + code * width, form, width))
    return True


cdef bint add_deltas(list found, const Column* column, const Places* places, int32_t form, int32_t width) except *:
    # Numbers as `delta_values` writes them; those before the last one that is wanted are added up.
    cdef const uint8_t* p = column.body
    cdef const uint8_t* end = column.body_end
    cdef const uint8_t* widths
    cdef uint64_t block, parts, total, first, least, value
    cdef int64_t i, k, at = 0, of_part, left = 0, part = 0, bit = 0
    cdef int32_t bits = 0
    cdef bint fits = True
    if form != VALUE_NUMBERS:
        return False
    p = varint(p, end, &block)
    p = varint(p, end, &parts) if p != NULL else NULL
    p = varint(p, end, &total) if p != NULL else NULL
    p = varint(p, end, &first) if p != NULL else NULL
    if p == NULL or not 0 < block <= 1 << 20 or not 0 < parts <= block or block % parts or block // parts % 8:
        return False
    of_part = <int64_t>(block // parts)
    value = <uint64_t>unzigzag(first)
    part = parts
    widths = p
    for i in range(places.count):
        k = places.at[i]
        if k < 0:
            found.append(None)
            continue
        if k >= <int64_t>total:
            return False
        with nogil:
            while at < k:
                if left == 0:
                    if part == <int64_t>parts:
                        p = varint(p + (bit >> 3), end, &least)
                        if p == NULL or end - p < <int64_t>parts:
                            fits = False
                            break
                        least, widths = <uint64_t>unzigzag(least), p
                        p, part, bit, bits = p + parts, 0, 0, 0
                    else:
                        p += bit >> 3
                    bits, bit, left = widths[part], 0, of_part
                    part += 1
                    if bits > 64 or of_part * bits > 8 * (end - p):
                        fits = False
                        break
                value += least + bits_at(p, end, bit, bits) if bits else least
                bit += bits
                left -= 1
                at += 1
        if not fits:
            return False
        found.append(<int64_t>value if width == 8 else <int64_t><int32_t>value)
    return True


cdef bint add_values(list found, Column* column, const Places* places, int32_t form, int32_t width) except *:
    cdef int64_t encoding = column.head.encoding
    if encoding == PLAIN_ENCODED:
        return add_plain(found, column, places, form, width)
    if encoding == DELTA_ENCODED:
        return add_deltas(found, column, places, form, width)
    return add_coded(found, column, places, form, width)


cdef bint add_place(Places* places, int64_t place) noexcept nogil:
    cdef int64_t* grown
    if places.count == places.room:
        grown = <int64_t*>realloc(places.at, (2 * places.room + 64) * sizeof(int64_t))
        if grown == NULL:
            return False
        places.at, places.room = grown, 2 * places.room + 64
    places.at[places.count] = place
    places.count += 1
    return True


# --- rows ------------------------------------------------------------------------------------------------------------


cdef int64_t flat_places(Column* column, Places* places, const int64_t* rows, int64_t count, int64_t first) noexcept nogil:
    # The places of the rows that are in a page whose first one is `first`; how many these are, -1: it cannot be read.
    cdef int32_t kind = presence(column)
    cdef int64_t i, k = first, before = 0, last = first + column.head.values
    places.count = 0
    if not kind:
        return -1
    for i in range(count):
        if rows[i] >= last:
            return i
        if kind == 2:
            while k < rows[i]:
                before += column.levels[k - first]
                k += 1
        if not add_place(places, rows[i] - first if kind == 1 else before if column.levels[rows[i] - first] else -1):
            return -1
    return count


cdef bint nested_places(
    Column* column, Places* places, list found, list items, const int64_t* rows, int64_t count, int64_t* wanted,
    int64_t* row, int32_t most,
) except *:
    # The items of the rows that are wanted in a page: their places, and to `items` the list that each belongs to. `row`:
    # the last one that has begun; `wanted`: how many of those that are wanted have. False: it cannot be read.
    cdef const uint8_t* end
    cdef const uint8_t* p = level_bytes(column, column.body, &end)
    cdef uint8_t* repeated
    cdef uint8_t* defined
    cdef int64_t i = 0, k, begun, present, before = 0, values = column.head.values
    cdef object item = found[len(found) - 1] if wanted[0] and rows[wanted[0] - 1] == row[0] else None
    places.count = 0
    if p == NULL or not make_level_room(column):
        return False
    repeated, defined = column.levels, column.levels + values
    if not unpack_levels(p, end, values, 1, repeated):
        return False
    p = level_bytes(column, end, &end)
    if p == NULL or not unpack_levels(p, end, values, 2, defined):
        return False
    column.body = end
    while i < values:
        if item is None and i + STEP <= values:  # many at once, as long as none of them is wanted
            begun = present = 0
            for k in range(i, i + STEP):
                begun += repeated[k] == 0
                present += defined[k] == most
            if wanted[0] == count or row[0] + begun < rows[wanted[0]]:
                row[0], before, i = row[0] + begun, before + present, i + STEP
                continue
        if defined[i] > most:
            return False
        if repeated[i] == 0:
            row[0] += 1
            item = None
            if wanted[0] < count and rows[wanted[0]] == row[0]:
                item = [] if defined[i] else None
                found.append(item)
                wanted[0] += 1
        elif row[0] < 0:
            return False
        if item is not None and defined[i] > 1:
            if not add_place(places, before if defined[i] == most else -1):
                return False
            items.append(item)
        before += defined[i] == most
        i += 1
    return True


def rows_of_column(
    bytes data not None, rows, int64_t of_group, int64_t values, int64_t most, int32_t form, int32_t width,
    int32_t defined, int32_t repeated, unpack,
):
    """The values of some rows of a column, None for null; None instead: pyarrow has to read it.

    `data`: the column's bytes in the file; `rows`: 64 bits each, ascending and different; `of_group`: how many rows the row
    group has; `values`: how many values, nulls and all; `most`: bytes of all of its pages, unpacked. `form`: texts (0),
    whole numbers, doubles, decimals as whole numbers, truths (4), of `width` bytes each. `defined` and `repeated`: the
    highest levels. `unpack(bytes, size)`: what was packed, None: nothing is. Raises what that does, and `UnicodeDecodeError`.
    """
    cdef Column column
    cdef Places places
    cdef Views views
    cdef const int64_t* wanted
    cdef int64_t count, done = 0, row = -1, i, used
    cdef list found = []
    cdef list items
    cdef list inner
    cdef object body, words = None
    cdef bint is_flat = repeated == 0
    cdef int32_t size = {VALUE_NUMBERS: width, VALUE_DOUBLES: 8, VALUE_DECIMALS: COST_BYTES}.get(form, width)
    if size != width or form == VALUE_NUMBERS and width not in (4, 8) or not 0 <= form <= VALUE_TRUTHS:
        return None
    if not (defined == 1 if is_flat else repeated == 1 and 2 <= defined <= 3):
        return None
    memset(&column, 0, sizeof(Column))
    memset(&places, 0, sizeof(Places))
    views.count = 0
    column.at = <const uint8_t*>PyBytes_AsString(data)
    column.end, column.most, column.most_values = column.at + len(data), most, values
    try:
        wanted = <const int64_t*>opened(&views, rows, -1, 8)
        count = views.view[0].len // 8
        for i in range(count):
            if not (wanted[i - 1] if i else -1) < wanted[i] < of_group:
                raise ValueError("rows in another order")
        if not count:
            return found
        row = 0 if is_flat else -1
        while column.at < column.end and (done < count or not is_flat and row <= wanted[count - 1]):
            if not next_page(&column) or not has_known_encoding(&column):
                return None
            if column.head.kind == DATA_PAGE and is_flat and wanted[done] >= row + column.head.values:
                row += column.head.values  # it has none of the rows
                column.at += column.head.packed
                continue
            body = page_body(&column, data, unpack)
            if body is None:
                return None
            column.at += column.head.packed
            if column.head.kind == DICTIONARY_PAGE:
                words, column.words, column.words_end = body, column.body, column.body_end
                column.known = column.head.values
            elif is_flat:
                used = flat_places(&column, &places, wanted + done, count - done, row)
                if used < 0 or not add_values(found, &column, &places, form, width):
                    return None
                done, row = done + used, row + column.head.values
            else:
                items, inner = [], []
                if not nested_places(&column, &places, found, items, wanted, count, &done, &row, defined):
                    return None
                if not add_values(inner, &column, &places, form, width):
                    return None
                for each, item in zip(items, inner):
                    each.append(item)
        return found if done == count else None
    finally:
        close(&views)
        free(column.starts)
        free(column.levels)
        free(places.at)


# --- texts that are looked for ---------------------------------------------------------------------------------------


cdef struct Wanted:
    const uint8_t** at   # in their order
    int64_t* sizes
    int64_t count
    uint8_t* marks       # a bit for each hash that one of them has
    int32_t shift


cdef inline uint64_t tail_hash(const uint8_t* p, int64_t size, int32_t shift) noexcept nogil:
    # Of the length and the last bytes, in which ids differ.
    cdef uint64_t word = 0
    if size >= 8:
        word = load64(p + size - 8)
    else:
        memcpy(&word, p, size)
    return ((word ^ <uint64_t>size * ID_MIX) * ID_MIX) >> shift


cdef inline int compare_texts(const uint8_t* p, int64_t size, const uint8_t* q, int64_t other) noexcept nogil:
    cdef int found = memcmp(p, q, min(size, other))
    return found if found else (size > other) - (size < other)


cdef bint is_wanted(const Wanted* wanted, const uint8_t* p, int64_t size) noexcept nogil:
    cdef uint64_t hashed = tail_hash(p, size, wanted.shift)
    cdef int64_t low = 0, high = wanted.count, middle
    cdef int found
    if not wanted.marks[hashed >> 3] >> (hashed & 7) & 1:
        return False
    while low < high:
        middle = (low + high) // 2
        found = compare_texts(p, size, wanted.at[middle], wanted.sizes[middle])
        if found == 0:
            return True
        if found < 0:
            high = middle
        else:
            low = middle + 1
    return False


cdef bint open_wanted(Wanted* wanted, list texts) except *:
    cdef int64_t i, bits = 10
    cdef uint64_t hashed
    while bits < 20 and 1 << bits < 16 * len(texts):
        bits += 1
    wanted.count, wanted.shift = len(texts), <int32_t>(64 - bits)
    wanted.at = <const uint8_t**>malloc((len(texts) + 1) * sizeof(void*))
    wanted.sizes = <int64_t*>malloc((len(texts) + 1) * sizeof(int64_t))
    wanted.marks = <uint8_t*>calloc(1 << bits >> 3, 1)
    if wanted.at == NULL or wanted.sizes == NULL or wanted.marks == NULL:
        raise MemoryError
    for i in range(len(texts)):
        wanted.at[i], wanted.sizes[i] = <const uint8_t*>PyBytes_AsString(texts[i]), PyBytes_Size(texts[i])
        if i and compare_texts(wanted.at[i - 1], wanted.sizes[i - 1], wanted.at[i], wanted.sizes[i]) >= 0:
            raise ValueError("texts in another order")
        hashed = tail_hash(wanted.at[i], wanted.sizes[i], wanted.shift)
        wanted.marks[hashed >> 3] |= <uint8_t>(1 << (hashed & 7))
    return True


cdef bint mark_plain(const Column* column, const Wanted* wanted, int32_t kind, int64_t first, Out* out) except * nogil:
    # Add the rows of a page, whose first one is `first`, that have one of the texts; False: it cannot be read.
    cdef const uint8_t* p = column.body
    cdef int64_t i, size
    for i in range(column.head.values):
        if kind == 2 and not column.levels[i]:
            continue
        if column.body_end - p < 4:
            return False
        size = load32(p)
        p += 4
        if size > column.body_end - p:
            return False
        if is_wanted(wanted, p, size):
            put_row(out, first + i)
        p += size
    return True


cdef int put_row(Out* out, int64_t row) except -1 nogil:
    more_room(out, 8)
    memcpy(out.at + out.used, &row, 8)
    out.used += 8
    return 0


cdef bint mark_coded(const Column* column, const uint8_t* chosen, int32_t kind, int64_t first, Out* out) except * nogil:
    # `chosen`: a byte for each text of the dictionary.
    cdef Codes codes
    cdef int64_t i, at = 0
    cdef uint64_t code
    if not open_codes(&codes, column):
        return False
    for i in range(column.head.values):
        if kind == 2 and not column.levels[i]:
            continue
        if at >= codes.first + codes.count and not next_run(&codes):
            return False
        code = codes.same
        if codes.is_packed:
            code = bits_at(codes.p, codes.end, (at - codes.first) * codes.width, codes.width)
        if code >= <uint64_t>column.known:
            return False
        if chosen[code]:
            put_row(out, first + i)
        at += 1
    return True


def rows_with_texts(bytes data not None, list texts not None, int64_t of_group, int64_t most, unpack):
    """The numbers (64 bits) of the rows of a column of texts without items that have one of some, which are bytes in their
    order, each once; None: pyarrow has to read it. The rest as `rows_of_column`; raises what `unpack` does.
    """
    cdef Column column
    cdef Wanted wanted
    cdef Out out
    cdef int64_t first = 0, i
    cdef int32_t kind
    cdef uint8_t* chosen = NULL
    cdef const uint8_t* word
    cdef bint is_coded, has_any = False, fits
    cdef object body, words = None
    memset(&column, 0, sizeof(Column))
    memset(&wanted, 0, sizeof(Wanted))
    memset(&out, 0, sizeof(Out))
    column.at = <const uint8_t*>PyBytes_AsString(data)
    column.end, column.most, column.most_values = column.at + len(data), most, of_group
    try:
        open_wanted(&wanted, texts)
        while column.at < column.end:
            if not next_page(&column) or not has_known_encoding(&column) or column.head.encoding == DELTA_ENCODED:
                return None
            is_coded = column.head.kind == DATA_PAGE and column.head.encoding != PLAIN_ENCODED
            if column.head.values > of_group - first and column.head.kind == DATA_PAGE:
                return None
            if is_coded and not has_any:  # no text of the dictionary is looked for
                column.at += column.head.packed
                first += column.head.values
                continue
            body = page_body(&column, data, unpack)
            if body is None:
                return None
            column.at += column.head.packed
            if column.head.kind == DICTIONARY_PAGE:
                words, column.words, column.words_end = body, column.body, column.body_end
                column.known = column.head.values
                if not find_words(&column):
                    return None
                chosen = <uint8_t*>malloc(column.known + 1)
                if chosen == NULL:
                    raise MemoryError
                with nogil:
                    for i in range(column.known):
                        word = column.words + column.starts[i]
                        chosen[i] = is_wanted(&wanted, word + 4, load32(word))
                        has_any = has_any or chosen[i]
                continue
            kind = presence(&column)
            if not kind:
                return None
            with nogil:
                if is_coded:
                    fits = mark_coded(&column, chosen, kind, first, &out)
                else:
                    fits = mark_plain(&column, &wanted, kind, first, &out)
            if not fits:
                return None
            first += column.head.values
        return PyBytes_FromStringAndSize(<const char*>out.at, out.used) if first == of_group else None
    finally:
        free(column.starts)
        free(column.levels)
        free(<void*>wanted.at)
        free(wanted.sizes)
        free(wanted.marks)
        free(chosen)
        free(out.at)
