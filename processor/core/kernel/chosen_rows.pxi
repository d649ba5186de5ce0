# A few rows of columns of Parquet: only pages are read and unpacked that have one of them, and of these only the values.
#
# A column is what the file has of it in a row group: data pages of version 1, each behind its header, perhaps with a
# dictionary in front. Read are levels as runs, values that are plain, numbers of a dictionary and deltas (`parquet.pxi`).
# Whatever has another form, or does not lie in its bytes, is None: pyarrow, which is the twin, has to read it.
#
# Headers are read through a window of `WINDOW` bytes, in which half of the columns lie as a whole; a page that does not is
# read once it is needed. Of a row group two thirds are ids, of whose pages one is needed: reading all took a fifth of the
# time of a page of events of a rare user.
#
# https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
# https://parquet.apache.org/docs/file-format/data-pages/encodings/

from libc.errno cimport EINTR, errno

cdef extern from "unistd.h":
    Py_ssize_t pread(int, void*, size_t, int64_t) nogil

cdef extern from "Python.h":
    object PyErr_SetFromErrno(object)

cdef enum:
    VALUE_TEXTS, VALUE_NUMBERS, VALUE_DOUBLES, VALUE_DECIMALS, VALUE_TRUTHS
    PLAIN_ENCODED = 0
    OLD_DICTIONARY = 2
    DELTA_ENCODED = 5
    DICTIONARY = 8
    DATA_PAGE = 0
    DICTIONARY_PAGE = 2
    RUNS = 3
    MOST_OF_PAGE = 1 << 26  # bytes, and values; of a row group, rows: no sum or product of sizes has more than 64 bits
    MOST_STRUCTS = 4        # one in the other, in a page's header
    WINDOW = 4096           # bytes of the file
    ZSTD_MAGIC = 0xFD2FB528
    STEP = 64               # levels that are counted at once

cdef struct PageHead:
    int64_t kind
    int64_t unpacked
    int64_t packed
    int64_t values       # nulls included
    int64_t encoding

cdef struct Column:      # as it is read
    int32_t file
    int64_t at           # in the file: where what is read next begins
    int64_t end
    uint8_t* window      # a part of the file
    int64_t window_start
    int64_t window_size
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


# --- pages -----------------------------------------------------------------------------------------------------------


cdef int64_t read_file(int32_t file, uint8_t* to, int64_t size, int64_t start) except -1:
    # How many bytes from `start` on were read; fewer: the file ends there. Raises `OSError`.
    cdef int64_t done = 0
    cdef Py_ssize_t found = 1
    while done < size and found:
        with nogil:
            found = pread(file, to + done, size - done, start + done)
        if found < 0:
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            found = 1
        else:
            done += found
    return done


cdef bint begin_column(Column* column, int32_t file, int64_t start, int64_t size, int64_t values, int64_t most) except *:
    # Whether there can be such a column. What was allocated for the one before stays.
    if not (0 <= start <= <int64_t>1 << 62 and 0 <= size <= <int64_t>1 << 62 and 0 <= values <= MOST_OF_PAGE):
        return False
    free(column.starts)
    column.starts = NULL
    column.words = column.words_end = NULL
    column.known = 0
    column.file, column.at, column.end, column.most_values = file, start, start + size, values
    column.most = min(most, <int64_t>MOST_OF_PAGE)
    column.window_size = 0
    if column.window == NULL:
        column.window = <uint8_t*>malloc(WINDOW)
        if column.window == NULL:
            raise MemoryError
    return True


cdef void end_column(Column* column) noexcept:
    free(column.starts)
    free(column.levels)
    free(column.window)


cdef int move_window(Column* column) except -1:
    # To where the next page begins.
    cdef int64_t size = min(<int64_t>WINDOW, column.end - column.at)
    column.window_start = column.at
    column.window_size = read_file(column.file, column.window, size, column.at)
    return 0


cdef bint next_page(Column* column) except *:
    # Whether another header could be read; the page itself is behind it, at `at`.
    cdef PageHead* head = &column.head
    cdef const uint8_t* p = NULL
    cdef int64_t skipped = column.at - column.window_start
    cdef bint is_new = False
    while p == NULL:
        if not 0 <= skipped < column.window_size:
            if is_new:
                return False
            is_new, skipped = True, 0
            move_window(column)
            continue
        head.kind = head.unpacked = head.packed = head.values = head.encoding = -1
        p = read_page(column.window + skipped, column.window + column.window_size, head, False)
        if p == NULL:
            if skipped == 0:
                return False
            skipped = -1  # it may go on behind the window
    column.at = column.window_start + (p - column.window)
    if not 0 <= head.packed <= min(column.end - column.at, <int64_t>MOST_OF_PAGE) or not 0 <= head.unpacked <= column.most:
        return False
    if not 0 <= head.values <= (column.most_values if head.kind == DATA_PAGE else column.most):  # of texts, 4 bytes each
        return False
    return head.kind == DATA_PAGE or (head.kind == DICTIONARY_PAGE and column.words == NULL)


