# Values of events as a segment of the event store has them: texts as lengths and bytes, numbers with what is there,
# collections end to end. Whatever is not plain in an event leaves it to the twin, `processor.event_store.event_values`.

from libc.stdlib cimport realloc

cdef extern from *:
    """
    /* digits / unit as the nearest double, of two equally near ones the even one; both are greater than 0. */
    static inline double quotient(uint64_t digits, uint64_t unit) {
      if (digits <= (uint64_t)1 << 53) return (double)digits / (double)unit;  /* both exact: powers of ten to 10^19 are */
      int shift = __builtin_clzll(digits);
      unsigned __int128 scaled = (unsigned __int128)(digits << shift) << 64;  /* so the quotient has 64 bits or more */
      unsigned __int128 whole = scaled / unit;
      uint64_t high = (uint64_t)(whole >> 64);
      int drop = (high ? 128 - __builtin_clzll(high) : 64) - 53;
      uint64_t top = (uint64_t)(whole >> drop);
      unsigned __int128 rest = whole & (((unsigned __int128)1 << drop) - 1), half = (unsigned __int128)1 << (drop - 1);
      if (rest > half || (rest == half && (scaled % unit != 0 || top & 1))) top++;
      uint64_t bits = (uint64_t)(1023 + drop - shift - 64) << 52;
      double power;
      memcpy(&power, &bits, 8);
      return (double)top * power;
    }
    """
    double quotient(uint64_t, uint64_t) nogil

cdef enum:
    MOST_TEXTS = 16
    MOST_NUMBERS = 8
    MOST_ITEMS = 64  # of one collection of one event: its keys are compared with each other

cdef enum:  # collections
    TAGS_OF, SCORES_OF, TOOLS_OF, OTHERS_OF
    COLLECTIONS

cdef enum:  # marks of spans
    NO_INPUT = 1
    NO_OUTPUT = 2
    IS_FREE = 4

cdef struct TextColumn:   # of a field
    int32_t column        # -1: it has none
    bint is_empty_absent
    int32_t most          # characters that are kept; -1: all

cdef TextColumn TEXT_COLUMNS[MOST_FIELDS]
cdef int32_t NUMBER_COLUMNS[MOST_FIELDS]
cdef int32_t FILLED[MOST_TEXTS]   # columns that lenient handling fills in
cdef int32_t filled_known = 0, NAME_COLUMN = -1, LATENCY_COLUMN = -1
cdef uint64_t NEEDED = 0          # a bit a field: what an event lacks only where that is filled in
cdef uint64_t FLAG_BIT = 0, INPUT_BIT = 0, OUTPUT_BIT = 0  # FLAG_BIT: what a span may lack
cdef int32_t texts_known = 0, numbers_known = 0
cdef uint8_t IGNORED[MOST_NAME]
cdef int32_t ignored_length = -1
cdef uint8_t FILLING[PADDING]
memset(FILLING, 0, PADDING)
memcpy(FILLING, <const uint8_t*>b"unknown", 7)

cdef struct Cell:
    const uint8_t* bytes
    int32_t size     # where it stands, with escapes
    int32_t length   # of what it says; -1: it is not there. Less than `size` if there are escapes

cdef struct Entry:   # of a collection
    Cell key
    Cell item
    double number

cdef struct Entries:
    Entry* at
    int32_t used
    int32_t room

cdef struct Cells:
    int32_t size          # rows that there is room for
    int32_t rows
    bint lenient
    const uint8_t* end    # of the text
    Cell* text            # column by column, like `number` and `there`
    uint64_t* number      # as the bits of an integer or a double
    uint8_t* there
    uint8_t* stream
    uint8_t* is_span
    uint8_t* marks
    int32_t* counts[COLLECTIONS]
    Entries entries[COLLECTIONS]
    uint8_t order[64]     # the fields in the order of the record before

cdef struct Found:        # of one event, what is no cell
    uint64_t seen         # a bit a field
    uint64_t there        # the same, but for those that are null
    bint is_span


