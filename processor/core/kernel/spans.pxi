# Spans of OTLP, from their wire format (`spans.proto`), as far as lines are made of them by plans (`span_lines.pxi`).
# Only the plainest form is taken: each field at most once, ids of their size, an attribute with a name and a value.

cdef enum:
    MOST_SPAN_VALUES = 128
    MOST_SHAPE = 8192
    MOST_VALUE_NAME = 200   # bytes; longer ones may be cut
    MOST_FREE_TEXT = 128    # bytes of a text that is copied as it is, whatever it is
    NAME_SLOTS = 1024

cdef enum:  # what the value of an attribute is to a plan, by its name
    COPIED     # it may be any: it is only copied
    DECIDES    # what becomes of the span depends on it
    COUNTED    # a number of tokens may be any
    NAMED      # a short text may be any

cdef enum:  # what a value is
    TEXT_VALUE
    WHOLE_VALUE
    FLAG_VALUE
    OTHER_VALUE  # for the twin to say

cdef struct SpanValue:
    const uint8_t* start  # of the text, of anything else the `AnyValue`
    int32_t length
    uint8_t kind
    uint64_t number

cdef struct SpanName:
    const uint8_t* start
    int32_t length        # 0: there is none
    uint8_t meaning

cdef struct WireSpan:
    const uint8_t* trace_id
    const uint8_t* span_id
    const uint8_t* parent_id  # NULL: it has none
    uint64_t begin
    uint64_t end
    uint32_t flags
    int32_t count
    SpanValue values[MOST_SPAN_VALUES]
    int32_t shape_length
    uint8_t shape[MOST_SHAPE]

cdef SpanName SPAN_NAMES[NAME_SLOTS]
cdef SpanName SPAN_PREFIXES[4]
cdef int32_t span_prefixes = 0, MOST_SPAN_VALUE = 0, MOST_SPAN_LINE = 0
cdef uint64_t MOST_SPAN_COUNT = 0
cdef object span_texts = None  # what the names above point into


def configure_spans(names, prefixes, int most_value, int most_line, uint64_t most_count):
    """Take over what attributes mean: pairs of a name in UTF-8 and of 1 (decides), 2 (a count) or 3 (a short text);
    `prefixes` of names that decide, too. Texts of up to `most_value` bytes are kept whole, a line has at most `most_line`
    bytes, a count is at most `most_count`. Raises `ValueError` for tables that are too large."""
    global span_prefixes, MOST_SPAN_VALUE, MOST_SPAN_LINE, MOST_SPAN_COUNT, span_texts
    cdef uint32_t slot
    cdef int32_t place
    cdef SpanName* at
    if len(names) > NAME_SLOTS // 2 or len(prefixes) > 4:
        raise ValueError("the kernel does not know so many names")
    memset(SPAN_NAMES, 0, sizeof(SPAN_NAMES))
    span_texts = [*(name for name, _ in names), *prefixes]
    for name, meaning in names:
        if not 0 < len(name) <= MOST_VALUE_NAME or not DECIDES <= meaning <= NAMED:
            raise ValueError("the kernel does not know such names")
        slot = <uint32_t>xxh3(<const uint8_t*>PyBytes_AsString(name), len(name)) & (NAME_SLOTS - 1)
        while SPAN_NAMES[slot].length:
            slot = (slot + 1) & (NAME_SLOTS - 1)
        at = SPAN_NAMES + slot
        at.start, at.length, at.meaning = <const uint8_t*>PyBytes_AsString(name), len(name), meaning
    span_prefixes = len(prefixes)
    for place in range(span_prefixes):
        at = SPAN_PREFIXES + place
        at.start, at.length = <const uint8_t*>PyBytes_AsString(prefixes[place]), len(prefixes[place])
    MOST_SPAN_VALUE, MOST_SPAN_LINE, MOST_SPAN_COUNT = most_value, most_line, most_count


cdef uint8_t meaning_of(const uint8_t* name, int32_t length) noexcept nogil:
    cdef uint32_t slot = <uint32_t>xxh3(name, length) & (NAME_SLOTS - 1)
    cdef int32_t i
    while SPAN_NAMES[slot].length:
        if SPAN_NAMES[slot].length == length and memcmp(SPAN_NAMES[slot].start, name, length) == 0:
            return SPAN_NAMES[slot].meaning
        slot = (slot + 1) & (NAME_SLOTS - 1)
    for i in range(span_prefixes):
        if length >= SPAN_PREFIXES[i].length and memcmp(SPAN_PREFIXES[i].start, name, SPAN_PREFIXES[i].length) == 0:
            return DECIDES
    return COPIED


