# Bytes in memory of the rows of an Arrow record batch, which comes by Arrow's C data interface: for a table of forty
# columns asking pyarrow for each array and its buffers takes ten times as long as the export, and all of the counting.
#
# What such arrays say of their lengths and offsets is Arrow's to keep; numbers in them are compared with these.
# https://arrow.apache.org/docs/format/CDataInterface.html

cdef extern from "Python.h":
    void* PyCapsule_GetPointer(object, const char*) except NULL

cdef extern from *:
    """
    struct ArrowSchema {
      const char *format, *name, *metadata;
      int64_t flags, n_children;
      struct ArrowSchema **children, *dictionary;
      void (*release)(struct ArrowSchema *);
      void *private_data;
    };
    struct ArrowArray {
      int64_t length, null_count, offset, n_buffers, n_children;
      const void **buffers;
      struct ArrowArray **children, *dictionary;
      void (*release)(struct ArrowArray *);
      void *private_data;
    };
    """
    struct ArrowSchema:
        const char* format
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary
        void* private_data
    struct ArrowArray:
        int64_t length
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void** buffers
        ArrowArray** children
        ArrowArray* dictionary

cdef enum:
    KIND_BITS = -1
    KIND_TEXT = -2
    KIND_LIST = -3
    KIND_MAP = -4
    PAIR = 8       # bytes that an item of a map has beside its key and its value
    OFFSET = 4


cdef int32_t kind_of(const ArrowSchema* schema) except 0:
    # The bytes of a number, else one of the kinds above.
    cdef const char* p = schema.format
    if schema.dictionary != NULL or p[0] == b"i":
        return 4
    if p[0] == b"l" or p[0] == b"g" or (p[0] == b"t" and p[1] == b"s"):
        return 8
    if p[0] == b"d":
        return 16
    if p[0] == b"b":
        return KIND_BITS
    if p[0] == b"u":
        return KIND_TEXT
    if p[0] == b"+" and p[1] == b"l":
        return KIND_LIST
    if p[0] == b"+" and p[1] == b"m":
        return KIND_MAP
    raise ValueError("a column of another type")


cdef inline int32_t offset_at(const ArrowArray* array, int64_t place) noexcept nogil:
    return (<const int32_t*>array.buffers[1])[array.offset + place]


cdef inline int64_t bytes_of_bits(int64_t start, int64_t count) noexcept nogil:
    return ((start + count + 7) >> 3) - (start >> 3)


cdef int64_t bytes_of_array(const ArrowSchema* schema, const ArrowArray* array, int64_t first, int64_t count) except -1:
    # What pyarrow's `nbytes` says of `count` values from `first` on, but that a dictionary's texts do not count.
    cdef int32_t kind = kind_of(schema)
    cdef int64_t start = array.offset + first, found = 0, low, high, i
    cdef const ArrowSchema* fields
    cdef const ArrowArray* items
    if first < 0 or count < 0 or first + count > array.length:
        raise ValueError("there are fewer values")
    if array.buffers[0] != NULL:
        found = bytes_of_bits(start, count)
    if kind > 0:
        return found + kind * count
    if kind == KIND_BITS:
        return found + bytes_of_bits(start, count)
    found += OFFSET * count
    low = high = 0
    if array.buffers[1] != NULL:
        low, high = offset_at(array, first), offset_at(array, first + count)
    if kind == KIND_TEXT:
        return found + high - low
    fields, items = schema.children[0], array.children[0]
    if kind == KIND_LIST:
        return found + bytes_of_array(fields, items, low, high - low)
    if items.n_buffers and items.buffers[0] != NULL:
        found += bytes_of_bits(items.offset + low, high - low)
    for i in range(items.n_children):
        found += bytes_of_array(fields.children[i], items.children[i], items.offset + low, high - low)
    return found


cdef int64_t texts_bytes(const ArrowSchema* schema, const ArrowArray* array) except -1:
    return bytes_of_array(schema.dictionary, array.dictionary, 0, array.dictionary.length)


def batch_bytes(schema, array):
    """The bytes that the rows of a batch take in memory, as `schema.bytes_of` counts them."""
    cdef const ArrowSchema* fields = <const ArrowSchema*>PyCapsule_GetPointer(schema, "arrow_schema")
    cdef const ArrowArray* batch = <const ArrowArray*>PyCapsule_GetPointer(array, "arrow_array")
    cdef const ArrowArray* column
    cdef int64_t found = 0, i, texts
    for i in range(batch.n_children):
        column = batch.children[i]
        found += bytes_of_array(fields.children[i], column, 0, column.length)
        if column.dictionary != NULL:
            texts = column.dictionary.length
            found += texts_bytes(fields.children[i], column) * min(column.length, texts) // max(texts, 1)
    return found


