# Rows, and the dictionaries of users and of what else events are told apart by: those of `columns`.

cdef struct Row:  # `columns.ROW`
    uint64_t id[2]
    uint64_t digest
    int64_t at
    uint64_t input
    uint64_t output
    uint64_t cached
    uint64_t cost
    uint16_t user
    uint16_t dim
    uint8_t flags
    uint8_t latency
    uint8_t cost_source
    uint8_t spare

cdef enum:
    UNPRICED_FLAG = 1
    SPAN_FLAG = 2
    MOST_ROWS = 65536  # numbers of users and dims have 16 bits
    MOST_IN_DIM = 180  # bytes of model and environment together

cdef struct Text:
    const uint8_t* bytes
    int32_t length  # -1: there is none

cdef struct User:
    uint64_t hash
    Text text

cdef struct Dim:
    uint64_t key   # of the parts, for the look-up here
    uint64_t hash  # of the MessagePack, for digests
    int64_t hour
    Text model
    Text environment
    int32_t provider
    int32_t operation
    int32_t status

cdef struct Event:  # of one record, as far as a row is made of it
    uint64_t seen  # a bit a field
    uint64_t there # the same, but for those that are null
    uint64_t id[2]
    int64_t at
    uint64_t input
    uint64_t output
    uint64_t cached
    uint64_t cost
    uint64_t cache_write
    uint64_t reasoning
    Text user
    Text model
    Text environment
    Text name
    int32_t chosen[3]  # provider, operation, status; -1: not there
    uint8_t latency
    bint is_span
    bint costs_nothing

cdef enum:
    LOOKS = 16  # at places of a hash table that others have, a record on average; usual are less than one
    SOME_LOOKS = 4096


# Of others in every process, so that nobody can choose texts whose places are the same: those hashes are known.
cdef uint64_t SECRET_PLACES = <uint64_t>PyObject_Hash(b"places"), SECRET_FACTOR = <uint64_t>PyObject_Hash(b"factor") | 1


cdef struct Work:  # what one call needs
    int32_t size           # records
    uint32_t mask          # of the places in the two hash tables
    int32_t users
    int32_t dims
    int64_t looks          # that are left: texts whose whole hashes are the same can be chosen, too
    bint lenient           # calls may lack a cost
    bint beside            # cached tokens above the input tokens of a call are added to those
    bint has_spans
    int64_t latest         # the last instant that an event may have
    const uint8_t* end     # of the text
    Date date
    User* user
    Dim* dim
    int32_t* user_slots    # 1 + a number, by hash
    int32_t* dim_slots
    uint8_t order[64]      # the fields in the order of the record before


cdef Work* begin(int32_t size, int64_t latest, bint lenient, bint beside) except NULL:
    cdef uint32_t slots = 16
    while slots < 2 * <uint32_t>size:
        slots *= 2
    cdef size_t users = size * sizeof(User), dims = size * sizeof(Dim), table = slots * sizeof(int32_t)
    cdef uint8_t* memory = <uint8_t*>malloc(sizeof(Work) + users + dims + 2 * table)
    if memory == NULL:
        raise MemoryError
    cdef Work* work = <Work*>memory
    memset(work, 0, sizeof(Work))
    work.size, work.mask, work.latest, work.lenient, work.beside = size, slots - 1, latest, lenient, beside
    work.looks = <int64_t>LOOKS * size + SOME_LOOKS
    work.user = <User*>(memory + sizeof(Work))
    work.dim = <Dim*>(memory + sizeof(Work) + users)
    work.user_slots = <int32_t*>(memory + sizeof(Work) + users + dims)
    work.dim_slots = work.user_slots + slots
    memset(work.user_slots, 0, 2 * table)
    memset(work.order, UNKNOWN, sizeof(work.order))
    return work


cdef inline void clear(Event* event) noexcept nogil:
    memset(event, 0, sizeof(Event))
    event.user.length = event.model.length = event.environment.length = event.name.length = -1
    event.chosen[0] = event.chosen[1] = event.chosen[2] = -1
    event.costs_nothing = True


cdef inline bint is_same(const Text* a, const Text* b) noexcept nogil:
    return a.length == b.length and (a.length <= 0 or memcmp(a.bytes, b.bytes, a.length) == 0)


cdef inline uint64_t hash_of(const Text* text) noexcept nogil:
    return xxh3(text.bytes, text.length if text.length > 0 else 0)


cdef inline int32_t user_number(Work* work, const Text* text, uint64_t hash) noexcept nogil:
    # -1: too many have the same place.
    cdef uint32_t slot = <uint32_t>((hash ^ SECRET_PLACES) * SECRET_FACTOR >> 32) & work.mask
    cdef int32_t number
    cdef User* user
    while work.user_slots[slot]:
        number = work.user_slots[slot] - 1
        user = work.user + number
        if user.hash == hash and is_same(&user.text, text):
            return number
        work.looks -= 1
        if work.looks < 0:
            return -1
        slot = (slot + 1) & work.mask
    number = work.users
    work.users += 1
    work.user_slots[slot] = number + 1
    work.user[number].hash = hash
    work.user[number].text = text[0]
    return number


cdef inline uint8_t* packed(uint8_t* to, const uint8_t* text, int32_t length) noexcept nogil:
    # A string of MessagePack.
    if length < 32:
        to[0] = 0xA0 | length
        to += 1
    else:
        to[0] = 0xD9
        to[1] = length
        to += 2
    memcpy(to, text, length)
    return to + length


