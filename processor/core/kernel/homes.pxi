# The lines of a text, apart by the partition that each belongs to.

cdef struct Pieces:
    int64_t* sizes       # by partition: bytes of its lines, each with a separator
    char** ends          # by partition: where its next line goes
    const char** starts  # of each line, and behind the last one


cdef int64_t find_lines(const char* text, Py_ssize_t size, const int64_t* homes, int64_t count, int64_t partitions, Pieces* pieces) noexcept nogil:
    # How many lines there are, -1 for others than there are homes for, or a home that is none.
    cdef const char* p = text
    cdef const char* end = text + size
    cdef const char* found
    cdef int64_t i
    for i in range(count):
        if p > end or not 0 <= homes[i] < partitions:
            return -1
        pieces.starts[i] = p
        found = <const char*>memchr(p, 10, end - p)
        p = (end if found == NULL else found) + 1
        pieces.sizes[homes[i]] += p - pieces.starts[i]
    pieces.starts[count] = p
    return count if p == end + 1 else -1


def lines_by_home(bytes text not None, homes, int64_t partitions):
    """The lines of a text by partition, as one text for each that has any, in the order of the partitions. `homes`: the
    partition of each line, int64.

    Raises `ValueError` where there are more or fewer lines, or a line has no partition.
    """
    cdef const char* from_ = PyBytes_AsString(text)
    cdef Py_ssize_t size = PyBytes_Size(text)
    cdef int64_t count = len(homes), i
    cdef int64_t length
    cdef const int64_t* home
    cdef Pieces pieces
    cdef Views views
    cdef list found = []
    if not 0 < partitions <= 65536:
        raise ValueError("no number of partitions")
    views.count = 0
    pieces.sizes = <int64_t*>calloc(partitions, sizeof(int64_t))
    pieces.ends = <char**>calloc(partitions, sizeof(char*))
    pieces.starts = <const char**>malloc((count + 1) * sizeof(char*))
    try:
        if pieces.sizes == NULL or pieces.ends == NULL or pieces.starts == NULL:
            raise MemoryError
        home = <const int64_t*>opened(&views, homes, count, sizeof(int64_t))
        with nogil:
            i = find_lines(from_, size, home, count, partitions, &pieces)
        if i < 0:
            raise ValueError("other lines than there are partitions for")
        for i in range(partitions):
            if pieces.sizes[i]:
                piece = PyBytes_FromStringAndSize(NULL, pieces.sizes[i] - 1)
                pieces.ends[i] = PyBytes_AsString(piece)
                found.append(piece)
                pieces.sizes[i] = <int64_t>(pieces.ends[i] + pieces.sizes[i] - 1)  # from here on: where the piece ends
        with nogil:
            for i in range(count):
                length = pieces.starts[i + 1] - pieces.starts[i] - 1
                memcpy(pieces.ends[home[i]], pieces.starts[i], length)
                pieces.ends[home[i]] += length
                if <int64_t>pieces.ends[home[i]] < pieces.sizes[home[i]]:
                    pieces.ends[home[i]][0] = 10
                    pieces.ends[home[i]] += 1
        return found
    finally:
        close(&views)
        free(pieces.sizes)
        free(pieces.ends)
        free(pieces.starts)


def line_ends(bytes text not None):
    """How many line ends a text has."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AsString(text)
    cdef int64_t size = PyBytes_Size(text), done = 0, found = 0, i, many
    cdef uint8_t some
    with nogil:
        while done < size:
            # No more than a byte counts: so many of them are compared and added up at once.
            many, some = min(size - done, 255), 0
            for i in range(done, done + many):
                some += p[i] == 10
            found += some
            done += many
    return found
