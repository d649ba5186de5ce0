# XXH3 of up to 240 bytes: 64 bits with seed 0, and 128 bits with any seed, as the library xxhash has them. A test
# compares them.

cdef enum:
    MOST_HASHED = 240

cdef uint8_t SECRET[192]
_secret = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
for _value, _digit in enumerate(_secret):
    SECRET[_value] = _digit

cdef uint64_t PRIME_1 = 0x9E3779B185EBCA87, PRIME_2 = 0xC2B2AE3D27D4EB4F, PRIME_3 = 0x165667B19E3779F9
cdef uint64_t PRIME_4 = 0x85EBCA77C2B2AE63
cdef uint64_t MIX_1 = 0x165667919E3779F9, MIX_2 = 0x9FB21C651E98DF25


cdef inline uint64_t avalanche(uint64_t h) noexcept nogil:
    h ^= h >> 37
    h *= MIX_1
    return h ^ (h >> 32)


cdef inline uint64_t mix16(const uint8_t* p, const uint8_t* secret) noexcept nogil:
    return fold(load64(p) ^ load64(secret), load64(p + 8) ^ load64(secret + 8))


cdef inline uint64_t hash_few(const uint8_t* p, uint64_t n) noexcept nogil:
    # Up to 16 bytes.
    cdef uint64_t low, high, h
    if n > 8:
        low = load64(p) ^ (load64(SECRET + 24) ^ load64(SECRET + 32))
        high = load64(p + n - 8) ^ (load64(SECRET + 40) ^ load64(SECRET + 48))
        return avalanche(n + swap64(low) + high + fold(low, high))
    if n >= 4:
        h = (load32(p + n - 4) + (<uint64_t>load32(p) << 32)) ^ (load64(SECRET + 8) ^ load64(SECRET + 16))
        h ^= ((h << 49) | (h >> 15)) ^ ((h << 24) | (h >> 40))
        h *= MIX_2
        h ^= (h >> 35) + n
        h *= MIX_2
        return h ^ (h >> 28)
    if n:
        h = (<uint64_t>p[0] << 16) | (<uint64_t>p[n >> 1] << 24) | <uint64_t>p[n - 1] | (n << 8)
        h ^= <uint64_t>(load32(SECRET) ^ load32(SECRET + 4))
    else:
        h = load64(SECRET + 56) ^ load64(SECRET + 64)
    h ^= h >> 33
    h *= PRIME_2
    h ^= h >> 29
    h *= PRIME_3
    return h ^ (h >> 32)


cdef uint64_t xxh3(const uint8_t* p, uint64_t n) noexcept nogil:
    # `n`: at most MOST_HASHED.
    cdef uint64_t h, i
    if n <= 16:
        return hash_few(p, n)
    h = n * PRIME_1
    if n <= 128:
        if n > 32:
            if n > 64:
                if n > 96:
                    h += mix16(p + 48, SECRET + 96) + mix16(p + n - 64, SECRET + 112)
                h += mix16(p + 32, SECRET + 64) + mix16(p + n - 48, SECRET + 80)
            h += mix16(p + 16, SECRET + 32) + mix16(p + n - 32, SECRET + 48)
        h += mix16(p, SECRET) + mix16(p + n - 16, SECRET + 16)
        return avalanche(h)
    for i in range(8):
        h += mix16(p + 16 * i, SECRET + 16 * i)
    h = avalanche(h)
    for i in range(8, n // 16):
        h += mix16(p + 16 * i, SECRET + 16 * (i - 8) + 3)
    h += mix16(p + n - 16, SECRET + 119)
    return avalanche(h)


cdef inline uint64_t mix16_seeded(const uint8_t* p, const uint8_t* secret, uint64_t seed) noexcept nogil:
    return fold(load64(p) ^ (load64(secret) + seed), load64(p + 8) ^ (load64(secret + 8) - seed))


cdef inline void mix32(
    uint64_t* sums, const uint8_t* p, const uint8_t* q, const uint8_t* secret, uint64_t seed
) noexcept nogil:
    sums[0] = (sums[0] + mix16_seeded(p, secret, seed)) ^ (load64(q) + load64(q + 8))
    sums[1] = (sums[1] + mix16_seeded(q, secret + 16, seed)) ^ (load64(p) + load64(p + 8))


cdef void xxh3_128(const uint8_t* p, uint64_t n, uint64_t seed, uint64_t* digest) noexcept nogil:
    # `n`: from 17 to MOST_HASHED. The digest in the order of its bytes: the upper half first, both big-endian.
    cdef uint64_t sums[2]
    cdef uint64_t i, low, high
    sums[0], sums[1] = n * PRIME_1, 0
    if n <= 128:
        if n > 96:
            mix32(sums, p + 48, p + n - 64, SECRET + 96, seed)
        if n > 64:
            mix32(sums, p + 32, p + n - 48, SECRET + 64, seed)
        if n > 32:
            mix32(sums, p + 16, p + n - 32, SECRET + 32, seed)
        mix32(sums, p, p + n - 16, SECRET, seed)
    else:
        for i in range(4):
            mix32(sums, p + 32 * i, p + 32 * i + 16, SECRET + 32 * i, seed)
        sums[0], sums[1] = avalanche(sums[0]), avalanche(sums[1])
        for i in range(4, n // 32):
            mix32(sums, p + 32 * i, p + 32 * i + 16, SECRET + 3 + 32 * (i - 4), seed)
        mix32(sums, p + n - 16, p + n - 32, SECRET + 103, <uint64_t>0 - seed)
    low = sums[0] + sums[1]
    high = sums[0] * PRIME_1 + sums[1] * PRIME_4 + (n - seed) * PRIME_2
    digest[0] = swap64(<uint64_t>0 - avalanche(high))
    digest[1] = swap64(avalanche(low))


def xxh3_of(bytes text not None):
    """The hash of at most 240 bytes, for a test."""
    padded = text + PAD
    if len(text) > MOST_HASHED:
        raise ValueError("too long")
    return xxh3(<const uint8_t*>PyBytes_AsString(padded), len(text))
