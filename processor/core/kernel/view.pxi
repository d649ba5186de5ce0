# Rows of a view replaced by newer ones, and what that adds to the sums of their users (`row_columns`, `users`).

cdef struct ViewRow:  # `row_columns.ROW`
    int32_t dim       # the complement of its number while there is no such row
    uint32_t requests
    uint32_t errors
    uint32_t unpriced
    int32_t owner
    int32_t next
    int64_t amounts[4]
    int64_t first_seen
    int64_t last_seen

cdef struct Person:   # `users.USER`
    int64_t sums[8]   # in the order of `limbs.SUMMED`
    int64_t first_seen
    int64_t last_seen
    int32_t head
    int32_t rows
    int32_t place
    int32_t unused

cdef enum:
    LIMBS = 8


cdef inline void limbs_of(const ViewRow* row, int64_t* found) noexcept nogil:
    found[0] = row.requests
    found[1] = row.errors
    found[2] = row.amounts[0]
    found[3] = row.amounts[1]
    found[4] = row.amounts[2]
    found[5] = row.amounts[3] & ((<int64_t>1 << 32) - 1)
    found[6] = row.amounts[3] >> 32
    found[7] = row.unpriced


def replace_rows(list kept, list people, int bits, rows, values, int64_t no_first, int64_t no_last):
    """`RowColumns._replace` for distinct rows of which none is deleted. Overwrites `values`, `row_bytes.DTYPE`, with the new
    records, and returns int64 in bytes for each row: its user, its dimension, and 1 if it is new; whether its times
    became narrower, a byte each; and what its user's sums changed by, shape (8, n).

    Raises `ValueError` for arrays that do not fit together; then nothing has changed.
    """
    cdef Py_ssize_t count = len(rows), i
    cdef int j
    cdef Views views
    cdef Parts found, users
    cdef const int64_t* asked
    cdef ViewRow* new
    cdef ViewRow* old
    cdef ViewRow* each
    cdef Person* person
    cdef bint is_whole = True
    cdef int64_t before[LIMBS]
    cdef int64_t after[LIMBS]
    views.count = 0
    memset(&found, 0, sizeof(Parts))
    memset(&users, 0, sizeof(Parts))
    owners, dims, came = bytearray(8 * count), bytearray(8 * count), bytearray(8 * count)
    shrunk, deltas = bytearray(count), bytearray(8 * LIMBS * count)
    cdef int64_t* to_owners = <int64_t*>PyByteArray_AsString(owners)
    cdef int64_t* to_dims = <int64_t*>PyByteArray_AsString(dims)
    cdef int64_t* to_came = <int64_t*>PyByteArray_AsString(came)
    cdef uint8_t* to_shrunk = <uint8_t*>PyByteArray_AsString(shrunk)
    cdef int64_t* to_deltas = <int64_t*>PyByteArray_AsString(deltas)
    try:
        asked = <const int64_t*>opened(&views, rows, count, 8)
        new = <ViewRow*>opened_to_write(&views, values)
        if views.view[views.count - 1].len != count * <Py_ssize_t>sizeof(ViewRow):
            raise ValueError("an array of another size")
        open_parts(&found, kept, sizeof(ViewRow), bits, True)
        open_parts(&users, people, sizeof(Person), bits, True)
        with nogil:
            for i in range(count):
                old = <ViewRow*>record_at(&found, asked[i])
                if old == NULL or record_at(&users, old.owner) == NULL:
                    is_whole = False
                    break
                PREFETCH(record_at(&users, old.owner))
            if is_whole:
                for i in range(count):
                    old, each = <ViewRow*>record_at(&found, asked[i]), new + i
                    person = <Person*>record_at(&users, old.owner)
                    to_owners[i] = old.owner
                    to_dims[i] = old.dim if old.dim >= 0 else ~old.dim
                    to_came[i] = old.dim < 0
                    each.dim, each.owner, each.next = <int32_t>to_dims[i], old.owner, old.next
                    if each.requests == 0:  # its times are not valid
                        each.first_seen, each.last_seen = no_first, no_last
                    to_shrunk[i] = each.first_seen > old.first_seen or each.last_seen < old.last_seen
                    limbs_of(old, before)
                    limbs_of(each, after)
                    for j in range(LIMBS):
                        after[j] -= before[j]
                        person.sums[j] += after[j]
                        to_deltas[j * count + i] = after[j]
                    if each.first_seen < person.first_seen:
                        person.first_seen = each.first_seen
                    if each.last_seen > person.last_seen:
                        person.last_seen = each.last_seen
                    memcpy(old, each, sizeof(ViewRow))
        if not is_whole:
            raise ValueError("there is no such row")
        return owners, dims, came, shrunk, deltas
    finally:
        close(&views)
        close_parts(&found)
        close_parts(&users)
