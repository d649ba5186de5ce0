# Records in the segments of `growing_arrays.Segments`: arrays of 2^bits records each, the last one perhaps with fewer.

cdef struct Parts:
    Py_ssize_t count
    Py_ssize_t size    # bytes of a record
    int32_t bits
    Py_ssize_t opened  # how many of `views` are to be released
    Py_buffer* views
    char** starts
    int64_t* rooms


cdef int open_parts(Parts* parts, list arrays, Py_ssize_t size, int bits, bint writable) except -1:
    # To be closed in any case. Each array stays what it is until then.
    cdef Py_ssize_t i
    parts.count, parts.size, parts.bits, parts.opened = len(arrays), size, bits, 0
    parts.views = <Py_buffer*>malloc((parts.count + 1) * sizeof(Py_buffer))
    parts.starts = <char**>malloc((parts.count + 1) * sizeof(char*))
    parts.rooms = <int64_t*>malloc((parts.count + 1) * sizeof(int64_t))
    if parts.views == NULL or parts.starts == NULL or parts.rooms == NULL:
        raise MemoryError
    if not 0 <= bits < 32:
        raise ValueError("no size of a segment")
    for i in range(parts.count):
        PyObject_GetBuffer(arrays[i], &parts.views[i], PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        parts.opened += 1
        if parts.views[i].len % size:
            raise ValueError("an array of other records")
        parts.starts[i] = <char*>parts.views[i].buf
        parts.rooms[i] = parts.views[i].len // size
    return 0


cdef void close_parts(Parts* parts) noexcept:
    cdef Py_ssize_t i
    for i in range(parts.opened):
        PyBuffer_Release(&parts.views[i])
    free(parts.views)
    free(parts.starts)
    free(parts.rooms)


cdef inline char* record_at(const Parts* parts, int64_t number) noexcept nogil:
    # NULL: there is no such record.
    cdef int64_t home = number >> parts.bits, place = number & ((<int64_t>1 << parts.bits) - 1)
    if number < 0 or home >= parts.count or place >= parts.rooms[home]:
        return NULL
    return parts.starts[home] + parts.size * place


cdef object numbers(const int64_t* found, Py_ssize_t count):
    # As bytes, for `np.frombuffer`.
    return PyBytes_FromStringAndSize(<const char*>found, count * sizeof(int64_t))
