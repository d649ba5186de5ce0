# Lines of JSON objects. What is taken here, the twin takes with the same values; everything else it decides.


cdef inline const uint8_t* blanks(const uint8_t* p) noexcept nogil:
    while p[0] == 32 or p[0] == 9 or p[0] == 13:  # a line feed ends the line
        p += 1
    return p


cdef const uint8_t* text_rest(const uint8_t* p, bint is_plain) noexcept nogil:
    # From the first byte that `scan` has stopped at to the closing quote; NULL if it is not valid, or `is_plain` and
    # has escapes.
    cdef int32_t i, unit
    while True:
        if p[0] == 34:
            return p
        if p[0] >= 0x80:
            p = utf8(p)
            if p == NULL:
                return NULL
        elif p[0] != 92 or is_plain:
            return NULL
        elif p[1] == 117:
            unit = 0
            for i in range(2, 6):
                if HEX[p[i]] == 255:
                    return NULL
                unit = unit * 16 + HEX[p[i]]
            if 0xD800 <= unit < 0xE000:
                return NULL
            p += 6
        elif p[1] in (34, 92, 47, 98, 102, 110, 114, 116):
            p += 2
        else:
            return NULL
        p = scan(p)


cdef inline const uint8_t* text_end(const uint8_t* p, bint is_plain) noexcept nogil:
    # The closing quote of a string, from behind the opening one.
    p = scan(p)
    return p if p[0] == 34 else text_rest(p, is_plain)


cdef const uint8_t* any_number(const uint8_t* p, bint is_double) noexcept nogil:
    # Behind a number; `is_double`: only one that is plainly finite.
    cdef const uint8_t* start
    if p[0] == 45:
        p += 1
    start = p
    while is_digit(p[0]):
        p += 1
    if p == start or (start[0] == 48 and p - start > 1) or p - start > 300:
        return NULL
    if p[0] == 46:
        p += 1
        start = p
        while is_digit(p[0]):
            p += 1
        if p == start:
            return NULL
    if p[0] == 101 or p[0] == 69:
        if is_double:
            return NULL
        p += 1
        if p[0] == 45 or p[0] == 43:
            p += 1
        start = p
        while is_digit(p[0]):
            p += 1
        if p == start:
            return NULL
    return p


cdef const uint8_t* scalar(const uint8_t* p) noexcept nogil:
    # Behind a string, a number or a word.
    if p[0] == 34:
        p = text_end(p + 1, False)
        if p == NULL:
            return NULL
        return p + 1
    if p[0] == 116 and memcmp(p, b"true", 4) == 0:
        return p + 4
    if p[0] == 102 and memcmp(p, b"false", 5) == 0:
        return p + 5
    if p[0] == 110 and memcmp(p, b"null", 4) == 0:
        return p + 4
    return any_number(p, False)


cdef const uint8_t* key(const uint8_t* p) noexcept nogil:
    # From a quote to the value behind the colon.
    if p[0] != 34:
        return NULL
    p = text_end(p + 1, False)
    if p == NULL:
        return NULL
    p = blanks(p + 1)
    return blanks(p + 1) if p[0] == 58 else NULL


cdef const uint8_t* any_value(const uint8_t* p) noexcept nogil:
    # Behind any value of a member of the event. Nothing recurses: what is open stands in the bits of `objects`.
    cdef uint64_t objects = 0
    cdef int32_t depth = 1  # the event itself
    while True:
        if p[0] == 123 or p[0] == 91:
            depth += 1
            if depth > MOST_NESTING:
                return NULL
            objects = objects << 1 | (p[0] == 123)
            p = blanks(p + 1)
            if p[0] != (125 if objects & 1 else 93):
                if objects & 1:
                    p = key(p)
                    if p == NULL:
                        return NULL
                continue
        else:
            p = scalar(p)
            if p == NULL or depth == 1:
                return p
            p = blanks(p)
        while p[0] == (125 if objects & 1 else 93):
            objects >>= 1
            depth -= 1
            p += 1
            if depth == 1:
                return p
            p = blanks(p)
        if p[0] != 44:
            return NULL
        p = blanks(p + 1)
        if objects & 1:
            p = key(p)
            if p == NULL:
                return NULL


