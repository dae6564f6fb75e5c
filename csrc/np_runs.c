#include "np_runs.h"
#include "np_sort.h"

#include <arpa/inet.h>
#include <endian.h>
#include <string.h>

enum { NP_ADDRESS = 4, NP_WORD = 64 };

static uint32_t address_at(const uint8_t *members, size_t i)
{
    uint32_t address = 0;

    memcpy(&address, members + i * NP_ADDRESS, sizeof(address));
    return address;
}

/* The 64 bits with the one at `place`. */
static uint64_t word_at(const uint8_t *bits, size_t place)
{
    uint64_t word = 0;

    memcpy(&word, bits + place / NP_WORD * sizeof(word), sizeof(word));
    return le64toh(word);
}

/* The first bit from `place` on that is 0 where `flip` is all ones, and 1 where it is none, or a place from `end` on; there is one or the
 * other before the bitmap ends. */
static size_t find(const uint8_t *bits, size_t place, size_t end, uint64_t flip)
{
    uint64_t word = (word_at(bits, place) ^ flip) >> place % NP_WORD;

    while (word == 0) {
        place = (place / NP_WORD + 1) * NP_WORD;
        if (place >= end)
            return place;
        word = word_at(bits, place) ^ flip;
    }
    return place + (size_t)__builtin_ctzll(word);
}

/* Marks the addresses in `bits`, which has `room` bytes, from the first of their prefix on. Returns 1, or 0 where they are too far apart or
 * some are the same. */
static int mark(uint8_t *bits, size_t room, const uint8_t *members, size_t count, uint32_t *base)
{
    const uint32_t first = address_at(members, 0);
    uint32_t differing = 0;
    size_t words = 1, marked = 0;

    for (size_t i = 0; i < count; i++)
        differing |= address_at(members, i) ^ first;
    differing = ntohl(differing);
    while (differing / NP_WORD >= words)
        words *= 2;
    if (words > room / sizeof(uint64_t))
        return 0;
    *base = ntohl(first) & ~(uint32_t)(words * NP_WORD - 1);
    memset(bits, 0, words * sizeof(uint64_t));
    for (size_t i = 0; i < count; i++) {
        const uint32_t bit = ntohl(address_at(members, i)) - *base;

        bits[bit / 8] |= (uint8_t)(1U << bit % 8);
    }
    for (size_t i = 0; i < words; i++)
        marked += (size_t)__builtin_popcountll(word_at(bits, i * NP_WORD));
    return marked == count;
}

/* Sorts a copy of the addresses in `scratch` (twice their size), and begins their runs. Returns 0 or -errno. */
int np_runs_sort(struct np_runs *runs, const uint8_t *members, size_t count, uint8_t *scratch)
{
    const size_t size = count * NP_ADDRESS;

    *runs = (struct np_runs){.sorted = scratch, .left = count};
    memcpy(scratch, members, size);
    return np_sort(scratch, scratch + size, count, NP_ADDRESS);
}

/* Begins the runs of `count` addresses in network byte order, in any order. `scratch` has twice their size, and is used as long as the runs
 * are. Returns 0 or -errno. */
int np_runs_begin(struct np_runs *runs, const uint8_t *members, size_t count, uint8_t *scratch)
{
    *runs = (struct np_runs){.bits = scratch, .left = count};
    if (count == 0 || mark(scratch, 2 * count * NP_ADDRESS, members, count, &runs->base))
        return 0;
    return np_runs_sort(runs, members, count, scratch);
}

/* The next run, of at most `most` members (1 or more). There is one: `left` is not 0. */
void np_runs_next(struct np_runs *runs, size_t most, struct np_run *run)
{
    const size_t limit = runs->left < most ? runs->left : most;

    if (runs->sorted) {
        size_t end = runs->place + 1;

        run->first = run->last = ntohl(address_at(runs->sorted, runs->place));
        for (; end < runs->place + limit; end++) {
            const uint32_t next = ntohl(address_at(runs->sorted, end));

            if (next - run->last > 1)
                break;
            run->last = next;
        }
        run->members = (uint32_t)(end - runs->place);
        runs->place = end;
    } else {
        const size_t begin = find(runs->bits, runs->place, SIZE_MAX, 0);
        const size_t end = find(runs->bits, begin, begin + limit, UINT64_MAX);

        run->members = (uint32_t)(end - begin < limit ? end - begin : limit);
        run->first = runs->base + (uint32_t)begin;
        run->last = run->first + run->members - 1;
        runs->place = begin + run->members;
    }
    runs->left -= run->members;
}
