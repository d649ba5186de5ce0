# Names of users: their hashes (`hash_index.name_hashes`), and the keys of rows that they stand in (`user_rows`).

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL
    Py_hash_t PyObject_Hash(object) except? -1


def name_hashes(list names not None, longer):
    """Two halves of 64 bits for each name, as bytes. `longer` is XXH3 for those that are longer than it is made for here.

    Raises what encoding a name to UTF-8 raises.
    """
    cdef Py_ssize_t count = len(names), i, length = 0
    cdef const uint8_t* text
    cdef uint64_t* found
    hashes = bytearray(16 * count)
    found = <uint64_t*>PyByteArray_AsString(hashes)
    for i in range(count):
        name = names[i]
        found[2 * i] = <uint64_t>PyObject_Hash(name)
        if name is None:
            text, length = ZEROS, 0
        else:
            text = <const uint8_t*>PyUnicode_AsUTF8AndSize(name, &length)
        if length <= MOST_HASHED:
            found[2 * i + 1] = xxh3(text, length)
        else:
            found[2 * i + 1] = longer(name.encode())
    return hashes


cdef bint is_plain(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    # Whether JSON has these bytes of UTF-8 as they are.
    cdef Py_ssize_t i
    for i in range(n):
        if p[i] < 0x20 or p[i] == 34 or p[i] == 92 or p[i] == 0x7F:
            return False
    return True


def name_texts(list names not None, encode):
    """The JSON of names, one behind the other as a bytearray, and the length of each as int64 in bytes.

    `encode` makes JSON of a name; it is asked for what is not plain. Raises what encoding a name raises.
    """
    cdef Py_ssize_t count = len(names), i, length, room = 0, at = 0
    cdef const char* text
    cdef char* to
    cdef int64_t* lengths
    cdef list pieces = []  # JSON of the names that are not plain
    found = bytearray(8 * count)
    lengths = <int64_t*>PyByteArray_AsString(found)
    for i in range(count):
        name = names[i]
        length = -1
        if name is not None:
            text = PyUnicode_AsUTF8AndSize(name, &length)
            if not is_plain(<const uint8_t*>text, length):
                length = -1
        if length < 0:
            piece = encode(name)
            pieces.append(piece)
            lengths[i] = -PyBytes_Size(piece)
            room -= lengths[i]
        else:
            lengths[i] = length + 2
            room += lengths[i]
    texts = bytearray(room)
    to = PyByteArray_AsString(texts)
    pieces.reverse()
    for i in range(count):
        if lengths[i] < 0:
            lengths[i] = -lengths[i]
            piece = pieces.pop()
            memcpy(to, PyBytes_AsString(piece), lengths[i])
        else:
            text = PyUnicode_AsUTF8AndSize(names[i], &length)
            to[0] = to[length + 1] = 34
            memcpy(to + 1, text, length)
        to += lengths[i]
    return texts, found


def row_keys(list starts not None, list ends not None, groups, bounds, texts, rows):
    """The key of each of `rows`: what its group has before a name, the row's part of `texts`, and what the group has behind
    it. `groups` are int32, `bounds`, one more, and `rows` int64. Raises `ValueError` for what does not fit together."""
    cdef Py_ssize_t known = len(starts), count, i, wanted, before, length, behind, size
    cdef Views views
    cdef const int32_t* group
    cdef const int64_t* bound
    cdef const int64_t* row
    cdef const char* text
    cdef char* to
    views.count = 0
    keys = []
    if len(ends) != known:
        raise ValueError("an array of another size")
    try:
        group = <const int32_t*>opened(&views, groups, -1, 4)
        count = views.view[0].len // 4
        bound = <const int64_t*>opened(&views, bounds, count + 1, 8)
        text = <const char*>opened(&views, texts, -1, 1)
        size = views.view[2].len
        row = <const int64_t*>opened(&views, rows, -1, 8)
        wanted = views.view[3].len // 8
        for i in range(wanted):
            if not 0 <= row[i] < count or not 0 <= group[row[i]] < known:
                raise ValueError("no such row or group")
            length = bound[row[i] + 1] - bound[row[i]]
            if bound[row[i]] < 0 or length < 0 or bound[row[i] + 1] > size:
                raise ValueError("a name that is not there")
            start, end = starts[group[row[i]]], ends[group[row[i]]]
            before, behind = PyBytes_Size(start), PyBytes_Size(end)
            key = PyBytes_FromStringAndSize(NULL, before + length + behind)
            to = PyBytes_AsString(key)
            memcpy(to, PyBytes_AsString(start), before)
            memcpy(to + before, text + bound[row[i]], length)
            memcpy(to + before + length, PyBytes_AsString(end), behind)
            keys.append(key)
        return keys
    finally:
        close(&views)


def key_hashes(list keys not None, uint64_t seed, otherwise):
    """128 bits of XXH3 with a seed of each key, as a bytearray of their digests, in their order. `otherwise` is XXH3 for
    those that are shorter or longer than it is made for here."""
    cdef Py_ssize_t count = len(keys), i, length
    cdef const char* text
    cdef uint8_t* found
    hashes = bytearray(16 * count)
    found = <uint8_t*>PyByteArray_AsString(hashes)
    for i in range(count):
        key = keys[i]
        text, length = PyBytes_AsString(key), PyBytes_Size(key)
        if 16 < length <= MOST_HASHED:
            xxh3_128(<const uint8_t*>text, length, seed, <uint64_t*>(found + 16 * i))
        else:
            digest = otherwise(key, seed)
            if PyBytes_Size(digest) != 16:
                raise ValueError("no digest of 128 bits")
            memcpy(found + 16 * i, PyBytes_AsString(digest), 16)
    return hashes