cdef const uint8_t* many(const uint8_t* p, const Field* field) noexcept nogil:
    # Behind an object of strings (tags) or of numbers (scores), or a list of strings.
    cdef bint is_object = field.kind != STRINGS
    cdef uint8_t close = 125 if is_object else 93
    cdef int64_t entries = 0
    if p[0] != (123 if is_object else 91):
        return NULL
    p = blanks(p + 1)
    if p[0] == close:
        return p + 1
    while True:
        if is_object:
            p = key(p)
            if p == NULL:
                return NULL
        if field.kind == SCORES:
            p = any_number(p, True)
            if p == NULL:
                return NULL
        else:
            if p[0] != 34:
                return NULL
            p = text_end(p + 1, False)
            if p == NULL:
                return NULL
            p += 1
        entries += 1
        p = blanks(p)
        if p[0] == close:
            return p + 1 if field.most < 0 or entries <= field.most else NULL
        if p[0] != 44:
            return NULL
        p = blanks(p + 1)


cdef const uint8_t* text_value(const uint8_t* p, const Field* field, Event* event) noexcept nogil:
    # Behind a string, which `p` is the opening quote of.
    cdef bint is_hot = field.role != NOWHERE
    cdef Text text
    p += 1
    text.bytes = p
    p = text_end(p, is_hot)
    # A character has at least a byte, also in an escape.
    if p == NULL or (field.most >= 0 and p - text.bytes > field.most) or (is_hot and p - text.bytes > MOST_HASHED):
        return NULL
    text.length = <int32_t>(p - text.bytes) if is_hot else 0
    if field.role == STEP_NAME:  # an empty one is none
        event.name = text
    elif field.is_filled and p == text.bytes:
        return NULL
    elif field.role == USER:
        if text.length:
            event.user = text
    elif field.role == MODEL:
        event.model = text
    elif field.role == ENVIRONMENT:
        event.environment = text
    return p + 1


cdef const uint8_t* string_value(const uint8_t* p, const Field* field, Event* event, Work* work) noexcept nogil:
    # Behind the value of a field that is a string.
    cdef const uint8_t* start = p + 1
    cdef int32_t place
    if field.kind == TEXT:
        return text_value(p, field, event)
    if field.kind == UUID:
        return start + 37 if uuid4(start, event.id) and start[36] == 34 else NULL
    if field.kind != TIMESTAMP and field.kind != CHOICE:
        return NULL
    p = text_end(start, True)
    if p == NULL:
        return NULL
    if field.kind == TIMESTAMP:
        return p + 1 if instant(start, p - start, &work.date, &event.at) else NULL
    place = chosen(field, start, p - start)
    if field.role == EVENT_KIND:  # any other one is none
        event.is_span = place == SPAN
    elif place < 0:
        return NULL
    else:
        event.chosen[field.role - PROVIDER] = place
    return p + 1


cdef const uint8_t* number_value(const uint8_t* p, const Field* field, Event* event) noexcept nogil:
    # Behind the value of a field that is a number.
    cdef uint64_t digits = 0
    cdef int32_t places = 0
    if field.kind == COST:
        return cost(p, &event.cost, &event.costs_nothing)
    if field.kind == MILLIS and field.role == NOWHERE:
        if p[0] == 45:
            return NULL
        return any_number(p, True)
    p = decimal(p, &digits, &places)
    if p == NULL or p[0] == 101 or p[0] == 69:
        return NULL
    if field.kind == MILLIS:
        if digits > <uint64_t>1 << 53:
            return NULL
        # Both are exact doubles, so their quotient is the double nearest to the decimal.
        event.latency = bucket_of(<double>digits / <double>POWERS[places])
        return p
    if places or digits > MOST_COUNT:
        return NULL
    if field.role == INPUT:
        event.input = digits
    elif field.role == OUTPUT:
        event.output = digits
    elif field.role == CACHED:
        event.cached = digits
    elif field.role == CACHE_WRITE:
        event.cache_write = digits
    elif field.role == REASONING:
        event.reasoning = digits
    return p


cdef const uint8_t* value(const uint8_t* p, uint8_t place, Event* event, Work* work) noexcept nogil:
    # Behind the value of a field; NULL if it is not plainly valid.
    cdef const Field* field = FIELDS + place
    if p[0] == 110:
        return p + 4 if memcmp(p, b"null", 4) == 0 else NULL
    event.there |= <uint64_t>1 << place
    if p[0] == 34:
        return string_value(p, field, event, work)
    if field.role == EVENT_KIND or field.role == STEP_NAME:
        return any_value(p)  # kept as an unknown field
    if field.kind == COUNT or field.kind == MILLIS or field.kind == COST:
        return number_value(p, field, event)
    if field.kind == FLAG:
        if p[0] == 116 and memcmp(p, b"true", 4) == 0:
            return p + 4
        return p + 5 if p[0] == 102 and memcmp(p, b"false", 5) == 0 else NULL
    if field.kind == TAGS or field.kind == STRINGS or field.kind == SCORES:
        return many(p, field)
    return NULL


