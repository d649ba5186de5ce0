# Lines of spans by their plans (`server.otlp.span_plans`): what to write, in this order, and where it stands.

cdef enum:  # steps of a plan
    STEP_END, LITERAL, EVENT_ID_TEXT, TRACE_ID_TEXT, SPAN_ID_TEXT, PARENT_TEXT, TIME_TEXT, LATENCY_TEXT, COUNT_TEXT
    VALUE_TEXT, PIECE_TEXT, NORMALIZED_TEXT, MICROS_PACKED, COUNT_PACKED, TEXT_PACKED

cdef enum:
    COUNTS = 5
    NO_COUNT = -1
    CONSTANT_COUNT = -2
    PLAN_HEAD = 64

cdef struct PlanHead:
    int32_t source[COUNTS]  # of input, output, cached, written and reasoning tokens: the place of an attribute, or none
    uint8_t is_cache_beside
    uint8_t is_reasoning_beside
    uint8_t fills_output    # an output that was not sent is 0
    uint8_t is_kept         # a line is made of it
    uint64_t constant[COUNTS]

cdef struct Writing:  # of one line
    uint8_t* start
    Py_ssize_t size
    Py_ssize_t room
    uint64_t count[COUNTS]
    bint has_count[COUNTS]
    bint is_normalized

cdef const char* DIGITS = b"0123456789abcdef"
cdef uint8_t ESCAPE[32]
memset(ESCAPE, 117, 32)  # as \u00..
ESCAPE[8], ESCAPE[9], ESCAPE[10], ESCAPE[12], ESCAPE[13] = 98, 116, 110, 102, 114


cdef int need(Writing* line, Py_ssize_t size) except -1:
    # Room for so many bytes more.
    cdef uint8_t* start
    cdef Py_ssize_t room
    if line.room - line.size < size:
        room = 2 * line.room + size
        start = <uint8_t*>realloc(line.start, room)
        if start == NULL:
            raise MemoryError
        line.start, line.room = start, room
    return 0


cdef inline void put_bytes(Writing* line, const void* p, Py_ssize_t length) noexcept nogil:
    memcpy(line.start + line.size, p, length)
    line.size += length


cdef void put_hex(Writing* line, const uint8_t* p, int32_t length) noexcept nogil:
    cdef uint8_t* to = line.start + line.size
    cdef int32_t i
    for i in range(length):
        to[2 * i], to[2 * i + 1] = DIGITS[p[i] >> 4], DIGITS[p[i] & 15]
    line.size += 2 * length


cdef void put_digits(Writing* line, uint64_t number, int32_t least) noexcept nogil:
    # A number with at least so many digits.
    cdef uint8_t digits[20]
    cdef int32_t at = 20
    while number or 20 - at < least:
        at -= 1
        digits[at] = 48 + number % 10
        number //= 10
    put_bytes(line, digits + at, 20 - at)


cdef void put_text(Writing* line, const uint8_t* p, int32_t length) noexcept nogil:
    # A string of JSON; there is room for six bytes each, and ten.
    cdef const uint8_t* end = p + length
    cdef uint8_t* to = line.start + line.size
    cdef uint8_t c
    cdef uint64_t v, quote, back, hits
    cdef uint64_t ones = 0x0101010101010101, tops = 0x8080808080808080
    cdef int32_t plain
    to[0] = 34
    to += 1
    while p < end:
        if end - p >= 8:
            v = load64(p)
            memcpy(to, &v, 8)
            quote, back = v ^ (ones * 34), v ^ (ones * 92)
            # As in `scan`, but for bytes beyond ASCII, which are copied.
            hits = (((quote - ones) & ~quote) | ((back - ones) & ~back) | ((v - ones * 0x20) & ~v)) & tops
            plain = first_byte(hits)
            p += plain
            to += plain
            if plain == 8:
                continue
        c = p[0]
        p += 1
        if c == 34 or c == 92:
            to[0], to[1] = 92, c
            to += 2
        elif c >= 0x20:
            to[0] = c
            to += 1
        elif ESCAPE[c] != 117:
            to[0], to[1] = 92, ESCAPE[c]
            to += 2
        else:
            to[0], to[1], to[2], to[3], to[4], to[5] = 92, 117, 48, 48, DIGITS[c >> 4], DIGITS[c & 15]
            to += 6
    to[0] = 34
    line.size = to + 1 - line.start