def configure_cells(texts, numbers, bytes ignored not None):
    """Take over what a segment has of events beside their rows: after `configure`, before `json_cells`.

    A row of `texts`: name, characters that are kept or None, whether `lenient` fills it in, whether an empty one is
    none; `numbers`: names, among them that of the latency; `ignored`: the name that is no field. Raises `ValueError`
    for names that are no fields of their kind.
    """
    global texts_known, numbers_known, ignored_length, filled_known
    global NAME_COLUMN, LATENCY_COLUMN, NEEDED, FLAG_BIT, INPUT_BIT, OUTPUT_BIT
    cdef int32_t place, column
    cdef uint64_t bit
    if len(texts) > MOST_TEXTS or len(numbers) > MOST_NUMBERS or not 0 < len(ignored) < MOST_NAME:
        raise ValueError("the kernel does not know so many values")
    NEEDED = FLAG_BIT = INPUT_BIT = OUTPUT_BIT = 0
    for place in range(MOST_FIELDS):
        TEXT_COLUMNS[place].column = NUMBER_COLUMNS[place] = -1
        bit = <uint64_t>1 << place
        if place < fields_known and FIELDS[place].kind == FLAG:
            FLAG_BIT |= bit
        if place < fields_known and FIELDS[place].role == INPUT:
            INPUT_BIT = bit
        if place < fields_known and FIELDS[place].role == OUTPUT:
            OUTPUT_BIT = bit
    NEEDED = FLAG_BIT
    filled_known = 0
    for column, (name, most, is_filled, is_empty_absent) in enumerate(texts):
        place = _place_of(name)
        if FIELDS[place].kind != TEXT:
            raise ValueError(f"{name} is no text")
        TEXT_COLUMNS[place].column, TEXT_COLUMNS[place].is_empty_absent = column, is_empty_absent
        TEXT_COLUMNS[place].most = -1 if most is None else most
        if FIELDS[place].role == STEP_NAME:
            NAME_COLUMN = column
        elif is_filled:
            FILLED[filled_known] = column
            filled_known += 1
            NEEDED |= <uint64_t>1 << place
    for column, name in enumerate(numbers):
        place = _place_of(name)
        if FIELDS[place].kind != COUNT and FIELDS[place].kind != MILLIS:
            raise ValueError(f"{name} is no number")
        NUMBER_COLUMNS[place] = column
        if FIELDS[place].role == LATENCY:
            LATENCY_COLUMN = column
            NEEDED |= <uint64_t>1 << place
    if NAME_COLUMN < 0 or LATENCY_COLUMN < 0:
        raise ValueError("a segment has names and latencies")
    texts_known, numbers_known = len(texts), len(numbers)
    memcpy(IGNORED, PyBytes_AsString(ignored), len(ignored))
    ignored_length = len(ignored)


cdef int32_t _place_of(name) except -1:
    raw = name.encode()
    cdef uint8_t place = named(<const uint8_t*>PyBytes_AsString(raw), len(raw))
    if place == UNKNOWN:
        raise ValueError(f"{name} is no field")
    return place


# --- memory ----------------------------------------------------------------------------------------------------------


cdef Cells* begin_cells(int32_t size, bint lenient) except NULL:
    cdef size_t text = sizeof(Cell) * texts_known, number = 9 * numbers_known, few = 3 + 4 * COLLECTIONS
    cdef uint8_t* memory = <uint8_t*>malloc(sizeof(Cells) + size * (text + number + few))
    if memory == NULL:
        raise MemoryError
    cdef Cells* cells = <Cells*>memory
    cdef int32_t i
    memset(cells, 0, sizeof(Cells))
    memset(cells.order, UNKNOWN, sizeof(cells.order))
    cells.size, cells.lenient = size, lenient
    # The widest ones come first, so that all of them lie where they have to.
    cells.text = <Cell*>(memory + sizeof(Cells))
    cells.number = <uint64_t*>(cells.text + size * texts_known)
    cells.counts[0] = <int32_t*>(cells.number + size * numbers_known)
    for i in range(1, COLLECTIONS):
        cells.counts[i] = cells.counts[i - 1] + size
    cells.there = <uint8_t*>(cells.counts[COLLECTIONS - 1] + size)
    cells.stream = cells.there + size * numbers_known
    cells.is_span = cells.stream + size
    cells.marks = cells.is_span + size
    return cells