cdef int add_text_bytes(const ArrowArray* array, const int64_t* bounds, int64_t runs, int64_t* to) except -1:
    # Add the bytes of the texts from one bound to the next.
    cdef int64_t run
    if runs and (bounds[0] < 0 or bounds[runs] > array.length):
        raise ValueError("there are fewer texts")
    if array.buffers[1] != NULL:
        for run in range(runs):
            to[run] += offset_at(array, bounds[run + 1]) - offset_at(array, bounds[run])
    return 0


cdef int add_coded_bytes(const ArrowArray* array, const int64_t* bounds, int64_t runs, int64_t* to) except -1:
    # The same of texts that are numbers of a dictionary.
    cdef const uint8_t* there = <const uint8_t*>array.buffers[0]
    cdef const int32_t* codes = <const int32_t*>array.buffers[1]
    cdef int64_t run, row
    cdef int32_t code
    for run in range(runs):
        for row in range(array.offset + bounds[run], array.offset + bounds[run + 1]):
            if is_there(there, row):
                code = codes[row]
                if not 0 <= code < array.dictionary.length:
                    raise ValueError("a value that the dictionary does not have")
                to[run] += offset_at(array.dictionary, code + 1) - offset_at(array.dictionary, code)
    return 0


cdef int add_item_bytes(
    const ArrowSchema* schema, const ArrowArray* array, const int64_t* bounds, int64_t* ends, int64_t runs, int64_t* to
) except -1:
    # The same of lists or maps. `ends` is room for the bounds of their items.
    cdef const ArrowSchema* fields = schema.children[0]
    cdef const ArrowArray* items = array.children[0]
    cdef int64_t run, i
    cdef bint is_map = kind_of(schema) == KIND_MAP
    if array.buffers[1] == NULL:
        return 0
    for run in range(runs + 1):
        ends[run] = offset_at(array, bounds[run])
        if not (ends[run - 1] if run else 0) <= ends[run] <= items.length:
            raise ValueError("there are fewer items")
    for run in range(runs):
        to[run] += (PAIR if is_map else OFFSET) * (ends[run + 1] - ends[run])
    if not is_map:
        add_text_bytes(items, ends, runs, to)
        return 0
    for run in range(runs + 1):
        ends[run] += items.offset
    for i in range(items.n_children):
        if kind_of(fields.children[i]) == KIND_TEXT:
            add_text_bytes(items.children[i], ends, runs, to)
    return 0


def bytes_of_runs(schema, array, int64_t rows, int64_t fixed, int64_t common):
    """The bytes (int64) of each run of so many rows of a batch, as `row_sizes.of_runs` counts them: `fixed` a row, and
    texts and items. Dictionaries of up to `common` bytes do not count."""
    cdef const ArrowSchema* fields = <const ArrowSchema*>PyCapsule_GetPointer(schema, "arrow_schema")
    cdef const ArrowArray* batch = <const ArrowArray*>PyCapsule_GetPointer(array, "arrow_array")
    cdef const ArrowArray* column
    cdef int64_t runs, run, i
    cdef int64_t* bounds = NULL
    cdef int64_t* to
    cdef int32_t kind
    if rows < 1:
        raise ValueError("runs without rows")
    runs = (batch.length + rows - 1) // rows
    found = PyBytes_FromStringAndSize(NULL, 8 * runs)
    to = <int64_t*>PyBytes_AsString(found)
    bounds = <int64_t*>malloc(2 * (runs + 1) * sizeof(int64_t))
    if bounds == NULL:
        raise MemoryError
    try:
        for run in range(runs + 1):
            bounds[run] = min(run * rows, batch.length)
        for run in range(runs):
            to[run] = fixed * (bounds[run + 1] - bounds[run])
        for i in range(batch.n_children):
            column, kind = batch.children[i], kind_of(fields.children[i])
            if column.length != batch.length or batch.offset:
                raise ValueError("columns of other lengths")
            if column.dictionary != NULL:
                if texts_bytes(fields.children[i], column) > common:
                    add_coded_bytes(column, bounds, runs, to)
            elif kind == KIND_TEXT:
                add_text_bytes(column, bounds, runs, to)
            elif kind == KIND_LIST or kind == KIND_MAP:
                add_item_bytes(fields.children[i], column, bounds, bounds + runs + 1, runs, to)
    finally:
        free(bounds)
    return found
