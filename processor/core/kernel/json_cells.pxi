# Lines of JSON objects that intake has taken, to the values of a segment.


cdef const uint8_t* text_cell(const uint8_t* p, Cell* cell, bint is_plain) noexcept nogil:
    # Behind a string, which `p` is the opening quote of; `is_plain`: only without escapes.
    if p[0] != 34:
        return NULL
    cell.bytes = p + 1
    p = scan(p + 1)
    if p[0] != 34:
        p = text_rest(p, is_plain)
        if p == NULL:
            return NULL
        cell.size = <int32_t>(p - cell.bytes)
        cell.length = cell.size
        if not is_plain and memchr(cell.bytes, 92, cell.size) != NULL:
            cell.length = unescaped(cell.bytes, cell.size, NULL)
    else:
        cell.length = cell.size = <int32_t>(p - cell.bytes)
    return p + 1


cdef const uint8_t* double_of(const uint8_t* p, double* number) noexcept nogil:
    # Behind a number that is not negative, and the double nearest to it.
    cdef uint64_t digits
    cdef int32_t places, sign = 1, shift = 0
    p = decimal(p, &digits, &places)
    if p == NULL:
        return NULL
    if p[0] == 101 or p[0] == 69:
        p += 1
        if p[0] == 45 or p[0] == 43:
            sign = -1 if p[0] == 45 else 1
            p += 1
        if not is_digit(p[0]):
            return NULL
        while is_digit(p[0]):
            shift = shift * 10 + (p[0] - 48)
            p += 1
            if shift > 30:
                return NULL
    places -= sign * shift
    if digits == 0:
        number[0] = 0.0
    elif 0 <= places < 20:
        number[0] = quotient(digits, POWERS[places])
    elif -20 < places < 0 and digits <= <uint64_t>1 << 53:
        number[0] = <double>digits * <double>POWERS[-places]  # both exact
    else:
        return NULL
    return p


cdef const uint8_t* items(const uint8_t* p, uint8_t kind, Cells* cells) noexcept nogil:
    # Behind an object of strings (tags) or of numbers (scores), or a list of strings.
    cdef bint is_object = kind != STRINGS, is_negative
    cdef int32_t where = TAGS_OF if kind == TAGS else SCORES_OF if kind == SCORES else TOOLS_OF
    cdef uint8_t close = 125 if is_object else 93
    cdef Entry* entry
    if p[0] != (123 if is_object else 91):
        return NULL
    p = blanks(p + 1)
    if p[0] == close:
        return p + 1
    while True:
        entry = new_entry(cells, where)
        if entry == NULL:
            return NULL
        if is_object:
            p = text_cell(p, &entry.key, True)
            if p == NULL or not is_new(cells, where):
                return NULL
            p = blanks(p)
            if p[0] != 58:
                return NULL
            p = blanks(p + 1)
        if kind == SCORES:
            is_negative = p[0] == 45
            p = double_of(p + is_negative, &entry.number)
            if p == NULL:
                return NULL
            if is_negative:
                entry.number = 0.0 - entry.number  # never -0.0
        else:
            p = text_cell(p, &entry.item, False)
            if p == NULL:
                return NULL
        p = blanks(p)
        if p[0] == close:
            return p + 1
        if p[0] != 44:
            return NULL
        p = blanks(p + 1)


cdef const uint8_t* other_cell(const uint8_t* name, int32_t length, const uint8_t* p, Cells* cells) noexcept nogil:
    # Behind the value of an unknown field, which is kept as it stands there.
    cdef const uint8_t* end = any_value(p)
    cdef Entry* entry
    if end == NULL:
        return NULL
    entry = new_entry(cells, OTHERS_OF)
    if entry == NULL:
        return NULL
    entry.key.bytes, entry.key.size, entry.key.length = name, length, length
    entry.item.bytes, entry.item.size, entry.item.length = p, <int32_t>(end - p), <int32_t>(end - p)
    return end if is_new(cells, OTHERS_OF) else NULL


cdef const uint8_t* lax_cell(const uint8_t* name, const uint8_t* p, uint8_t place, Cells* cells, Found* found) noexcept nogil:
    # Behind the value of `kind` or `name`: one of another form is that of an unknown field.
    cdef const Field* field = FIELDS + place
    cdef const uint8_t* end
    cdef Cell cell
    if p[0] == 34:
        end = text_cell(p, &cell, field.role == EVENT_KIND)
        if end == NULL:
            return NULL
        if field.role == EVENT_KIND:
            if chosen(field, cell.bytes, cell.size) >= 0:
                found.is_span = chosen(field, cell.bytes, cell.size) == SPAN
                return end
        elif 0 < cell.size <= field.most:  # a character has at least a byte, also in an escape
            set_text(cells, TEXT_COLUMNS + place, &cell)
            return end
        elif cell.size:
            return NULL
    return other_cell(name, field.name_length, p, cells)


cdef const uint8_t* number_cell(const uint8_t* p, uint8_t place, Cells* cells) noexcept nogil:
    cdef const Field* field = FIELDS + place
    cdef int32_t column = NUMBER_COLUMNS[place], places
    cdef uint64_t digits
    cdef double number
    if column < 0 or field.kind == COST:
        return any_number(p, False)
    if field.kind == MILLIS:
        p = double_of(p, &number)
        if p != NULL:
            set_double(cells, column, number)
        return p
    p = decimal(p, &digits, &places)
    if p == NULL or places or p[0] == 101 or p[0] == 69 or digits > MOST_COUNT:
        return NULL
    set_number(cells, column, digits)
    return p


