# Loads of bytes, wide arithmetic, and the scan of a JSON string. Everything reads at most PAD bytes behind a text.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the compiled kernel is for little-endian machines; Python does its work elsewhere"
    #endif
    #if !defined(__SIZEOF_INT128__)
    #error "the compiled kernel needs integers of 128 bits; Python does its work elsewhere"
    #endif
    static inline uint64_t load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline uint32_t load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline uint64_t swap64(uint64_t v) { return __builtin_bswap64(v); }
    static inline uint64_t fold(uint64_t a, uint64_t b) {
      unsigned __int128 product = (unsigned __int128)a * b;
      return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    /* The first byte that is a quote, a backslash, a control or no ASCII. A text has a control byte behind its end. */
    #if defined(__SSE2__) && !defined(SPENDSTREAM_PORTABLE)
    #include <emmintrin.h>
    static inline const uint8_t *scan(const uint8_t *p) {
      const __m128i quote = _mm_set1_epi8('"'), back = _mm_set1_epi8('\\\\'), blank = _mm_set1_epi8(0x20);
      for (;;) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        /* As signed numbers, bytes from 0x80 on are less than a blank, too. */
        __m128i hits = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, back)), _mm_cmplt_epi8(v, blank));
        int found = _mm_movemask_epi8(hits);
        if (found) return p + __builtin_ctz(found);
        p += 16;
      }
    }
    #else
    static inline const uint8_t *scan(const uint8_t *p) {
      const uint64_t ones = 0x0101010101010101ULL, tops = 0x8080808080808080ULL;
      for (;;) {
        uint64_t v = load64(p), quote = v ^ (ones * '"'), back = v ^ (ones * '\\\\');
        /* A borrow may mark bytes above the first hit, never one below it. */
        uint64_t hits = (((quote - ones) & ~quote) | ((back - ones) & ~back) | ((v - ones * 0x20) & ~v) | v) & tops;
        if (hits) return p + (__builtin_ctzll(hits) >> 3);
        p += 8;
      }
    }
    #endif
    """
    uint64_t load64(const uint8_t*) nogil
    uint32_t load32(const uint8_t*) nogil
    uint64_t swap64(uint64_t) nogil
    uint64_t fold(uint64_t, uint64_t) nogil
    const uint8_t* scan(const uint8_t*) nogil

cdef enum:
    PADDING = 64  # bytes behind a text, all 0: more than any read here goes beyond

PAD = bytes(PADDING)
cdef uint8_t ZEROS[PADDING]
memset(ZEROS, 0, PADDING)

cdef uint8_t HEX[256]  # the value of a hexadecimal digit, 255 for other bytes
memset(HEX, 255, 256)
for _value, _digit in enumerate(bytearray(b"0123456789abcdef")):
    HEX[_digit] = _value
for _value, _digit in enumerate(bytearray(b"ABCDEF")):
    HEX[_digit] = 10 + _value

cdef uint64_t POWERS[20]
for _value in range(20):
    POWERS[_value] = 10**_value


cdef inline bint is_digit(uint8_t byte) noexcept nogil:
    return <uint8_t>(byte - 48) <= 9


cdef const uint8_t* utf8(const uint8_t* p) noexcept nogil:
    # Behind one character of several bytes; NULL if it is none.
    cdef uint8_t c = p[0]
    if c < 0xC2:
        return NULL
    if c < 0xE0:
        return p + 2 if (p[1] & 0xC0) == 0x80 else NULL
    if (p[1] & 0xC0) != 0x80 or (p[2] & 0xC0) != 0x80:
        return NULL
    if c < 0xF0:
        if (c == 0xE0 and p[1] < 0xA0) or (c == 0xED and p[1] >= 0xA0):
            return NULL  # written longer than need be, or a surrogate
        return p + 3
    if c >= 0xF5 or (p[3] & 0xC0) != 0x80 or (c == 0xF0 and p[1] < 0x90) or (c == 0xF4 and p[1] >= 0x90):
        return NULL
    return p + 4