cdef const uint8_t* member(const uint8_t* p, int32_t number, Event* event, Work* work) noexcept nogil:
    # Behind a key and its value.
    cdef const uint8_t* start = p + 1
    cdef uint8_t place = work.order[number & 63]
    if p[0] != 34:
        return NULL
    if place != UNKNOWN and memcmp(FIELDS[place].name, start, FIELDS[place].name_length + 1) == 0:
        p = start + FIELDS[place].name_length + 1
    else:
        p = text_end(start, True)
        if p == NULL:
            return NULL
        place = work.order[number & 63] = named(start, p - start)
        p += 1
    p = blanks(p)
    if p[0] != 58:
        return NULL
    p = blanks(p + 1)
    if place == UNKNOWN:
        return any_value(p)
    if event.seen >> place & 1:
        return NULL
    event.seen |= <uint64_t>1 << place
    return value(p, place, event, work)


cdef const uint8_t* line(const uint8_t* p, Row* row, Work* work) noexcept nogil:
    # The end of a line, NULL if it is not plainly an event.
    cdef const uint8_t* start = p
    cdef int32_t number = 0
    cdef Event event
    clear(&event)
    if p[0] != 123:
        return NULL
    p = blanks(p + 1)
    while True:
        p = member(p, number, &event, work)
        if p == NULL:
            return NULL
        number += 1
        p = blanks(p)
        if p[0] != 44:
            break
        p = blanks(p + 1)
    if p[0] != 125:
        return NULL
    p += 1
    if (p[0] != 10 and p != work.end) or p - start > MOST_BYTES or not finish(&event, row, work):
        return NULL
    return p


cdef int32_t lines(const uint8_t* p, const uint8_t* end, Row* rows, int32_t* odd, Work* work) noexcept nogil:
    # Decode all lines of a text; returns how many are given up, -1 if there are not as many as expected.
    cdef int32_t number = 0, given_up = 0
    cdef const uint8_t* start
    work.end = end
    while number < work.size:
        start = p
        p = line(start, rows + number, work)
        if p == NULL:
            memset(rows + number, 0, sizeof(Row))
            odd[given_up] = number
            given_up += 1
            p = <const uint8_t*>memchr(start, 10, end - start)
            if p == NULL:
                p = end
        number += 1
        if p == end:
            return given_up if number == work.size else -1
        p += 1
    return -1


def json_rows(bytes padded not None, int size, int64_t latest, bint lenient, bint beside):
    """The rows of `size` lines, at most 65,536, with a line feed behind each and `PAD` behind that of the last one;
    `latest`: the last instant that an event may have, in microseconds; `lenient`, `beside`: see `codec`.

    Returns the rows' bytes, the users, the dims, the places of the lines that are given up, whose rows are 0, and
    whether there are spans. None if there are more or fewer lines, or this machine keeps bytes where rows cannot be.
    """
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(padded)
    cdef Py_ssize_t length = PyBytes_Size(padded) - PADDING - 1
    if length < 0 or not 0 < size <= MOST_ROWS or not fields_known or memcmp(text + length + 1, ZEROS, PADDING) != 0:
        raise ValueError("no text with PAD behind it, or no table of fields")
    if text[length] != 10:
        raise ValueError("no line feed between the text and PAD")
    rows = PyBytes_FromStringAndSize(NULL, size * sizeof(Row))
    cdef Row* row = <Row*>PyBytes_AsString(rows)
    if <size_t>row & 7:
        return None
    cdef int32_t* odd = <int32_t*>malloc(size * sizeof(int32_t))
    if odd == NULL:
        raise MemoryError
    cdef Work* work = NULL
    cdef int32_t given_up, i
    try:
        work = begin(size, latest, lenient, beside)
        with nogil:
            given_up = lines(text, text + length, row, odd, work)
        return None if given_up < 0 else found(work, rows, [odd[i] for i in range(given_up)])
    finally:
        free(odd)
        free(work)


def objects(bytes body not None):
    """How many lines a body has, which begins as an object does and ends as one, perhaps with a line feed; 0 if one of
    them begins or ends in another way."""
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(body)
    cdef const uint8_t* end = text + PyBytes_Size(body)
    cdef const uint8_t* p = text
    cdef Py_ssize_t count = 1
    if end - text < 2 or text[0] != 123:
        return 0
    if (end - 1)[0] == 10:
        end -= 1
    if (end - 1)[0] != 125:
        return 0
    while True:
        p = <const uint8_t*>memchr(p, 10, end - p)
        if p == NULL:
            return count
        if (p - 1)[0] != 125 or p[1] != 123:
            return 0
        count += 1
        p += 1