cdef const uint8_t* stored(const uint8_t* p, int64_t packed, int64_t size) noexcept nogil:
    # Where the content of a frame of zstd (behind its magic) begins that has nothing but `size` bytes as they are; NULL:
    # it is another one.
    # Half of all pages are such, dictionaries of one word and packed numbers, and a call to unpack them took 1 to 2 us.
    #
    # frame = magic, descriptor, perhaps bits of a window, size of the content, blocks; no checksum, no dictionary
    # block  = last (1 bit), type (2 bits, 0: as they are), size (21 bits), bytes
    # https://www.rfc-editor.org/rfc/rfc8878#name-zstandard-frames
    cdef const uint8_t* end = p + packed
    cdef int64_t said = 0, known
    cdef uint32_t block = 0
    if packed < 6 or p[4] & 0x1F:
        return NULL
    known = 1 << (p[4] >> 6) if p[4] >> 6 else p[4] >> 5 & 1
    p += 5 if p[4] >> 5 & 1 else 6
    if end - p < known + 3:
        return NULL
    if known:
        memcpy(&said, p, known)
        if said + (256 if known == 2 else 0) != size:
            return NULL
    p += known
    memcpy(&block, p, 3)
    p += 3
    return p if block == (<uint32_t>size << 3 | 1) and size < 1 << 21 and end - p == size else NULL


cdef object page_body(Column* column, object unpack):
    # What has the bytes of the present page, which `body` is set to; goes on behind it. None: it is not as its header says.
    # Whether it is packed, its bytes say: one that is not begins with a length, which is not so large a number. pyarrow
    # ends the process where it is asked for a packing that is none, as a damaged footer may have it.
    cdef int64_t size = column.head.packed, skipped = column.at - column.window_start
    cdef const uint8_t* begin
    cdef object found
    if skipped + size <= column.window_size:
        found = PyBytes_FromStringAndSize(<const char*>column.window + skipped, size)
    else:
        found = PyBytes_FromStringAndSize(NULL, size)
        if read_file(column.file, <uint8_t*>PyBytes_AsString(found), size, column.at) < size:
            return None
    if size >= 4 and load32(<const uint8_t*>PyBytes_AsString(found)) == ZSTD_MAGIC:
        begin = stored(<const uint8_t*>PyBytes_AsString(found), size, column.head.unpacked)
        if begin != NULL:
            column.body, column.body_end = begin, begin + column.head.unpacked
            column.at += size
            return found
        found = unpack(found, column.head.unpacked)
        if type(found) is not bytes:
            return None
    column.body = <const uint8_t*>PyBytes_AsString(found)
    column.body_end = column.body + PyBytes_Size(found)
    if column.body_end - column.body != column.head.unpacked:
        return None
    column.at += size
    return found


cdef bint has_known_encoding(const Column* column) noexcept nogil:
    cdef int64_t encoding = column.head.encoding
    if column.head.kind == DICTIONARY_PAGE:
        return encoding == PLAIN_ENCODED or encoding == OLD_DICTIONARY
    if encoding == DICTIONARY or encoding == OLD_DICTIONARY:
        return column.words != NULL
    return encoding == PLAIN_ENCODED or encoding == DELTA_ENCODED


# --- levels ----------------------------------------------------------------------------------------------------------


cdef uint32_t PAIRS[256]  # two bits each -> bytes
for _value in range(256):
    PAIRS[_value] = sum((_value >> 2 * _place & 3) << 8 * _place for _place in range(4))


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
            for i in range(many >> 2):
                memcpy(to + done + 4 * i, &PAIRS[p[i]], 4)
            for i in range(many & ~3, many):
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


cdef uint64_t sum_of(const uint8_t* p, const uint8_t* end, int64_t bit, int32_t width, int64_t count) noexcept nogil:
    # Of so many numbers that lie in the bytes.
    cdef uint64_t found = 0, mask
    if width <= 57:  # any of them lies in eight bytes
        mask = (<uint64_t>1 << width) - 1
        while count and end - p >= (bit >> 3) + 8:
            found += load64(p + (bit >> 3)) >> (bit & 7) & mask
            bit += width
            count -= 1
    while count:
        found += bits_at(p, end, bit, width)
        bit += width
        count -= 1
    return found


