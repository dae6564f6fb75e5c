/* What fuzz targets share. Input is read from the front; what is handed to the code under test is a copy in a block of its own, so
 * that AddressSanitizer sees the first byte that is read behind its end. What it writes into is a block that nobody has set, so that
 * MemorySanitizer sees a byte that it leaves out. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An invariant: what does not hold ends the run, and the input is kept. */
#define HOLDS(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

/* Every byte of these was set by somebody: none is what a stack or a heap happened to hold. Only MemorySanitizer can say. */
static inline void is_set(const void *data, size_t size)
{
#if __has_feature(memory_sanitizer)
    __msan_check_mem_is_initialized(data, size);
#else
    (void)data;
    (void)size;
#endif
}

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

/* A block of exactly `size` bytes that nobody has set; the caller frees it. */
static inline void *room(size_t size)
{
    void *block = malloc(size ? size : 1);

    HOLDS(block);
    return block;
}

/* A block of exactly `size` zeros; the caller frees it. */
static inline void *zeros(size_t size)
{
    void *block = calloc(size ? size : 1, 1);

    HOLDS(block);
    return block;
}

/* Two ends that are connected: what is sent at ends[0] waits at ends[1], and nothing is ever answered. */
static inline void connected(int ends[2])
{
    HOLDS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) == 0);
}

#endif