cdef void end_cells(Cells* cells) noexcept nogil:
    cdef int32_t i
    if cells != NULL:
        for i in range(COLLECTIONS):
            free(cells.entries[i].at)
        free(cells)


cdef Entry* new_entry(Cells* cells, int32_t kind) noexcept nogil:
    # One more of the event; NULL: it has as many as it may, or there is no memory.
    cdef Entries* entries = cells.entries + kind
    cdef Entry* grown
    if cells.counts[kind][cells.rows] >= MOST_ITEMS:
        return NULL
    if entries.used == entries.room:
        grown = <Entry*>realloc(entries.at, sizeof(Entry) * (2 * entries.room + 256))
        if grown == NULL:
            return NULL
        entries.at = grown
        entries.room = 2 * entries.room + 256
    cells.counts[kind][cells.rows] += 1
    entries.used += 1
    return entries.at + entries.used - 1


cdef bint is_new(Cells* cells, int32_t kind) noexcept nogil:
    # Whether the last entry of the event has another key than those before it.
    cdef Entries* entries = cells.entries + kind
    cdef Entry* last = entries.at + entries.used - 1
    cdef int32_t i
    for i in range(1, cells.counts[kind][cells.rows]):
        if (last - i).key.size == last.key.size and memcmp((last - i).key.bytes, last.key.bytes, last.key.size) == 0:
            return False
    return True


# --- an event --------------------------------------------------------------------------------------------------------


cdef inline void clear_cells(Cells* cells, Found* found) noexcept nogil:
    cdef int32_t i, row = cells.rows
    for i in range(texts_known):
        cells.text[i * cells.size + row].length = -1
    for i in range(numbers_known):
        cells.there[i * cells.size + row] = 0
        cells.number[i * cells.size + row] = 0
    for i in range(COLLECTIONS):
        cells.counts[i][row] = 0
    cells.stream[row] = 0
    memset(found, 0, sizeof(Found))


cdef inline void drop_cells(Cells* cells) noexcept nogil:
    # Forget the event that is being read.
    cdef int32_t i
    for i in range(COLLECTIONS):
        cells.entries[i].used -= cells.counts[i][cells.rows]


cdef inline void set_number(Cells* cells, int32_t column, uint64_t bits) noexcept nogil:
    cells.number[column * cells.size + cells.rows] = bits
    cells.there[column * cells.size + cells.rows] = 1


cdef inline void set_double(Cells* cells, int32_t column, double number) noexcept nogil:
    cdef uint64_t bits
    number += 0.0  # -0.0 becomes 0.0
    memcpy(&bits, &number, 8)
    set_number(cells, column, bits)


cdef inline void cut(Cell* cell, int32_t most) noexcept nogil:
    # Keep so many characters of a text.
    cdef int32_t i = 0
    while i < cell.size and most:
        if cell.bytes[i] == 92 and cell.length < cell.size:
            i += 6 if cell.bytes[i + 1] == 117 else 2
        else:
            i += 1
            while i < cell.size and (cell.bytes[i] & 0xC0) == 0x80:
                i += 1
        most -= 1
    if i < cell.size:
        cell.length = i if cell.length == cell.size else unescaped(cell.bytes, i, NULL)
        cell.size = i


cdef inline void set_text(Cells* cells, const TextColumn* column, const Cell* cell) noexcept nogil:
    cdef Cell* to = cells.text + column.column * cells.size + cells.rows
    to[0] = cell[0]
    if column.most >= 0 and cell.length > column.most:
        cut(to, column.most)
    if column.is_empty_absent and cell.length == 0:
        to.length = -1