cdef bint add_deltas(list found, const Column* column, const Places* places, int32_t form, int32_t width) except *:
    # Numbers as `delta_values` writes them; those before the last one that is wanted are added up.
    cdef const uint8_t* p = column.body
    cdef const uint8_t* end = column.body_end
    cdef const uint8_t* widths
    cdef uint64_t block, parts, total, first, least = 0, value
    cdef int64_t i, k, at = 0, of_part, left = 0, part = 0, bit = 0, many
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
                many = min(left, k - at)
                value += least * <uint64_t>many + (sum_of(p, end, bit, bits, many) if bits else 0)
                bit += bits * many
                left -= many
                at += many
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


cdef struct Levels:      # of one bit, run by run, as far as they were looked at
    const uint8_t* p
    const uint8_t* end
    int64_t first        # of the present run
    int64_t count
    bint is_packed
    bint same            # where it is not
    int64_t counted      # bytes of the run
    int64_t before       # values that are there before those


cdef bint next_levels(Levels* levels) noexcept nogil:
    # Behind the run before; False: there is none.
    cdef uint64_t header
    cdef int64_t size
    if levels.is_packed:
        size = levels.count >> 3
        levels.before += bits_there(levels.p + levels.counted, size - levels.counted)
        levels.p += size
    elif levels.same:
        levels.before += levels.count
    levels.first += levels.count
    levels.counted = 0
    levels.p = varint(levels.p, levels.end, &header)
    if levels.p == NULL or levels.p == levels.end or header >> 1 == 0 or header >> 32:
        return False
    size = <int64_t>(header >> 1)
    levels.is_packed = header & 1
    if levels.is_packed:
        levels.count = 8 * size
        return size <= levels.end - levels.p
    levels.count, levels.same = size, levels.p[0]
    if levels.p[0] > 1:
        return False
    levels.p += 1
    return True


cdef int64_t bits_there(const uint8_t* p, int64_t size) noexcept nogil:
    cdef int64_t i = 0, found = 0
    while i + 8 <= size:
        found += POPCOUNT_64(load64(p + i))
        i += 8
    while i < size:
        found += POPCOUNT(p[i])
        i += 1
    return found


cdef int64_t level_at(Levels* levels, int64_t place) noexcept nogil:
    # The place of a value among those that are there, -1: it is null, -2: there are fewer levels. `place` grows.
    cdef int64_t inner, size
    while place >= levels.first + levels.count:
        if not next_levels(levels):
            return -2
    inner = place - levels.first
    if not levels.is_packed:
        return levels.before + inner if levels.same else -1
    size = inner >> 3
    levels.before += bits_there(levels.p + levels.counted, size - levels.counted)
    levels.counted = size
    if not levels.p[size] >> (inner & 7) & 1:
        return -1
    return levels.before + POPCOUNT(levels.p[size] & ((1 << (inner & 7)) - 1))


cdef int64_t flat_places(Column* column, Places* places, const int64_t* rows, int64_t count, int64_t first) noexcept nogil:
    # The places of the rows that are in a page whose first one is `first`; how many these are, -1: it cannot be read.
    cdef Levels levels
    cdef int64_t i, place, last = first + column.head.values
    memset(&levels, 0, sizeof(Levels))
    levels.p = level_bytes(column, column.body, &levels.end)
    places.count = 0
    if levels.p == NULL:
        return -1
    column.body = levels.end
    for i in range(count):
        if rows[i] >= last:
            return i
        place = level_at(&levels, rows[i] - first)
        if place < -1 or not add_place(places, place):
            return -1
    return count


