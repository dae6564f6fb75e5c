#include "np_sort.h"

#include <errno.h>
#include <string.h>

/* One stable pass by the byte at `column`; `places` holds how often each value occurs there, and is used up. Inlined so that a
 * constant width makes each copy one move. */
static inline __attribute__((always_inline)) void pass(const uint8_t *from, uint8_t *to, size_t count, size_t width,
                                                       size_t column, uint32_t *places)
{
    uint32_t place = 0;

    for (size_t value = 0; value < 256; value++) {
        const uint32_t here = places[value];
        places[value] = place;
        place += here;
    }
    for (const uint8_t *record = from, *end = from + count * width; record < end; record += width)
        memcpy(to + (size_t)places[record[column]]++ * width, record, width);
}

/* Whether the records are in order already (equal neighbours are). */
static int is_sorted(const uint8_t *records, size_t count, size_t width)
{
    for (size_t i = 1; i < count; i++)
        if (memcmp(records + (i - 1) * width, records + i * width, width) > 0)
            return 0;
    return 1;
}

/* Sorts `count` records of `width` bytes (1 to NP_SORT_WIDTH) by their bytes, the first one counting most: a radix sort that
 * leaves out the columns in which all are alike. `scratch` has as many bytes as the records. Returns 0 or -EINVAL. */
int np_sort(uint8_t *records, uint8_t *scratch, size_t count, size_t width)
{
    uint32_t counts[NP_SORT_WIDTH][256];
    uint8_t *from = records, *to = scratch;

    if (width == 0 || width > NP_SORT_WIDTH || count > UINT32_MAX)
        return -EINVAL;
    if (is_sorted(records, count, width))
        return 0;
    memset(counts, 0, width * sizeof(counts[0]));
    for (const uint8_t *record = records, *end = records + count * width; record < end; record += width)
        for (size_t column = 0; column < width; column++)
            counts[column][record[column]]++;
    for (size_t column = width; column-- > 0;) {
        uint8_t *swap = from;

        if (counts[column][from[column]] == count)
            continue;
        if (width == 4)
            pass(from, to, count, 4, column, counts[column]);
        else
            pass(from, to, count, width, column, counts[column]);
        from = to;
        to = swap;
    }
    if (from != records)
        memcpy(records, from, count * width);
    return 0;
}
