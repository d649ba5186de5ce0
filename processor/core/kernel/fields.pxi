# The table of fields, as `processor.core.events.fields` has it: `configure` is given its rows.

cdef enum:  # what a field holds
    UUID, TEXT, TIMESTAMP, CHOICE, COUNT, MILLIS, COST, FLAG, TAGS, STRINGS, SCORES

KINDS = ("uuid", "text", "timestamp", "choice", "count", "millis", "cost", "flag", "tags", "strings", "scores")

cdef enum:  # where its value goes: nowhere, or into a row
    NOWHERE, EVENT_ID, AT, USER, MODEL, ENVIRONMENT, PROVIDER, OPERATION, STATUS, INPUT, OUTPUT, CACHED, PRICE, LATENCY
    EVENT_KIND, STEP_NAME, CACHE_WRITE, REASONING

ROLES = (
    None, "event_id", "timestamp", "user_id", "model", "environment", "provider", "operation", "status", "input_tokens",
    "output_tokens", "cached_tokens", "cost_usd", "latency_ms", "kind", "name", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip

cdef enum:
    MOST_FIELDS = 60
    MOST_NAME = 40
    MOST_VALUES = 8
    MOST_VALUE = 16
    UNKNOWN = 255

cdef struct Field:
    uint8_t kind
    uint8_t role
    uint8_t is_filled       # a text of no characters is none of the field's
    int32_t most            # characters of a text, entries of an object; -1: no limit
    int32_t name_length
    int32_t values
    uint8_t name[MOST_NAME]                # and a quote
    uint8_t value[MOST_VALUES][MOST_VALUE]
    int32_t value_length[MOST_VALUES]

cdef Field FIELDS[MOST_FIELDS]
cdef int32_t fields_known = 0
cdef uint64_t REQUIRED[2]      # of a call, of a span: a bit a field
cdef uint64_t PRICE_BIT = 0    # of the field that has the cost
cdef int32_t CUSTOM[2]         # the places of `custom` among the providers and operations
cdef int32_t CHOSEN[3]         # the fields that are provider, operation and status
cdef uint8_t BY_NUMBER[256]    # the number of a field in the protobuf message -> its place
cdef int32_t EXTRA = 0         # the number of `extra_json` in it
cdef int32_t SPAN = -1         # the place of `span` among the values of `kind`
cdef uint64_t MOST_COUNT, MOST_COST
cdef uint64_t FACTORS[8]
cdef uint64_t RECENT_FACTORS[3]
cdef double BOUNDS[255]
cdef list choices = [[], [], []]  # the values of provider, operation and status
cdef int64_t MOST_BYTES
cdef int32_t MOST_NESTING


def configure(
    rows, numbers, int extra, uint64_t most_count, uint64_t most_cost, int64_t most_bytes, int most_nesting, factors,
    recent_factors, bounds
):
    """Take the table of fields, its limits and the factors of digests over. To be called once, before anything else.

    A row of `rows`: name, kind, whether a call and a span must have it, least, most or None, values; `numbers`: those
    of the fields in the protobuf message. Raises `ValueError` for a table that the kernel is not made for.
    """
    global fields_known, EXTRA, SPAN, PRICE_BIT, MOST_COUNT, MOST_COST, MOST_BYTES, MOST_NESTING
    cdef int32_t place, each
    cdef Field* field
    if len(rows) > MOST_FIELDS or len(factors) != 8 or len(recent_factors) != 3 or len(bounds) != 255:
        raise ValueError("the table of fields is larger than the kernel's")
    if not 0 < most_nesting <= 64 or sorted({row[0] for row in rows} & set(ROLES[1:])) != sorted(ROLES[1:]):
        raise ValueError("the table of fields lacks one that a row is made of")
    memset(FIELDS, 0, sizeof(FIELDS))
    memset(BY_NUMBER, UNKNOWN, sizeof(BY_NUMBER))
    REQUIRED[0] = REQUIRED[1] = 0
    for place, (name, kind, in_call, in_span, least, most, values) in enumerate(rows):
        field = FIELDS + place
        raw = name.encode() + b'"'
        if len(raw) > MOST_NAME or least not in (0, 1) or len(values) > MOST_VALUES:
            raise ValueError(f"the kernel does not know fields like {name}")
        field.kind = KINDS.index(kind)
        field.role = ROLES.index(name) if name in ROLES else NOWHERE
        field.is_filled = least if kind == "text" else 0
        field.most = -1 if most is None else most
        field.name_length = len(raw) - 1
        field.values = len(values)
        memcpy(field.name, PyBytes_AsString(raw), len(raw))
        for each, value in enumerate(values):
            text = value.encode()
            if not 0 < len(text) <= MOST_VALUE:
                raise ValueError(f"the kernel does not know values like {value}")
            field.value_length[each] = len(text)
            memcpy(field.value[each], PyBytes_AsString(text), len(text))
        if PROVIDER <= field.role <= STATUS:
            CHOSEN[field.role - PROVIDER] = place
            choices[field.role - PROVIDER] = list(values)
        if field.role == EVENT_KIND:
            SPAN = values.index("span")
        if field.role == PRICE:
            PRICE_BIT = <uint64_t>1 << place
        REQUIRED[0] |= <uint64_t>bool(in_call) << place
        REQUIRED[1] |= <uint64_t>bool(in_span) << place
        BY_NUMBER[numbers[place]] = place
    CUSTOM[0], CUSTOM[1] = choices[0].index("custom"), choices[1].index("custom")
    for place in range(8):
        FACTORS[place] = int(factors[place])
    for place in range(3):
        RECENT_FACTORS[place] = int(recent_factors[place])
    for place in range(255):
        BOUNDS[place] = bounds[place]
    EXTRA, MOST_COUNT, MOST_COST, MOST_BYTES, MOST_NESTING = extra, most_count, most_cost, most_bytes, most_nesting
    fields_known = len(rows)


cdef inline int32_t chosen(const Field* field, const uint8_t* p, int64_t n) noexcept nogil:
    # The place of a text among the values of a choice; -1: it is none.
    cdef int32_t i
    for i in range(field.values):
        if field.value_length[i] == n and same_text(field.value[i], p, n):
            return i
    return -1


cdef inline uint8_t named(const uint8_t* p, int64_t n) noexcept nogil:
    # The field of a name; UNKNOWN if there is none.
    cdef int32_t i
    for i in range(fields_known):
        if FIELDS[i].name_length == n and memcmp(FIELDS[i].name, p, n) == 0:
            return i
    return UNKNOWN
