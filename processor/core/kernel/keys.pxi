# The keys of users' rows, told apart by all but the user.

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char*, Py_ssize_t, const char*)

cdef struct Group:
    uint64_t hash
    const uint8_t* project
    const uint8_t* rest
    Py_ssize_t project_length
    Py_ssize_t rest_length


cdef const uint8_t* string_end(const uint8_t* p, const uint8_t* end) noexcept nogil:
    # Behind a JSON string in which nothing is escaped; NULL: it is none. There is a zero byte at `end`.
    if p >= end or p[0] != 34:
        return NULL
    p += 1
    while p < end:
        if p[0] == 34:
            return p + 1
        if p[0] < 0x20 or p[0] == 92:
            return NULL
        if p[0] < 0x80:
            p += 1
        else:
            p = utf8(p)
            if p == NULL:
                return NULL
    return NULL


cdef uint64_t hash_of_bytes(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    return xxh3(p, n if n <= MOST_HASHED else MOST_HASHED)


cdef bint is_same_group(const Group* one, const Group* other) noexcept nogil:
    return (
        one.project_length == other.project_length and one.rest_length == other.rest_length
        and memcmp(one.project, other.project, one.project_length) == 0
        and memcmp(one.rest, other.rest, one.rest_length) == 0
    )


def split_keys(list keys not None, bytes prefix not None):
    """For each key, which begins with `prefix`, the number of its group as an int64 in bytes; a key without user of each
    group; and the users of all keys. None: a key is not of this form, something in its project or user is escaped, or it would take
    long."""
    cdef Py_ssize_t count = len(keys), i, before = len(prefix), length, known = 0
    cdef const uint8_t* beginning = <const uint8_t*>PyBytes_AsString(prefix)
    cdef const uint8_t* p
    cdef const uint8_t* start
    cdef const uint8_t* end
    cdef const uint8_t* user
    cdef uint64_t size = 16, mask, at
    cdef int steps
    cdef Group one
    cdef Group* groups = NULL
    cdef int32_t* table = NULL
    cdef int64_t* codes = NULL
    while size < 2 * <uint64_t>count:
        size *= 2
    mask = size - 1
    users, texts = [], []
    try:
        groups = <Group*>malloc((count + 1) * sizeof(Group))
        codes = <int64_t*>malloc((count + 1) * sizeof(int64_t))
        table = <int32_t*>calloc(size, sizeof(int32_t))
        if groups == NULL or codes == NULL or table == NULL:
            raise MemoryError
        for i in range(count):
            key = keys[i]
            start = <const uint8_t*>PyBytes_AsString(key)
            length = PyBytes_Size(key)
            end = start + length
            if length < before or memcmp(start, beginning, before) != 0:
                return None
            one.project = start + before
            p = string_end(one.project, end)
            if p == NULL or p >= end or p[0] != 44:
                return None
            one.project_length = p - one.project
            p += 1
            if end - p > 5 and memcmp(p, b"null,", 5) == 0:
                users.append(None)
                p += 4
            else:
                user = p + 1
                p = string_end(p, end)
                if p == NULL or p >= end or p[0] != 44:
                    return None
                users.append(PyUnicode_DecodeUTF8(<const char*>user, p - 1 - user, NULL))
            one.rest, one.rest_length = p, end - p
            one.hash = hash_of_bytes(one.rest, one.rest_length) * PRIME_1 ^ hash_of_bytes(one.project, one.project_length)
            at, steps = one.hash & mask, 0
            while table[at]:
                if groups[table[at] - 1].hash == one.hash and is_same_group(&groups[table[at] - 1], &one):
                    break
                at = (at + 1) & mask
                steps += 1
                if steps > MOST_STEPS:
                    return None
            if not table[at]:
                groups[known] = one
                known += 1
                table[at] = <int32_t>known
                texts.append(prefix + PyBytes_FromStringAndSize(<const char*>one.project, one.project_length) + b",null"
                             + PyBytes_FromStringAndSize(<const char*>one.rest, one.rest_length))
            codes[i] = table[at] - 1
        return numbers(codes, count), texts, users
    finally:
        free(groups)
        free(codes)
        free(table)
