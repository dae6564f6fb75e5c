/* What fuzz targets share. Input is read from the front; what is handed to the code under test is a copy in a block of its own, so
 * that AddressSanitizer sees the first byte that is read behind its end. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An invariant: what does not hold ends the run, and the input is kept. */
#define HOLDS(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

struct input {
    const uint8_t *data;
    size_t left;
};

/* The next `size` bytes of the input, filled up with zeros. */
static inline void take(struct input *in, void *to, size_t size)
{
    const size_t here = size < in->left ? size : in->left;

    memset(to, 0, size);
    if (here)
        memcpy(to, in->data, here);
    in->data += here;
    in->left -= here;
}

static inline uint8_t take_byte(struct input *in)
{
    uint8_t value;

    take(in, &value, 1);
    return value;
}

/* A block of its own with the next `size` bytes of the input; the caller frees it. */
static inline void *take_block(struct input *in, size_t size)
{
    void *block = malloc(size ? size : 1);

    HOLDS(block);
    take(in, block, size);
    return block;
}

/* A block of exactly `size` zeros; the caller frees it. */
static inline void *zeros(size_t size)
{
    void *block = calloc(size ? size : 1, 1);

    HOLDS(block);
    return block;
}

#endif
