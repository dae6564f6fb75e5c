#include "np_buckets.h"
#include "np_ipset.h"

#include <errno.h>
#include <string.h>

enum { NP_WORDS = 6 }; /* of an element, at most */

static uint32_t rotate(uint32_t value, int bits)
{
    return value << bits | value >> (32 - bits);
}

static void mix(uint32_t *a, uint32_t *b, uint32_t *c)
{
    static const int bits[] = {4, 6, 8, 16, 19, 4};
    uint32_t *first = a, *second = b, *third = c;

    for (int i = 0; i < 6; i++) {
        uint32_t *const next = first;

        *first = (*first - *third) ^ rotate(*third, bits[i]);
        *third += *second;
        first = second;
        second = third;
        third = next;
    }
}

static uint32_t finish(uint32_t a, uint32_t b, uint32_t c)
{
    c = (c ^ b) - rotate(b, 14);
    a = (a ^ c) - rotate(c, 11);
    b = (b ^ a) - rotate(a, 25);
    c = (c ^ b) - rotate(b, 16);
    a = (a ^ c) - rotate(c, 4);
    b = (b ^ a) - rotate(a, 14);
    return (c ^ b) - rotate(b, 24);
}

/* lookup3 of `count` words, at least one (Linux: jhash2). */
static uint32_t lookup3(const uint32_t *words, uint32_t count, uint32_t initval)
{
    uint32_t a = 0xdeadbeef + (count << 2) + initval, b = a, c = a;

    for (; count > 3; count -= 3, words += 3) {
        a += words[0];
        b += words[1];
        c += words[2];
        mix(&a, &b, &c);
    }
    a += words[0];
    b += count > 1 ? words[1] : 0;
    c += count > 2 ? words[2] : 0;
    return finish(a, b, c);
}

/* The bucket of a packed member: its element as the kernel lays it out, hashed. */
static uint32_t bucket_of(const struct np_buckets *buckets, int kind, size_t address, const uint8_t *member)
{
    const uint8_t *rest = member + address;
    uint32_t words[NP_WORDS];
    uint32_t count = (uint32_t)(address / 4);
    uint8_t last[4] = {0};

    memcpy(words, member, address);
    if (kind == NP_IPSET_NET) {
        last[3] = rest[0];
    } else if (kind == NP_IPSET_PORT) {
        memcpy(last, rest + 1, 2);
        last[2] = rest[0];
    }
    if (kind)
        memcpy(words + count++, last, sizeof(last));
    return lookup3(words, count, buckets->initval) & (buckets->count - 1);
}

/* Puts the numbers of the packed members, from 0 on, at the beginning of `room`, by bucket and otherwise in their order; after them the
 * room is used up. Returns 0, or -EINVAL; -EOPNOTSUPP where the kind's elements are laid out otherwise (networks with ports). */
int np_buckets_order(const struct np_buckets *buckets, int kind, int family, const uint8_t *members, size_t size)
{
    const int width = np_ipset_width(kind, family);
    const size_t count = width > 0 ? size / (size_t)width : 0, address = family == 4 ? 4 : 16;
    uint32_t *const order = buckets->room, *const places = order + count;
    uint32_t place = 0;

    if (width <= 0 || size % (size_t)width != 0 || count > UINT32_MAX - 1 || buckets->count == 0 ||
        (buckets->count & (buckets->count - 1)) != 0)
        return -EINVAL;
    if (kind == (NP_IPSET_NET | NP_IPSET_PORT))
        return -EOPNOTSUPP;
    memset(places, 0, buckets->count * sizeof(*places));
    for (size_t i = 0; i < count; i++)
        places[bucket_of(buckets, kind, address, members + i * (size_t)width)]++;
    for (uint32_t i = 0; i < buckets->count; i++) {
        const uint32_t here = places[i];
        places[i] = place;
        place += here;
    }
    for (size_t i = 0; i < count; i++)
        order[places[bucket_of(buckets, kind, address, members + i * (size_t)width)]++] = (uint32_t)i;
    return 0;
}
