# Values of single fields, from text: ids, times, numbers. Whatever is not in its plainest form is given up.

cdef enum:
    MOST_DIGITS = 19  # so that no number of so many overflows 64 bits
    LAST_YEAR = 2200

cdef int64_t HOUR = 3600000000, DAY = 86400000000

cdef uint8_t MONTHS[13]
for _value, _digit in enumerate((0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)):
    MONTHS[_value] = _digit

cdef struct Date:  # the one that was read last: most events have that of their neighbours
    uint64_t low
    uint32_t high
    int64_t micros


cdef bint uuid4(const uint8_t* p, uint64_t* out) noexcept nogil:
    # The 16 bytes of 36 characters.
    cdef uint8_t found[16]
    cdef uint8_t high, low, bad = 0
    cdef int32_t i, k
    if p[8] != 45 or p[13] != 45 or p[18] != 45 or p[23] != 45 or p[14] != 52:
        return False
    for i in range(16):
        k = 2 * i + (i >= 4) + (i >= 6) + (i >= 8) + (i >= 10)
        high = HEX[p[k]]
        low = HEX[p[k + 1]]
        bad |= high | low
        found[i] = <uint8_t>(high << 4) | (low & 15)
    if bad > 15 or (found[8] & 0xC0) != 0x80:
        return False
    out[0] = load64(found)
    out[1] = load64(found + 8)
    return True


cdef inline int32_t two(const uint8_t* p) noexcept nogil:
    # Two digits; 100 or more if they are none.
    cdef uint8_t a = p[0] - 48, b = p[1] - 48
    return 100 if a > 9 or b > 9 else a * 10 + b


cdef bint midnight(const uint8_t* p, Date* date) noexcept nogil:
    # Of `2026-04-20T`.
    cdef int32_t year, month = two(p + 5), day = two(p + 8), leap
    cdef int64_t era, of_era, of_year
    if p[4] != 45 or p[7] != 45 or p[10] != 84 or two(p) > 99 or two(p + 2) > 99:
        return False
    year = two(p) * 100 + two(p + 2)
    if year < 1970 or year > LAST_YEAR or month < 1 or month > 12 or day < 1:
        return False
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > MONTHS[month] + leap:
        return False
    # Days of the proleptic Gregorian calendar, with years that begin in March.
    if month <= 2:
        year -= 1
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    date.micros = (era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468) * DAY
    date.low = load64(p)
    date.high = load32(p + 7)
    return True


cdef bint instant(const uint8_t* p, int64_t n, Date* date, int64_t* at) noexcept nogil:
    cdef const uint8_t* end = p + n
    cdef const uint8_t* digits
    cdef int32_t hour, minute, second, scale = 100000
    cdef int64_t micros
    if n < 20 or p[13] != 58 or p[16] != 58:
        return False
    if not (load64(p) == date.low and load32(p + 7) == date.high) and not midnight(p, date):
        return False
    hour, minute, second = two(p + 11), two(p + 14), two(p + 17)
    if hour > 23 or minute > 59 or second > 59:
        return False
    micros = date.micros + (hour * 3600 + minute * 60 + second) * <int64_t>1000000
    p += 19
    if p[0] == 46:
        p += 1
        digits = p
        while is_digit(p[0]):
            micros += (p[0] - 48) * scale  # from the seventh on 0: they are cut
            scale //= 10
            p += 1
        if p == digits or p - digits > 9:
            return False
    if p[0] == 90:
        p += 1
    elif (p[0] == 43 or p[0] == 45) and end - p == 6 and p[3] == 58:
        hour, minute = two(p + 1), two(p + 4)
        if hour > 23 or minute > 59:
            return False
        micros += (-1 if p[0] == 43 else 1) * (hour * 60 + minute) * <int64_t>60000000
        p += 6
    else:
        return False
    at[0] = micros
    return p == end


cdef inline const uint8_t* decimal(const uint8_t* p, uint64_t* digits, int32_t* places) noexcept nogil:
    # A number without sign and exponent: its digits, and how many of them stand behind the point. Returns where it
    # ends, NULL if it is not plain.
    cdef const uint8_t* start = p
    cdef const uint8_t* point
    cdef uint64_t found = 0
    places[0] = 0
    while is_digit(p[0]):
        found = found * 10 + (p[0] - 48)
        p += 1
    if p == start or p - start > MOST_DIGITS or (start[0] == 48 and p - start > 1):
        return NULL
    if p[0] == 46:
        p += 1
        point = p
        while is_digit(p[0]):
            found = found * 10 + (p[0] - 48)
            p += 1
        if p == point or p - start > MOST_DIGITS + 1:
            return NULL
        places[0] = <int32_t>(p - point)
    digits[0] = found
    return p


cdef const uint8_t* cost(const uint8_t* p, uint64_t* pico, bint* is_nothing) noexcept nogil:
    # Picodollars, rounded half-even; the range is judged before that.
    cdef uint64_t digits, whole, rest, unit
    cdef int32_t places, exponent, sign = 1, shift = 0
    p = decimal(p, &digits, &places)
    if p == NULL:
        return NULL
    exponent = 12 - places
    if p[0] == 101 or p[0] == 69:
        p += 1
        if p[0] == 45 or p[0] == 43:
            sign = -1 if p[0] == 45 else 1
            p += 1
        if not is_digit(p[0]):
            return NULL
        while is_digit(p[0]):
            shift = shift * 10 + (p[0] - 48)
            p += 1
            if shift > 30:
                return NULL
        exponent += sign * shift
    is_nothing[0] = digits == 0
    if exponent > 18 or exponent < -18:
        return NULL
    if exponent >= 0:
        if digits > MOST_COST // POWERS[exponent]:
            return NULL
        whole = digits * POWERS[exponent]
    else:
        unit = POWERS[-exponent]
        whole = digits // unit
        rest = digits - whole * unit
        if whole > MOST_COST or (whole == MOST_COST and rest):
            return NULL
        if rest > unit - rest or (rest == unit - rest and whole & 1):
            whole += 1
    pico[0] = whole
    return p


cdef inline uint8_t bucket_of(double latency) noexcept nogil:
    # The first bound that is not less.
    cdef int32_t low = 0, high = 255, middle
    while low < high:
        middle = (low + high) >> 1
        if BOUNDS[middle] < latency:
            low = middle + 1
        else:
            high = middle
    return <uint8_t>low
