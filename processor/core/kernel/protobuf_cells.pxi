# Protobuf messages `Event` that intake has taken, to the values of a segment.


cdef inline const uint8_t* sized_cell(const uint8_t* p, const uint8_t* end, Cell* cell) noexcept nogil:
    # Behind a text that says its length; NULL if it is none.
    cdef const uint8_t* start
    p = sized(p, end, &start)
    if p == NULL or p - start > MOST_BYTES or not is_utf8(start, p):
        return NULL
    cell.bytes = start
    cell.size = cell.length = <int32_t>(p - start)
    return p


cdef bint entry_cells(const uint8_t* p, const uint8_t* end, int32_t kind, Cells* cells) noexcept nogil:
    # Whether this is plainly an entry of a map, and its key a new one.
    cdef Entry* entry = new_entry(cells, kind)
    if entry == NULL or p == end or p[0] != MAP_KEY:
        return False
    p = sized_cell(p + 1, end, &entry.key)
    if p == NULL or p == end or not is_new(cells, kind):
        return False
    if kind == SCORES_OF:
        if p[0] != MAP_DOUBLE or double_at(p + 1, end, &entry.number) != end:
            return False
        entry.number += 0.0  # -0.0 becomes 0.0
        return True
    if p[0] != MAP_TEXT or sized_cell(p + 1, end, &entry.item) != end:
        return False
    # The value of an unknown field is JSON with nothing around it. Reading it may look at bytes behind it; where it
    # ends then is not its end.
    return kind != OTHERS_OF or (any_value(entry.item.bytes) == end and is_plain_name(&entry.key))


cdef bint is_plain_name(const Cell* name) noexcept nogil:
    # Whether a name is plainly that of an unknown field, and written in JSON as it is.
    cdef int32_t i
    for i in range(name.size):
        if name.bytes[i] < 32 or name.bytes[i] == 34 or name.bytes[i] == 92:
            return False
    if name.size == ignored_length and memcmp(name.bytes, IGNORED, name.size) == 0:
        return False
    return named(name.bytes, name.size) == UNKNOWN


cdef bint text_found(uint8_t place, const Cell* cell, Cells* cells, Found* found) noexcept nogil:
    # A field that is a text; False if it is not plain.
    cdef const Field* field = FIELDS + place
    cdef Entry* entry
    if field.kind == STRINGS:
        entry = new_entry(cells, TOOLS_OF)
        if entry == NULL:
            return False
        entry.item = cell[0]
        return True
    if field.kind == CHOICE and field.role != STATUS:
        if chosen(field, cell.bytes, cell.size) < 0:
            return False
        if field.role == EVENT_KIND:
            found.is_span = chosen(field, cell.bytes, cell.size) == SPAN
        return True
    if field.role == STEP_NAME and not 0 < cell.size <= field.most:  # a character has at least a byte
        return False
    if TEXT_COLUMNS[place].column >= 0:
        set_text(cells, TEXT_COLUMNS + place, cell)
    return field.kind in (TEXT, UUID, TIMESTAMP, COST, CHOICE)


cdef const uint8_t* field_cells(
    const uint8_t* p, const uint8_t* end, uint64_t tag, Cells* cells, Found* found
) noexcept nogil:
    # Behind the value of a field; NULL if it is not plain.
    cdef uint64_t number = tag >> 3
    cdef uint8_t place = BY_NUMBER[number & 255] if number < 256 else UNKNOWN
    cdef const uint8_t* start
    cdef const Field* field
    cdef double millis
    cdef Cell cell
    if number == <uint64_t>EXTRA and tag & 7 == BYTES:
        p = sized(p, end, &start)
        if p == NULL or not entry_cells(start, p, OTHERS_OF, cells):
            return NULL
        return p
    if place == UNKNOWN:
        return NULL
    field = FIELDS + place
    if field.kind == TAGS or field.kind == SCORES:
        p = sized(p, end, &start) if tag & 7 == BYTES else NULL
        if p == NULL or not entry_cells(start, p, TAGS_OF if field.kind == TAGS else SCORES_OF, cells):
            return NULL
        return p
    if field.kind != STRINGS and found.there >> place & 1:
        return NULL
    found.there |= <uint64_t>1 << place
    if tag & 7 == BYTES:
        p = sized_cell(p, end, &cell)
        if p == NULL or not text_found(place, &cell, cells, found):
            return NULL
        return p
    if tag & 7 == VARINT:
        p = varint(p, end, &number)
        if p == NULL or number > MOST_COUNT:
            return NULL
        if field.kind == FLAG:
            cells.stream[cells.rows] = number != 0
        elif field.kind != COUNT:
            return NULL
        elif NUMBER_COLUMNS[place] >= 0:
            set_number(cells, NUMBER_COLUMNS[place], number)
        return p
    if tag & 7 != FIXED64 or field.kind != MILLIS:
        return NULL
    p = double_at(p, end, &millis)
    if p != NULL and NUMBER_COLUMNS[place] >= 0:
        set_double(cells, NUMBER_COLUMNS[place], millis)
    return p


cdef bint message_cells(const uint8_t* p, const uint8_t* end, Cells* cells) noexcept nogil:
    # Whether these bytes are plainly an event.
    cdef uint64_t tag
    cdef Found found
    clear_cells(cells, &found)
    if end - p > MOST_BYTES:
        return False
    while p < end:
        p = varint(p, end, &tag)
        if p == NULL:
            return False
        p = field_cells(p, end, tag, cells, &found)
        if p == NULL:
            return False
    return finish_cells(cells, &found)


cdef int32_t all_messages(
    const uint8_t* p, const int32_t* sizes, int32_t size, const uint8_t* kept, int32_t* odd, Cells* cells
) noexcept nogil:
    # Read the messages that are kept; returns how many of these are given up.
    cdef int32_t number, given_up = 0
    for number in range(size):
        if kept[number] and not message_cells(p, p + sizes[number], cells):
            drop_cells(cells)
            odd[given_up] = number
            given_up += 1
        p += sizes[number]
    return given_up


def protobuf_cells(bytes padded not None, list records not None, bytes kept not None, bint lenient):
    """The values of the messages that are kept: `padded` and `records` as for `protobuf_rows`, the rest as for
    `json_cells`."""
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(padded)
    cdef const uint8_t* chosen_ones = <const uint8_t*>PyBytes_AsString(kept)
    cdef Py_ssize_t length = PyBytes_Size(padded) - PADDING, total = 0, size = len(records), each
    if length < 0 or not 0 < size <= MOST_ROWS or not texts_known or memcmp(text + length, ZEROS, PADDING) != 0:
        raise ValueError("no messages with PAD behind them, or no table of values")
    if PyBytes_Size(kept) != size or length > 0x7FFFFFFF:
        raise ValueError("these are not the messages, or more than can be read")
    cdef int32_t* odd = <int32_t*>malloc(2 * size * sizeof(int32_t))
    if odd == NULL:
        raise MemoryError
    cdef int32_t* sizes = odd + size
    cdef Cells* cells = NULL
    cdef int32_t given_up, i
    try:
        for i in range(size):
            each = PyBytes_Size(records[i])
            total += each
            if total > length:
                break
            sizes[i] = <int32_t>each
        if total != length:
            raise ValueError("these are not the messages")
        cells = begin_cells(<int32_t>size, lenient)
        with nogil:
            given_up = all_messages(text, sizes, <int32_t>size, chosen_ones, odd, cells)
        return cell_buffers(cells), [odd[i] for i in range(given_up)]
    finally:
        free(odd)
        end_cells(cells)