cdef bint hash_dim(Dim* dim) noexcept nogil:
    # The hash of [hour, provider, model, environment, operation, status]; False if they are too long.
    cdef uint8_t buffer[MOST_HASHED + 32]
    cdef uint8_t* to = buffer + 6
    cdef const Field* field
    if dim.hour < 65536 or dim.hour >> 32 or dim.model.length + dim.environment.length > MOST_IN_DIM:
        return False
    buffer[0] = 0x96
    buffer[1] = 0xCE
    buffer[2], buffer[3] = <uint8_t>(dim.hour >> 24), <uint8_t>(dim.hour >> 16)
    buffer[4], buffer[5] = <uint8_t>(dim.hour >> 8), <uint8_t>dim.hour
    field = FIELDS + CHOSEN[0]
    to = packed(to, field.value[dim.provider], field.value_length[dim.provider])
    to = packed(to, dim.model.bytes, dim.model.length)
    to = packed(to, dim.environment.bytes, dim.environment.length)
    field = FIELDS + CHOSEN[1]
    to = packed(to, field.value[dim.operation], field.value_length[dim.operation])
    field = FIELDS + CHOSEN[2]
    to = packed(to, field.value[dim.status], field.value_length[dim.status])
    if to - buffer > MOST_HASHED:
        return False
    dim.hash = xxh3(buffer, to - buffer)
    return True


cdef inline int32_t dim_number(Work* work, Dim* dim) noexcept nogil:
    # -1: its strings are too long, or too many have the same place.
    cdef uint32_t slot
    cdef int32_t number
    cdef Dim* other
    dim.key = hash_of(&dim.model) ^ (hash_of(&dim.environment) * PRIME_2)
    dim.key ^= (<uint64_t>dim.hour << 12) + (dim.provider << 8) + (dim.operation << 4) + dim.status
    dim.key *= PRIME_3
    slot = <uint32_t>((dim.key ^ SECRET_PLACES) * SECRET_FACTOR >> 32) & work.mask
    while work.dim_slots[slot]:
        number = work.dim_slots[slot] - 1
        other = work.dim + number
        if (
            other.key == dim.key and other.hour == dim.hour and other.provider == dim.provider
            and other.operation == dim.operation and other.status == dim.status
            and is_same(&other.model, &dim.model) and is_same(&other.environment, &dim.environment)
        ):
            return number
        work.looks -= 1
        if work.looks < 0:
            return -1
        slot = (slot + 1) & work.mask
    if not hash_dim(dim):
        return -1
    number = work.dims
    work.dims += 1
    work.dim_slots[slot] = number + 1
    work.dim[number] = dim[0]
    return number


cdef bint finish(Event* event, Row* row, Work* work) noexcept nogil:
    # The row of an event all of whose fields are valid; False if the event as a whole is not plainly so.
    cdef uint64_t missing = REQUIRED[event.is_span] & ~event.there, digest, user_hash
    cdef uint8_t flags = SPAN_FLAG if event.is_span else 0
    cdef Dim dim
    if event.at > work.latest:
        return False
    if missing:
        if missing != PRICE_BIT or not work.lenient:
            return False
        flags = UNPRICED_FLAG
    if event.is_span:
        if event.name.length <= 0 or not event.costs_nothing:
            return False
        if event.chosen[0] < 0:
            event.chosen[0] = CUSTOM[0]
        if event.chosen[1] < 0:
            event.chosen[1] = CUSTOM[1]
        if event.model.length < 0:
            event.model = event.name
    elif work.beside and event.cached > event.input:
        event.input += event.cached
        if event.input > MOST_COUNT:
            return False
    dim.hour = event.at // HOUR if event.at >= 0 else 0
    dim.model, dim.environment = event.model, event.environment
    dim.provider, dim.operation, dim.status = event.chosen[0], event.chosen[1], event.chosen[2]
    cdef int32_t number = dim_number(work, &dim)
    if number < 0:
        return False
    user_hash = hash_of(&event.user)
    row.dim = number
    cdef int32_t user = user_number(work, &event.user, user_hash)
    if user < 0:
        return False
    row.user = user
    row.id[0], row.id[1] = event.id[0], event.id[1]
    row.at, row.cost, row.latency = event.at, event.cost, event.latency
    row.input, row.output, row.cached = event.input, event.output, event.cached
    row.flags = flags
    row.cost_source = 0 if flags else 1
    row.spare = 0
    work.has_spans |= event.is_span
    digest = user_hash * FACTORS[0] + work.dim[number].hash * FACTORS[1] + <uint64_t>row.at * FACTORS[2]
    digest += row.input * FACTORS[3] + row.output * FACTORS[4] + row.cached * FACTORS[5] + row.cost * FACTORS[6]
    digest += row.flags * FACTORS[7] + event.cache_write * RECENT_FACTORS[1] + event.reasoning * RECENT_FACTORS[2]
    if event.name.length > 0:
        digest += hash_of(&event.name) * RECENT_FACTORS[0]
    digest ^= digest >> 32
    digest *= FACTORS[0]
    row.digest = digest ^ (digest >> 29)
    return True


cdef object text_of(const Text* text):
    return None if text.length < 0 else (<const char*>text.bytes)[:text.length].decode("utf-8")


cdef object found(Work* work, object rows, list odd):
    # What `json_rows` and `protobuf_rows` return.
    cdef int32_t i
    cdef Dim* dim
    cdef list users = [text_of(&work.user[i].text) for i in range(work.users)]
    cdef list dims = []
    for i in range(work.dims):
        dim = work.dim + i
        dims.append((
            dim.hour, choices[0][dim.provider], text_of(&dim.model), text_of(&dim.environment),
            choices[1][dim.operation], choices[2][dim.status],
        ))  # fmt: skip
    return rows, users, dims, odd, bool(work.has_spans)