cdef int64_t bytes_there(const uint8_t* levels, int32_t most) noexcept nogil:
    # How many of `STEP` levels are `most`, which is from 1 to 3, as all of them are at most.
    cdef uint64_t word, found = 0
    cdef int32_t i
    for i in range(STEP // 8):
        word = load64(levels + 8 * i)
        if most == 3:
            word &= word >> 1
        elif most == 2:
            word = word >> 1 & ~word
        found += word & <uint64_t>0x0101010101010101
    return (found * <uint64_t>0x0101010101010101) >> 56


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
    cdef int64_t i = 0, begun, present, before = 0, values = column.head.values
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
            begun, present = STEP - bytes_there(repeated + i, 1), bytes_there(defined + i, most)
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


cdef list rows_of(
    Column* column, Places* places, const int64_t* wanted, int64_t count, int32_t form, int32_t width, int32_t defined,
    int32_t repeated, object unpack,
):
    # The values of some rows of a column; None instead: pyarrow has to read it.
    cdef int64_t done = 0, used, row
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
    row = 0 if is_flat else -1
    while column.at < column.end and (done < count or not is_flat and row <= wanted[count - 1]):
        if not next_page(column) or not has_known_encoding(column):
            return None
        if column.head.kind == DATA_PAGE and is_flat and wanted[done] >= row + column.head.values:
            row += column.head.values  # it has none of the rows
            column.at += column.head.packed
            continue
        body = page_body(column, unpack)
        if body is None:
            return None
        if column.head.kind == DICTIONARY_PAGE:
            words, column.words, column.words_end = body, column.body, column.body_end
            column.known = column.head.values
        elif is_flat:
            used = flat_places(column, places, wanted + done, count - done, row)
            if used < 0 or not add_values(found, column, places, form, width):
                return None
            done, row = done + used, row + column.head.values
        else:
            items, inner = [], []
            if not nested_places(column, places, found, items, wanted, count, &done, &row, defined):
                return None
            if not add_values(inner, column, places, form, width):
                return None
            for each, item in zip(items, inner):
                each.append(item)
    return found if done == count else None


def rows_of_columns(int32_t file, list columns not None, rows, int64_t of_group, unpack):
    """The values of some rows of each of some columns, None for null; None instead: pyarrow has to read them.

    `file`: a descriptor; `rows`: 64 bits each, ascending and different; `of_group`: how many rows the row group has;
    `unpack(bytes, size)`: what was packed. Of a column: where it begins in the file, and its bytes there; how many values
    it has, nulls and all; bytes of all of its pages, unpacked; its form: texts (0), whole numbers, doubles, decimals as
    whole numbers, truths (4), of so many bytes each; the highest levels of what is there, and of items. Raises what `unpack` does, `OSError` and `UnicodeDecodeError`.
    """
    cdef Column column
    cdef Places places
    cdef Views views
    cdef const int64_t* wanted
    cdef int64_t count, i, start, size, values, most
    cdef int32_t form, width, defined, repeated
    cdef list found = []
    cdef list part
    memset(&column, 0, sizeof(Column))
    memset(&places, 0, sizeof(Places))
    views.count = 0
    try:
        wanted = <const int64_t*>opened(&views, rows, -1, 8)
        count = views.view[0].len // 8
        for i in range(count):
            if not (wanted[i - 1] if i else -1) < wanted[i] < of_group:
                raise ValueError("rows in another order")
        for start, size, values, most, form, width, defined, repeated in columns:
            if not begin_column(&column, file, start, size, values, most):
                return None
            part = []
            if count:
                part = rows_of(&column, &places, wanted, count, form, width, defined, repeated, unpack)
            if part is None:
                return None
            found.append(part)
        return found
    finally:
        close(&views)
        end_column(&column)
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
    cdef int64_t i, at = 0, bit = 0
    cdef uint64_t code, mask
    if not open_codes(&codes, column):
        return False
    mask = (<uint64_t>1 << codes.width) - 1
    for i in range(column.head.values):
        if kind == 2 and not column.levels[i]:
            continue
        if at >= codes.first + codes.count:
            if not next_run(&codes):
                return False
            bit = 0
        code = codes.same
        if codes.is_packed:
            if codes.end - codes.p >= (bit >> 3) + 8:
                code = load64(codes.p + (bit >> 3)) >> (bit & 7) & mask
            else:
                code = bits_at(codes.p, codes.end, bit, codes.width)
            bit += codes.width
        if code >= <uint64_t>column.known:
            return False
        if chosen[code]:
            put_row(out, first + i)
        at += 1
    return True


def rows_with_texts(
    int32_t file, int64_t start, int64_t size, list texts not None, int64_t of_group, int64_t most, unpack
):
    """The numbers (64 bits) of the rows of a column of texts without items that have one of some, which are bytes in their
    order, each once; None: pyarrow has to read it. The rest as `rows_of_columns`; raises what
    `unpack` does, and `OSError`.
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
    try:
        open_wanted(&wanted, texts)
        if not begin_column(&column, file, start, size, of_group, most):
            return None
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
            body = page_body(&column, unpack)
            if body is None:
                return None
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
        end_column(&column)
        free(<void*>wanted.at)
        free(wanted.sizes)
        free(wanted.marks)
        free(chosen)
        free(out.at)