cdef void open_value(const uint8_t* p, const uint8_t* end, SpanValue* value) noexcept nogil:
    # An `AnyValue`.
    cdef const uint8_t* start
    cdef uint64_t number
    value.start, value.length, value.kind, value.number = p, <int32_t>(end - p), OTHER_VALUE, 0
    if p == end:
        return
    if p[0] == (1 << 3 | BYTES):
        if sized(p + 1, end, &start) == end and end - start <= MOST_SPAN_VALUE and is_utf8(start, end):
            value.start, value.length, value.kind = start, <int32_t>(end - start), TEXT_VALUE
    elif p[0] == (3 << 3 | VARINT):
        if varint(p + 1, end, &number) == end:
            value.number, value.kind = number, WHOLE_VALUE
    elif p[0] == (2 << 3 | VARINT):
        if varint(p + 1, end, &number) == end and number <= 1:
            value.number, value.kind = number, FLAG_VALUE


cdef bint shaped(WireSpan* span, const uint8_t* p, int32_t length) noexcept nogil:
    # Append bytes to the shape, and how many they are; False if there is no room.
    if span.shape_length + length + 4 > MOST_SHAPE:
        return False
    memcpy(span.shape + span.shape_length, &length, 4)
    memcpy(span.shape + span.shape_length + 4, p, length)
    span.shape_length += length + 4
    return True


cdef bint open_attribute(const uint8_t* p, const uint8_t* end, WireSpan* span) noexcept nogil:
    # A `KeyValue`; False if it is not plainly one.
    cdef const uint8_t* name
    cdef const uint8_t* start
    cdef uint8_t meaning
    cdef SpanValue* value = span.values + span.count
    if span.count == MOST_SPAN_VALUES or p == end or p[0] != (1 << 3 | BYTES):
        return False
    p = sized(p + 1, end, &name)
    if p == NULL or p == end or p - name > MOST_VALUE_NAME or p[0] != (2 << 3 | BYTES):
        return False
    if sized(p + 1, end, &start) != end or not shaped(span, name, <int32_t>(p - name)):
        return False
    meaning = meaning_of(name, <int32_t>(p - name))
    open_value(start, end, value)
    span.count += 1
    if meaning == COUNTED and (value.kind != WHOLE_VALUE or value.number > MOST_SPAN_COUNT):
        meaning = DECIDES
    elif meaning == NAMED and (value.kind != TEXT_VALUE or not 0 < value.length <= MOST_FREE_TEXT):
        meaning = DECIDES
    if not shaped(span, &meaning, 1):
        return False
    return meaning != DECIDES or shaped(span, start, <int32_t>(end - start))


cdef inline bint has_bytes(const uint8_t* p, int32_t length) noexcept nogil:
    # Whether any of 8 or 16 bytes is not zero.
    return load64(p) != 0 or (length == 16 and load64(p + 8) != 0)


cdef bint open_span(const uint8_t* p, const uint8_t* end, WireSpan* span) noexcept nogil:
    # False if it is not plainly a good span, or is one of a kind that is left to the twin.
    cdef uint64_t tag, number, seen = 0
    cdef const uint8_t* start
    cdef const uint8_t* name = p
    cdef const uint8_t* status = p
    cdef int32_t name_length = 0, status_length = 0
    span.parent_id, span.end, span.flags, span.count = NULL, 0, 0, 0
    while p < end:
        p = varint(p, end, &tag)
        if p == NULL or tag > 127 << 3:
            return False
        number = tag >> 3
        if tag & 7 == BYTES:
            p = sized(p, end, &start)
            if p == NULL:
                return False
            if number == 9:
                if not open_attribute(start, p, span):
                    return False
                continue
            if number == 13:
                continue  # links
            if number == 1 and p - start == 16 and has_bytes(start, 16):
                span.trace_id = start
            elif number == 2 and p - start == 8 and has_bytes(start, 8):
                span.span_id = start
            elif number == 4 and (p == start or p - start == 8):
                if p != start and has_bytes(start, 8):
                    span.parent_id = start
            elif number == 5:
                name, name_length = start, <int32_t>(p - start)
            elif number == 15:
                status, status_length = start, <int32_t>(p - start)
            elif number != 3:  # the state of the trace
                return False
        elif tag & 7 == FIXED64 and end - p >= 8:
            if number == 7:
                span.begin = load64(p)
            elif number == 8:
                span.end = load64(p)
            else:
                return False
            p += 8
        elif tag & 7 == 5 and number == 16 and end - p >= 4:
            span.flags = load32(p)
            p += 4
        elif tag & 7 == VARINT and number in (6, 10, 12, 14):  # its kind, and how much was dropped
            p = varint(p, end, &number)
            if p == NULL:
                return False
            continue
        else:
            return False
        if seen >> number & 1:
            return False
        seen |= <uint64_t>1 << number
    # Trace id, span id and start.
    if seen & 0x86 != 0x86 or span.begin == 0:
        return False
    return shaped(span, name, name_length) and shaped(span, status, status_length)