cdef inline void fill(Cell* cell) noexcept nogil:
    if cell.length <= 0:
        cell.bytes, cell.size, cell.length = FILLING, 7, 7


cdef bint finish_cells(Cells* cells, const Found* found) noexcept nogil:
    # Fill in what is missing; False if the event as a whole is not plain.
    cdef int32_t i, row = cells.rows
    cdef Cell* name = cells.text + NAME_COLUMN * cells.size + row
    cdef uint8_t marks = 0
    if cells.lenient:
        for i in range(filled_known):
            fill(cells.text + FILLED[i] * cells.size + row)
        if not cells.there[LATENCY_COLUMN * cells.size + row]:
            set_double(cells, LATENCY_COLUMN, 0.0)
    elif NEEDED & ~found.there & ~(FLAG_BIT if found.is_span else 0):
        return False
    if found.is_span:
        if name.length < 0 and not cells.lenient:
            return False
        fill(name)
        if not found.there & INPUT_BIT:
            marks |= NO_INPUT
        if not found.there & OUTPUT_BIT:
            marks |= NO_OUTPUT
        if found.there & PRICE_BIT:
            marks |= IS_FREE
    cells.is_span[row], cells.marks[row] = found.is_span, marks
    cells.rows += 1
    return True


# --- what comes out --------------------------------------------------------------------------------------------------


cdef int32_t unescaped(const uint8_t* p, int32_t size, uint8_t* to) noexcept nogil:
    # The bytes of what a valid text with escapes says, without surrogates; written to `to` if that is not NULL.
    cdef const uint8_t* end = p + size
    cdef int32_t written = 0, unit, i
    cdef uint8_t c
    while p < end:
        c = p[0]
        if c != 92:
            if to != NULL:
                to[written] = c
            written += 1
            p += 1
            continue
        c = p[1]
        p += 2
        if c == 117:
            unit = 0
            for i in range(4):
                unit = unit * 16 + HEX[p[i]]
            p += 4
            if unit >= 0x800:
                if to != NULL:
                    to[written] = 0xE0 | unit >> 12
                    to[written + 1] = 0x80 | (unit >> 6 & 63)
                    to[written + 2] = 0x80 | (unit & 63)
                written += 3
                continue
            if unit >= 0x80:
                if to != NULL:
                    to[written] = 0xC0 | unit >> 6
                    to[written + 1] = 0x80 | (unit & 63)
                written += 2
                continue
            c = unit
        elif c == 98:
            c = 8
        elif c == 102:
            c = 12
        elif c == 110:
            c = 10
        elif c == 114:
            c = 13
        elif c == 116:
            c = 9
        if to != NULL:
            to[written] = c
        written += 1
    return written


cdef inline uint8_t* put_cell(uint8_t* to, const Cell* cell, const uint8_t* end) noexcept nogil:
    # Behind what the text says; `end`: of the room. There are PADDING bytes behind every text.
    if cell.length <= 0:
        return to
    if cell.length == cell.size:
        if cell.length <= PADDING <= end - to:
            memcpy(to, cell.bytes, PADDING)  # a call of memcpy for so many bytes as it has takes longer
        else:
            memcpy(to, cell.bytes, cell.length)
    else:
        unescaped(cell.bytes, cell.size, to)
    return to + cell.length


cdef object text_buffers(const Cell* cell, int64_t count, size_t step):
    # The lengths of so many texts, `step` bytes apart, and their bytes; a length of -1: there is none.
    cdef int64_t i, total = 0
    cdef const uint8_t* at = <const uint8_t*>cell
    cdef const uint8_t* end
    cdef int32_t length
    lengths = PyBytes_FromStringAndSize(NULL, count * sizeof(int32_t))
    cdef uint8_t* to = <uint8_t*>PyBytes_AsString(lengths)
    for i in range(count):
        length = (<const Cell*>(at + i * step)).length
        memcpy(to + i * sizeof(int32_t), &length, sizeof(int32_t))
        total += length if length > 0 else 0
    data = PyBytes_FromStringAndSize(NULL, total)
    to = <uint8_t*>PyBytes_AsString(data)
    end = to + total
    with nogil:
        for i in range(count):
            to = put_cell(to, <const Cell*>(at + i * step), end)
    return lengths, data


