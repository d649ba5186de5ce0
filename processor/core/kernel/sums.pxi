# Events added to rows of sums and to histograms, as `numbered_rows` and `latency_rows` do it in columns: one pass.

cdef struct Sums:  # `row_bytes.DTYPE`
    uint32_t zero
    uint32_t requests
    uint32_t errors
    uint32_t unpriced
    int64_t offset
    int64_t amounts[4]  # input, output and cached tokens, cost
    int64_t first_seen
    int64_t last_seen

cdef struct Mark:  # of `numbered_rows`
    int64_t changelog
    int32_t dirty
    int32_t unused


cdef inline uint64_t magnitude(int64_t number) noexcept nogil:
    return <uint64_t>0 - <uint64_t>number if number < 0 else <uint64_t>number


cdef int check_sums(
    const Parts* values, const Parts* marks, const int64_t* rows, const int64_t* offsets, const Row* events,
    Py_ssize_t count, uint64_t most, Sums** sums_of, Mark** marks_of,
) noexcept nogil:
    # Where each event's row is. 0: all may be added; 1: only the twin may; -1: there is no such row.
    cdef Py_ssize_t i
    cdef int j
    cdef const int64_t* amounts
    for i in range(count):
        sums_of[i] = <Sums*>record_at(values, rows[i])
        marks_of[i] = <Mark*>record_at(marks, rows[i])
        if sums_of[i] == NULL or marks_of[i] == NULL:
            return -1
        PREFETCH(sums_of[i])
        PREFETCH(<char*>sums_of[i] + 64)
        PREFETCH(marks_of[i])
    for i in range(count):
        if sums_of[i].offset >= offsets[i]:
            return 1
        amounts = <const int64_t*>&events[i].input
        for j in range(4):
            if magnitude(amounts[j]) > most:
                return 1
    return 0


cdef bint is_over(const Sums* sums, int64_t safe, uint32_t most_requests) noexcept nogil:
    cdef int j
    for j in range(4):
        if sums.amounts[j] >= safe or sums.amounts[j] <= -safe:
            return True
    return sums.requests >= most_requests


def add_sums(
    list values, list marks, int bits, rows, offsets, events, errors, int64_t safe, uint32_t most_requests
):
    """`SumRows.add_to`, for rows of which none is wide: the rows that did not wait for the next flush and do now, each
    once; those that do not fit into columns any more, perhaps more than once; and how many had no events before.

    None, and nothing has changed: a row has its message already, or a sum might not fit into 64 bits. Raises
    `ValueError` for arrays that do not fit together.
    """
    cdef Py_ssize_t count = len(rows), i, found = 0, beyond = 0
    cdef int64_t came = 0
    cdef int j, outcome
    cdef bint any_over = False
    cdef Views views
    cdef Parts sums, marked
    cdef const int64_t* asked
    cdef const int64_t* sources
    cdef const Row* each
    cdef const uint8_t* failed
    cdef const int64_t* amounts
    cdef Sums* row
    cdef Sums** sums_of = <Sums**>malloc((count + 1) * sizeof(void*))
    cdef Mark** marks_of = <Mark**>malloc((count + 1) * sizeof(void*))
    cdef int64_t* fresh = <int64_t*>malloc((count + 1) * sizeof(int64_t))
    views.count = 0
    memset(&sums, 0, sizeof(Parts))
    memset(&marked, 0, sizeof(Parts))
    try:
        if sums_of == NULL or marks_of == NULL or fresh == NULL:
            raise MemoryError
        if not count or safe <= 0:
            raise ValueError("there is no event")
        asked = <const int64_t*>opened(&views, rows, count, 8)
        sources = <const int64_t*>opened(&views, offsets, count, 8)
        each = <const Row*>opened(&views, events, count, sizeof(Row))
        failed = <const uint8_t*>opened(&views, errors, count, 1)
        open_parts(&sums, values, sizeof(Sums), bits, True)
        open_parts(&marked, marks, sizeof(Mark), bits, True)
        with nogil:
            outcome = check_sums(
                &sums, &marked, asked, sources, each, count, <uint64_t>(safe - 1) // <uint64_t>count, sums_of, marks_of
            )
            if outcome == 0:
                for i in range(count):
                    row = sums_of[i]
                    if row.requests == 0:
                        came += 1
                        row.first_seen = row.last_seen = each[i].at
                    elif each[i].at < row.first_seen:
                        row.first_seen = each[i].at
                    elif each[i].at > row.last_seen:
                        row.last_seen = each[i].at
                    row.requests += 1
                    row.errors += failed[i] != 0
                    row.unpriced += each[i].flags & UNPRICED_FLAG
                    amounts = <const int64_t*>&each[i].input
                    for j in range(4):
                        row.amounts[j] += amounts[j]
                    if sources[i] > row.offset:
                        row.offset = sources[i]
                    any_over |= is_over(row, safe, most_requests)
                    if marks_of[i].dirty == 0:
                        marks_of[i].dirty = 1
                        fresh[found] = asked[i]
                        found += 1
        if outcome < 0:
            raise ValueError("there is no such row")
        if outcome > 0:
            return None
        touched = numbers(fresh, found)
        if any_over:
            for i in range(count):
                if is_over(sums_of[i], safe, most_requests):
                    fresh[beyond] = asked[i]
                    beyond += 1
        return touched, numbers(fresh, beyond), came
    finally:
        close(&views)
        close_parts(&sums)
        close_parts(&marked)
        free(sums_of)
        free(marks_of)
        free(fresh)


