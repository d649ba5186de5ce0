# Protobuf messages `Event`, from their wire format. Only its plainest form is taken: each field at most once, in the
# fewest bytes, of its own wire type.

cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    MAP_KEY = 1 << 3 | BYTES
    MAP_TEXT = 2 << 3 | BYTES
    MAP_DOUBLE = 2 << 3 | FIXED64


cdef inline const uint8_t* varint(const uint8_t* p, const uint8_t* end, uint64_t* number) noexcept nogil:
    # Behind a number of up to 63 bits; NULL if it is none, or has more bytes than it needs. Most have a single byte.
    if p < end and p[0] < 128:
        number[0] = p[0]
        return p + 1
    return long_varint(p, end, number)


cdef const uint8_t* long_varint(const uint8_t* p, const uint8_t* end, uint64_t* number) noexcept nogil:
    cdef uint64_t found = 0
    cdef int32_t shift = 0
    while p < end and shift < 63:
        found |= <uint64_t>(p[0] & 127) << shift
        if p[0] < 128:
            if p[0] == 0 and shift:
                return NULL
            number[0] = found
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef inline bint is_utf8(const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef const uint8_t* start = p
    while p + 8 <= end and load64(p) & <uint64_t>0x8080808080808080 == 0:
        p += 8
    if end - p < 8 and end - start >= 8 and load64(end - 8) & <uint64_t>0x8080808080808080 == 0:
        return True  # what is before `p` is ASCII
    while p < end:
        if p[0] < 128:
            p += 1
        else:
            p = utf8(p)
            if p == NULL or p > end:
                return False
    return True


cdef inline const uint8_t* sized(const uint8_t* p, const uint8_t* end, const uint8_t** start) noexcept nogil:
    # Behind a value that says its length, and where it starts; NULL if it goes beyond the end.
    cdef uint64_t size
    p = varint(p, end, &size)
    if p == NULL or size > <uint64_t>(end - p):
        return NULL
    start[0] = p
    return p + size


cdef inline const uint8_t* double_at(const uint8_t* p, const uint8_t* end, double* number) noexcept nogil:
    # Behind a finite double.
    if end - p < 8:
        return NULL
    memcpy(number, p, 8)
    return p + 8 if number[0] - number[0] == 0 else NULL


cdef bint is_entry(const uint8_t* p, const uint8_t* end, uint8_t kind) noexcept nogil:
    # Whether this is an entry of a map: a text, and another one or a double; of unknown fields, one of JSON.
    cdef const uint8_t* start
    cdef double number
    if p == end or p[0] != MAP_KEY:
        return False
    p = sized(p + 1, end, &start)
    if p == NULL or not is_utf8(start, p) or p == end:
        return False
    if kind == SCORES:
        return p[0] == MAP_DOUBLE and double_at(p + 1, end, &number) == end
    if p[0] != MAP_TEXT or sized(p + 1, end, &start) != end:
        return False
    if kind == UNKNOWN:
        # It may look at bytes behind the value; where it ends then is not the value's end.
        return any_value(start) == end
    return is_utf8(start, end)


cdef bint text_field(const uint8_t* p, const uint8_t* end, const Field* field, Event* event, Work* work) noexcept nogil:
    # A value in so many bytes.
    cdef int64_t length = end - p
    cdef int32_t place
    cdef Text text
    if field.kind == UUID:
        return length == 36 and uuid4(p, event.id)
    if field.kind == TIMESTAMP:
        return instant(p, length, &work.date, &event.at)
    if field.kind == COST:
        return cost(p, &event.cost, &event.costs_nothing) == end
    if field.kind == TAGS or field.kind == SCORES:
        return is_entry(p, end, field.kind)
    if field.kind == STRINGS:
        return is_utf8(p, end)
    if field.kind == CHOICE:
        place = chosen(field, p, length)
        if field.role == EVENT_KIND:
            event.is_span = place == SPAN
            return is_utf8(p, end)
        event.chosen[field.role - PROVIDER] = place
        return place >= 0
    # A character has at least a byte.
    if field.kind != TEXT or (field.most >= 0 and length > field.most) or not is_utf8(p, end):
        return False
    if field.role == NOWHERE:
        return length > 0 or not field.is_filled
    if length > MOST_HASHED:
        return False
    text.bytes, text.length = p, <int32_t>length
    if field.role == STEP_NAME:
        event.name = text
        return True
    if field.is_filled and length == 0:
        return False
    if field.role == USER:
        if length:
            event.user = text
    elif field.role == MODEL:
        event.model = text
    else:
        event.environment = text
    return True


cdef bint number_field(uint64_t number, const Field* field, Event* event) noexcept nogil:
    if field.kind == FLAG:
        return number <= 1
    if field.kind != COUNT or number > MOST_COUNT:
        return False
    if field.role == INPUT:
        event.input = number
    elif field.role == OUTPUT:
        event.output = number
    elif field.role == CACHED:
        event.cached = number
    elif field.role == CACHE_WRITE:
        event.cache_write = number
    elif field.role == REASONING:
        event.reasoning = number
    return True


cdef const uint8_t* field_of(
    const uint8_t* p, const uint8_t* end, uint64_t tag, Event* event, int32_t* entries, Work* work
) noexcept nogil:
    # Behind the value of a field; NULL if it is not plainly valid.
    cdef uint64_t number = tag >> 3
    cdef uint8_t place = BY_NUMBER[number & 255] if number < 256 else UNKNOWN
    cdef const uint8_t* start
    cdef const Field* field
    cdef double millis
    if number == <uint64_t>EXTRA and tag & 7 == BYTES:
        p = sized(p, end, &start)
        if p == NULL or not is_entry(start, p, UNKNOWN):
            return NULL
        return p
    if place == UNKNOWN:
        return NULL
    field = FIELDS + place
    if field.kind == TAGS:
        entries[0] += 1
        if field.most >= 0 and entries[0] > field.most:
            return NULL
    elif field.kind != STRINGS and field.kind != SCORES and event.seen >> place & 1:
        return NULL
    event.seen |= <uint64_t>1 << place
    event.there = event.seen
    if tag & 7 == BYTES:
        p = sized(p, end, &start)
        if p == NULL or not text_field(start, p, field, event, work):
            return NULL
        return p
    if tag & 7 == VARINT:
        p = varint(p, end, &number)
        if p == NULL or not number_field(number, field, event):
            return NULL
        return p
    if tag & 7 != FIXED64 or field.kind != MILLIS:
        return NULL
    p = double_at(p, end, &millis)
    if p == NULL or not millis >= 0:
        return NULL
    if field.role == LATENCY:
        event.latency = bucket_of(millis)
    return p


cdef bint message(const uint8_t* p, const uint8_t* end, Row* row, Work* work) noexcept nogil:
    # Whether these bytes are plainly an event.
    cdef uint64_t tag
    cdef int32_t entries = 0
    cdef Event event
    if end - p > MOST_BYTES:
        return False
    clear(&event)
    while p < end:
        p = varint(p, end, &tag)
        if p == NULL:
            return False
        p = field_of(p, end, tag, &event, &entries, work)
        if p == NULL:
            return False
    return finish(&event, row, work)


cdef int32_t messages(const uint8_t* p, const int32_t* sizes, Row* rows, int32_t* odd, Work* work) noexcept nogil:
    # Decode all messages, one after the other; returns how many are given up.
    cdef int32_t number, given_up = 0
    for number in range(work.size):
        if not message(p, p + sizes[number], rows + number, work):
            memset(rows + number, 0, sizeof(Row))
            odd[given_up] = number
            given_up += 1
        p += sizes[number]
    return given_up


def protobuf_rows(bytes padded not None, list records not None, int64_t latest, bint lenient, bint beside):
    """The rows of messages, at most 65,536: `padded` has them one after the other, and `PAD` behind the last. What
    `json_rows` takes and returns beside that."""
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(padded)
    cdef Py_ssize_t length = PyBytes_Size(padded) - PADDING, total = 0, size = len(records), each
    if length < 0 or not 0 < size <= MOST_ROWS or not fields_known or memcmp(text + length, ZEROS, PADDING) != 0:
        raise ValueError("no messages with PAD behind them, or no table of fields")
    rows = PyBytes_FromStringAndSize(NULL, size * sizeof(Row))
    cdef Row* row = <Row*>PyBytes_AsString(rows)
    if <size_t>row & 7:
        return None
    cdef int32_t* odd = <int32_t*>malloc(2 * size * sizeof(int32_t))
    if odd == NULL:
        raise MemoryError
    cdef int32_t* sizes = odd + size
    cdef Work* work = NULL
    cdef int32_t given_up, i
    try:
        for i in range(size):
            each = PyBytes_Size(records[i])
            total += each
            if total > length or each > 0x7FFFFFFF:
                break
            sizes[i] = <int32_t>each
        if total != length:
            raise ValueError("these are not the messages")
        work = begin(<int32_t>size, latest, lenient, beside)
        with nogil:
            given_up = messages(text, sizes, row, odd, work)
        return found(work, rows, [odd[i] for i in range(given_up)])
    finally:
        free(odd)
        free(work)
