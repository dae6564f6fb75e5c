#include "np_digest.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

struct state {
    uint64_t v0, v1, v2, v3;
};

static uint64_t load(const uint8_t *at)
{
    uint64_t value = 0;

    memcpy(&value, at, sizeof(value));
    return le64toh(value);
}

static uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void rounds(struct state *s, int count)
{
    for (int i = 0; i < count; i++) {
        s->v0 += s->v1;
        s->v2 += s->v3;
        s->v1 = rotate(s->v1, 13) ^ s->v0;
        s->v3 = rotate(s->v3, 16) ^ s->v2;
        s->v0 = rotate(s->v0, 32);
        s->v2 += s->v1;
        s->v0 += s->v3;
        s->v1 = rotate(s->v1, 17) ^ s->v2;
        s->v3 = rotate(s->v3, 21) ^ s->v0;
        s->v2 = rotate(s->v2, 32);
    }
}

static inline void absorb(struct state *s, uint64_t word)
{
    s->v3 ^= word;
    rounds(s, 2);
    s->v0 ^= word;
}

/* The digest of `size` bytes: two numbers, the two halves of the published output read as little-endian. */
void np_digest(const uint8_t *key, const uint8_t *data, size_t size, uint64_t *digest)
{
    const uint64_t k0 = load(key), k1 = load(key + 8);
    struct state s = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261,
                      k1 ^ 0x7465646279746573};
    uint8_t last[8] = {0};
    const size_t whole = size & ~(size_t)7;

    for (size_t i = 0; i < whole; i += 8)
        absorb(&s, load(data + i));
    if (size > whole)
        memcpy(last, data + whole, size - whole);
    last[7] = (uint8_t)size;
    absorb(&s, load(last));
    s.v2 ^= 0xee;
    rounds(&s, 4);
    digest[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    s.v1 ^= 0xdd;
    rounds(&s, 4);
    digest[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

/* Adds the digest of each packed member of `width` bytes to the two sums, which wrap. Returns 0, or -EINVAL for a part of a member. */
int np_digest_members(const uint8_t *key, const uint8_t *members, size_t size, size_t width, uint64_t *digest)
{
    if (width == 0 || size % width != 0)
        return -EINVAL;
    for (size_t i = 0; i < size; i += width) {
        uint64_t one[2];

        np_digest(key, members + i, width, one);
        digest[0] += one[0];
        digest[1] += one[1];
    }
    return 0;
}