cdef const uint8_t* cell_of(
    const uint8_t* name, const uint8_t* p, uint8_t place, Cells* cells, Found* found
) noexcept nogil:
    # Behind the value of a field; NULL if it is not plain.
    cdef const Field* field = FIELDS + place
    cdef Cell cell
    if p[0] == 110:
        return p + 4 if memcmp(p, b"null", 4) == 0 else NULL
    found.there |= <uint64_t>1 << place
    if field.role == EVENT_KIND or field.role == STEP_NAME:
        return lax_cell(name, p, place, cells, found)
    if field.kind == TEXT:
        p = text_cell(p, &cell, False)
        if p != NULL and TEXT_COLUMNS[place].column >= 0:
            set_text(cells, TEXT_COLUMNS + place, &cell)
        return p
    if field.kind == COUNT or field.kind == MILLIS or field.kind == COST:
        return number_cell(p, place, cells)
    if field.kind == TAGS or field.kind == STRINGS or field.kind == SCORES:
        return items(p, field.kind, cells)
    if field.kind == FLAG:
        cells.stream[cells.rows] = p[0] == 116
        return scalar(p)
    p = text_cell(p, &cell, field.kind == CHOICE)
    # What is none of the choices may have become one, and a tag.
    if p != NULL and field.kind == CHOICE and field.role != STATUS and chosen(field, cell.bytes, cell.size) < 0:
        return NULL
    return p


cdef const uint8_t* member_cell(const uint8_t* p, int32_t number, Cells* cells, Found* found) noexcept nogil:
    # Behind a key and its value.
    cdef const uint8_t* start = p + 1
    cdef uint8_t place = cells.order[number & 63]
    cdef int32_t length
    if p[0] != 34:
        return NULL
    if place != UNKNOWN and same_text(FIELDS[place].name, start, FIELDS[place].name_length + 1):
        length = FIELDS[place].name_length
    else:
        p = text_end(start, True)
        if p == NULL:
            return NULL
        length = <int32_t>(p - start)
        place = cells.order[number & 63] = named(start, length)
    p = blanks(start + length + 1)
    if p[0] != 58:
        return NULL
    p = blanks(p + 1)
    if place == UNKNOWN:
        if length == ignored_length and memcmp(start, IGNORED, length) == 0:
            return any_value(p)
        return other_cell(start, length, p, cells)
    if found.seen >> place & 1:
        return NULL
    found.seen |= <uint64_t>1 << place
    return cell_of(start, p, place, cells, found)


cdef const uint8_t* line_cells(const uint8_t* p, Cells* cells) noexcept nogil:
    # The end of a line, NULL if it is not plainly an event.
    cdef const uint8_t* start = p
    cdef int32_t number = 0
    cdef Found found
    clear_cells(cells, &found)
    if p[0] != 123:
        return NULL
    p = blanks(p + 1)
    while True:
        p = member_cell(p, number, cells, &found)
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
    if (p[0] != 10 and p != cells.end) or p - start > MOST_BYTES or not finish_cells(cells, &found):
        return NULL
    return p


cdef int32_t all_lines(
    const uint8_t* p, const uint8_t* end, int32_t size, const uint8_t* kept, int32_t* odd, Cells* cells
) noexcept nogil:
    # Read the lines that are kept; returns how many of these are given up, -1 if there are not as many as expected.
    cdef int32_t number = 0, given_up = 0
    cdef const uint8_t* start
    cells.end = end
    while number < size:
        start = p
        p = line_cells(start, cells) if kept[number] else NULL
        if p == NULL:
            if kept[number]:
                drop_cells(cells)
                odd[given_up] = number
                given_up += 1
            p = <const uint8_t*>memchr(start, 10, end - start)
            if p == NULL:
                p = end
        number += 1
        if p == end:
            return given_up if number == size else -1
        p += 1
    return -1


def json_cells(bytes padded not None, bytes kept not None, bint lenient):
    """The values of the lines that are kept: `kept` has a byte for each line, which is not 0 for these; `padded` as
    for `json_rows`. What intake has taken is read as it has read it, anything else as anything.

    Returns buffers, each of all events that are taken, and the places of the lines that are given up; None if there
    are more or fewer lines. The buffers: of each text of `configure_cells` and of the unknown fields the lengths
    (int32, -1: none) and the bytes; of each number whether it is there (bytes) and the number (int64 or double);
    `stream`, whether it is a span, and the marks of spans, bytes each; of tags the counts, the keys and the items, of
    scores the counts, the keys and the numbers, of tools the counts and the items.
    """
    cdef const uint8_t* text = <const uint8_t*>PyBytes_AsString(padded)
    cdef Py_ssize_t length = PyBytes_Size(padded) - PADDING - 1, size = PyBytes_Size(kept)
    if length < 0 or not 0 < size <= MOST_ROWS or not texts_known or memcmp(text + length + 1, ZEROS, PADDING) != 0:
        raise ValueError("no text with PAD behind it, or no table of values")
    if text[length] != 10 or length > 0x7FFFFFFF:
        raise ValueError("no line feed between the text and PAD, or a longer text than can be read")
    cdef int32_t* odd = <int32_t*>malloc(size * sizeof(int32_t))
    if odd == NULL:
        raise MemoryError
    cdef Cells* cells = NULL
    cdef const uint8_t* chosen_ones = <const uint8_t*>PyBytes_AsString(kept)
    cdef int32_t given_up, i
    try:
        cells = begin_cells(<int32_t>size, lenient)
        with nogil:
            given_up = all_lines(text, text + length, <int32_t>size, chosen_ones, odd, cells)
        return None if given_up < 0 else (cell_buffers(cells), [odd[i] for i in range(given_up)])
    finally:
        free(odd)
        end_cells(cells)