cdef object extra_buffers(Cells* cells):
    # The unknown fields of each event as the text of a JSON object.
    cdef int64_t i, k, total = 0
    cdef Entry* entry = cells.entries[OTHERS_OF].at
    cdef int32_t length, each
    lengths = PyBytes_FromStringAndSize(NULL, cells.rows * sizeof(int32_t))
    cdef uint8_t* to = <uint8_t*>PyBytes_AsString(lengths)
    for i in range(cells.rows):
        each = cells.counts[OTHERS_OF][i]
        length = -1
        if each:
            length = 1 + 4 * each  # braces, and for each quotes, a colon and a comma, but one
            for k in range(each):
                length += entry[k].key.size + entry[k].item.size
            entry += each
            total += length
        memcpy(to + i * sizeof(int32_t), &length, sizeof(int32_t))
    data = PyBytes_FromStringAndSize(NULL, total)
    to = <uint8_t*>PyBytes_AsString(data)
    entry = cells.entries[OTHERS_OF].at
    with nogil:
        for i in range(cells.rows):
            each = cells.counts[OTHERS_OF][i]
            for k in range(each):
                to[0], to[1] = 44 if k else 123, 34
                memcpy(to + 2, entry.key.bytes, entry.key.size)
                to += 2 + entry.key.size
                to[0], to[1] = 34, 58
                memcpy(to + 2, entry.item.bytes, entry.item.size)
                to += 2 + entry.item.size
                entry += 1
            if each:
                to[0] = 125
                to += 1
    return lengths, data


cdef list collection_buffers(Cells* cells, int32_t kind):
    cdef Entries* entries = cells.entries + kind
    cdef list found = [PyBytes_FromStringAndSize(<const char*>cells.counts[kind], cells.rows * sizeof(int32_t))]
    cdef int64_t i
    cdef uint8_t* to
    if kind != TOOLS_OF:
        found.extend(text_buffers(&entries.at.key if entries.used else NULL, entries.used, sizeof(Entry)))
    if kind != SCORES_OF:
        found.extend(text_buffers(&entries.at.item if entries.used else NULL, entries.used, sizeof(Entry)))
        return found
    numbers = PyBytes_FromStringAndSize(NULL, entries.used * sizeof(double))
    to = <uint8_t*>PyBytes_AsString(numbers)
    for i in range(entries.used):
        memcpy(to + i * sizeof(double), &entries.at[i].number, sizeof(double))
    found.append(numbers)
    return found


cdef list cell_buffers(Cells* cells):
    # What `json_cells` and `protobuf_cells` return, without the events that are given up.
    cdef list found = []
    cdef int32_t i
    cdef Py_ssize_t rows = cells.rows
    for i in range(texts_known):
        found.extend(text_buffers(cells.text + i * cells.size, rows, sizeof(Cell)))
    found.extend(extra_buffers(cells))
    for i in range(numbers_known):
        found.append(PyBytes_FromStringAndSize(<const char*>cells.there + i * cells.size, rows))
        found.append(PyBytes_FromStringAndSize(<const char*>(cells.number + i * cells.size), rows * sizeof(uint64_t)))
    found.append(PyBytes_FromStringAndSize(<const char*>cells.stream, rows))
    found.append(PyBytes_FromStringAndSize(<const char*>cells.is_span, rows))
    found.append(PyBytes_FromStringAndSize(<const char*>cells.marks, rows))
    for i in (TAGS_OF, SCORES_OF, TOOLS_OF):
        found.extend(collection_buffers(cells, i))
    return found