cdef extern from *:
    """
    static inline int32_t first_byte(uint64_t hits) { return hits ? __builtin_ctzll(hits) >> 3 : 8; }
    """
    int32_t first_byte(uint64_t) nogil


cdef void put_time(Writing* line, uint64_t micros) noexcept nogil:
    # RFC 3339. Days into a date of the proleptic Gregorian calendar: https://howardhinnant.github.io/date_algorithms.html
    cdef uint64_t left = micros % <uint64_t>DAY, days = micros // <uint64_t>DAY + 719468
    cdef uint64_t era = days // 146097, day = days % 146097, year, month
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    month = month + 3 if month < 10 else month - 9
    put_digits(line, year + era * 400 + (month <= 2), 4)
    put_bytes(line, b"-", 1)
    put_digits(line, month, 2)
    put_bytes(line, b"-", 1)
    put_digits(line, day + 1, 2)
    put_bytes(line, b"T", 1)
    put_digits(line, left // <uint64_t>HOUR, 2)
    put_bytes(line, b":", 1)
    put_digits(line, left // 60000000 % 60, 2)
    put_bytes(line, b":", 1)
    put_digits(line, left // 1000000 % 60, 2)
    put_bytes(line, b".", 1)
    put_digits(line, left % 1000000, 6)
    put_bytes(line, b"Z", 1)


cdef bint put_latency(Writing* line, uint64_t begin, uint64_t end) noexcept nogil:
    # Milliseconds as the shortest decimal of their double: it has at most 15 digits, so it is the quotient itself.
    cdef uint64_t nanos = end - begin, fraction
    cdef int32_t places = 6
    if end <= begin:
        put_bytes(line, b"0", 1)
        return True
    if not 1000 <= nanos < POWERS[15]:  # written with an exponent, or with more digits
        return False
    put_digits(line, nanos // 1000000, 1)
    put_bytes(line, b".", 1)
    fraction = nanos % 1000000
    while places > 1 and fraction % 10 == 0:
        fraction //= 10
        places -= 1
    put_digits(line, fraction, places)
    return True


cdef void put_packed(Writing* line, uint64_t number) noexcept nogil:
    # A number as MessagePack has it, in the fewest bytes.
    cdef uint8_t* to = line.start + line.size
    cdef int32_t size = 0 if number < 128 else 1 if number < 256 else 2 if number < 65536 else 4, i
    if number >> 32:
        size = 8
    if size == 0:
        to[0] = <uint8_t>number
    else:
        to[0] = 0xCC if size == 1 else 0xCD if size == 2 else 0xCE if size == 4 else 0xCF
        for i in range(size):
            to[size - i] = <uint8_t>(number >> 8 * i)
    line.size += size + 1


cdef void count_tokens(const WireSpan* span, const PlanHead* head, Writing* line) noexcept nogil:
    # `tokens.normalize`.
    cdef int32_t i
    cdef uint64_t parts
    for i in range(COUNTS):
        line.has_count[i] = head.source[i] != NO_COUNT
        line.count[i] = 0
        if head.source[i] >= 0:
            line.count[i] = span.values[head.source[i]].number
        elif head.source[i] == CONSTANT_COUNT:
            line.count[i] = head.constant[i]
    line.is_normalized = False
    parts = line.count[2] + line.count[3]
    if parts and line.has_count[0] and (parts > line.count[0] or head.is_cache_beside):
        line.count[0] = min(line.count[0] + parts, MOST_SPAN_COUNT)
        line.is_normalized = True
    parts = line.count[4]
    if parts and line.has_count[1] and (parts > line.count[1] or head.is_reasoning_beside):
        line.count[1] = min(line.count[1] + parts, MOST_SPAN_COUNT)
        line.is_normalized = True


cdef object written(
    const WireSpan* span, const uint8_t* plan, Py_ssize_t size, Writing* line, const uint8_t* event_id, list pieces, json_of
):
    # Line and digest by the steps of a plan; None if one of them is not to be done here.
    cdef const uint8_t* end = plan + size
    cdef const SpanValue* value
    cdef uint8_t step
    cdef uint32_t which
    cdef Py_ssize_t length
    text = None
    line.size = 0
    while plan + 5 <= end:
        step = plan[0]
        which = load32(plan + 1)
        plan += 5
        need(line, 64)
        if step == STEP_END:
            if text is not None:
                return None if line.size > MOST_HASHED else (text, xxh3(line.start, line.size))
            if line.size > MOST_SPAN_LINE:
                return None
            text = PyBytes_FromStringAndSize(<char*>line.start, line.size)
            line.size = 0
        elif step == LITERAL:
            if which > end - plan:
                break
            need(line, which)
            put_bytes(line, plan, which)
            plan += which
        elif step == EVENT_ID_TEXT:
            put_hex(line, event_id, 4)
            put_bytes(line, b"-", 1)
            put_hex(line, event_id + 4, 2)
            put_bytes(line, b"-", 1)
            put_hex(line, event_id + 6, 2)
            put_bytes(line, b"-", 1)
            put_hex(line, event_id + 8, 2)
            put_bytes(line, b"-", 1)
            put_hex(line, event_id + 10, 6)
        elif step == TRACE_ID_TEXT:
            put_hex(line, span.trace_id, 16)
        elif step == SPAN_ID_TEXT:
            put_hex(line, span.span_id, 8)
        elif step == PARENT_TEXT:
            if span.parent_id != NULL:
                put_bytes(line, b',"parent_span_id":"', 19)
                put_hex(line, span.parent_id, 8)
                put_bytes(line, b'"', 1)
        elif step == TIME_TEXT:
            put_time(line, span.begin // 1000)
        elif step == LATENCY_TEXT:
            if not put_latency(line, span.begin, span.end):
                return None
        elif step == COUNT_TEXT and which < COUNTS:
            put_digits(line, line.count[which], 1)
        elif step == VALUE_TEXT and which < <uint32_t>span.count:
            value = span.values + which
            if value.kind == TEXT_VALUE:
                need(line, 6 * <Py_ssize_t>value.length + 10)
                put_text(line, value.start, value.length)
            elif value.kind == WHOLE_VALUE:
                put_digits(line, value.number, 1)
            elif value.kind == FLAG_VALUE:
                put_bytes(line, b"true" if value.number else b"false", 4 if value.number else 5)
            else:
                found = json_of(PyBytes_FromStringAndSize(<const char*>value.start, value.length))
                length = PyBytes_Size(found)
                need(line, length)
                put_bytes(line, PyBytes_AsString(found), length)
        elif step == PIECE_TEXT and which < <uint32_t>len(pieces):
            found = pieces[which]
            length = PyBytes_Size(found)
            need(line, length)
            put_bytes(line, PyBytes_AsString(found), length)
        elif step == NORMALIZED_TEXT:
            if line.is_normalized:
                put_bytes(line, b',"usage_normalized":true', 24)
        elif step == MICROS_PACKED:
            put_packed(line, span.begin // 1000)
        elif step == COUNT_PACKED and which < COUNTS:
            put_packed(line, line.count[which])
        elif step == TEXT_PACKED and which < <uint32_t>span.count:
            value = span.values + which
            if value.kind != TEXT_VALUE or value.length > MOST_FREE_TEXT:
                return None  # it is encoded in another way
            need(line, value.length + 2)
            line.size = packed(line.start + line.size, value.start, value.length) - line.start
        else:
            break
    raise ValueError("no plan of a span")


cdef object known_count(const Writing* line, int32_t which):
    return line.count[which] if line.has_count[which] else None


def span_lines(
    list spans not None, bytes scope not None, bytes project not None, dict plans not None, list pieces not None,
    json_of, sha256, make
):
    """What becomes of each span by its plan, as far as it can be said without the others of its request.

    A list with, for each: None, it is left to the twin; bytes, its shape, for which `plans` has no plan; or what
    `make` makes of a tuple of the plan, the span's ids, those of its parent (empty: it has none), its flags, input and output tokens or None each,
    and, where a line is made of it, line, digest and what prices need, else None for these.

    `scope`: begins each shape; `project`: what is hashed before the ids; `plans`: shape -> anything with a `program` and
    a `raw_provider`, an empty program for what is left to the twin; `pieces`: what all lines of the scope have in common;
    `json_of` makes JSON of an `AnyValue` that is out of the ordinary. Raises what these raise, and `ValueError` for a
    program that is none.
    """
    cdef Py_ssize_t i, size = 0, last_length = -1
    cdef const uint8_t* raw
    cdef const uint8_t* program = NULL
    cdef PlanHead head
    cdef Writing line
    cdef uint8_t ids[16]
    cdef WireSpan* span = <WireSpan*>malloc(sizeof(WireSpan) + MOST_SHAPE)
    cdef uint8_t* last = <uint8_t*>span + sizeof(WireSpan)
    line.room = 4096
    line.start = <uint8_t*>malloc(line.room)
    found = []
    try:
        if span == NULL or line.start == NULL:
            raise MemoryError
        for i in range(len(spans)):
            sent = spans[i]
            raw = <const uint8_t*>PyBytes_AsString(sent)
            span.shape_length = 0
            if not (
                len(scope) < MOST_SHAPE
                and shaped(span, <const uint8_t*>PyBytes_AsString(scope), <int32_t>len(scope))
                and open_span(raw, raw + PyBytes_Size(sent), span)
            ):
                found.append(None)
                continue
            if span.shape_length != last_length or memcmp(span.shape, last, last_length) != 0:
                # Neighbours are mostly of one shape: looking it up is for the others.
                shape = PyBytes_FromStringAndSize(<char*>span.shape, span.shape_length)
                plan = plans.get(shape)
                last_length = -1
                if plan is None:
                    found.append(shape)
                    continue
                code, raw_provider = plan.program, plan.raw_provider
                last_length = span.shape_length
                memcpy(last, span.shape, last_length)
                program, size = <const uint8_t*>PyBytes_AsString(code), PyBytes_Size(code)
                if 0 < size < PLAN_HEAD:
                    raise ValueError("no plan of a span")
                if size:
                    memcpy(&head, program, PLAN_HEAD)
                    for k in range(COUNTS):
                        if head.source[k] >= span.count:
                            raise ValueError("no plan of a span")
            if not size:
                found.append(None)
                continue
            count_tokens(span, &head, &line)
            key = PyBytes_FromStringAndSize(NULL, 24)
            memcpy(PyBytes_AsString(key), span.trace_id, 16)
            memcpy(PyBytes_AsString(key) + 16, span.span_id, 8)
            parent = b""
            if span.parent_id != NULL:
                parent = PyBytes_FromStringAndSize(NULL, 24)
                memcpy(PyBytes_AsString(parent), span.trace_id, 16)
                memcpy(PyBytes_AsString(parent) + 16, span.parent_id, 8)
            tokens, answer = known_count(&line, 0), known_count(&line, 1)
            made, usage = None, None
            if head.is_kept:
                if head.fills_output and line.has_count[0] and not line.has_count[1]:
                    line.has_count[1] = True
                digest = sha256(project + key).digest()
                memcpy(ids, PyBytes_AsString(digest), 16)
                ids[6] = ids[6] & 0x0F | 0x40
                ids[8] = ids[8] & 0x3F | 0x80
                made = written(span, program + PLAN_HEAD, size - PLAN_HEAD, &line, ids, pieces, json_of)
                if made is None:
                    found.append(None)
                    continue
                if line.has_count[0] and line.has_count[1]:
                    usage = (raw_provider, line.count[3], line.count[4], 0)
            found.append(make((plan, key, parent, span.flags, tokens, answer, made, usage)))
        return found
    finally:
        free(span)
        free(line.start)