def count_latencies(
    list held, list pages, list counts, list marks, int bits, int page_bits, rows, offsets, buckets, int64_t never
):
    """`LatencyRows.add`: the histograms that did not wait for the next flush and do now, each once, and how many are new;
    and of those pages that do not exist the places, perhaps more than once: where there are any, nothing has changed.

    None, and nothing has changed: a histogram has its message already. Raises `ValueError` for arrays that do not fit
    together.
    """
    cdef Py_ssize_t count = len(rows), i, found = 0, absent = 0
    cdef int64_t came = 0, page, place, mask = (<int64_t>1 << page_bits) - 1
    cdef int outcome = 0, spread = 8 - page_bits
    cdef Views views
    cdef Parts offsets_held, page_of, counted, marked
    cdef const int64_t* asked
    cdef const int64_t* sources
    cdef const uint8_t* bucket
    cdef int64_t* last
    cdef int32_t* paged
    cdef Mark* mark
    cdef int64_t** cells = <int64_t**>malloc((count + 1) * sizeof(void*))
    cdef int64_t* listed = <int64_t*>malloc((count + 1) * sizeof(int64_t))
    views.count = 0
    memset(&offsets_held, 0, sizeof(Parts))
    memset(&page_of, 0, sizeof(Parts))
    memset(&counted, 0, sizeof(Parts))
    memset(&marked, 0, sizeof(Parts))
    try:
        if cells == NULL or listed == NULL:
            raise MemoryError
        if not 0 < page_bits < 8:
            raise ValueError("no size of a page")
        asked = <const int64_t*>opened(&views, rows, count, 8)
        sources = <const int64_t*>opened(&views, offsets, count, 8)
        bucket = <const uint8_t*>opened(&views, buckets, count, 1)
        open_parts(&offsets_held, held, sizeof(int64_t), bits, True)
        open_parts(&page_of, pages, sizeof(int32_t), bits, False)
        open_parts(&counted, counts, sizeof(int64_t), bits, True)
        open_parts(&marked, marks, sizeof(Mark), bits, True)
        with nogil:
            for i in range(count):
                if bucket[i] == 0:
                    continue
                last = <int64_t*>record_at(&offsets_held, asked[i])
                if last == NULL or record_at(&marked, asked[i]) == NULL:
                    outcome = -1
                    break
                if last[0] >= sources[i]:
                    outcome = 1
                    break
                place = asked[i] << spread | bucket[i] >> page_bits
                paged = <int32_t*>record_at(&page_of, place)
                if paged == NULL:
                    outcome = -1
                    break
                page = paged[0]
                if page < 0:
                    listed[absent] = place
                    absent += 1
                    continue
                cells[i] = <int64_t*>record_at(&counted, page << page_bits | bucket[i] & mask)
                if cells[i] == NULL:
                    outcome = -1
                    break
            if outcome == 0 and absent == 0:
                for i in range(count):
                    if bucket[i] == 0:
                        continue
                    last = <int64_t*>record_at(&offsets_held, asked[i])
                    came += last[0] == never
                    last[0] = sources[i]
                    cells[i][0] += 1
                    mark = <Mark*>record_at(&marked, asked[i])
                    if mark.dirty == 0:
                        mark.dirty = 1
                        listed[found] = asked[i]
                        found += 1
        if outcome < 0:
            raise ValueError("there is no such row")
        if outcome > 0:
            return None
        return numbers(listed, found), came, numbers(listed, absent)
    finally:
        close(&views)
        close_parts(&offsets_held)
        close_parts(&page_of)
        close_parts(&counted)
        close_parts(&marked)
        free(cells)
        free(listed)
