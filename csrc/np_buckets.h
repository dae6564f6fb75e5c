/* The order in which members lie in the hash of a set that is still to be made: by bucket.
 *
 * The kernel's hash is Jenkins' lookup3 over an element's words, keyed with a number that whoever creates the set may choose
 * (IPSET_ATTR_INITVAL, since Linux 5.11; before, it is drawn, and any order is as good as another). Members that come in the order of
 * their buckets find those, and the kernel's new memory, in the processor's caches: 60,000 scattered ones take it a third less time. */
#ifndef NP_BUCKETS_H
#define NP_BUCKETS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
struct np_buckets {
    uint32_t *room; /* for as many numbers as there are buckets and members */
    uint32_t count; /* a power of two */
    uint32_t initval;
};

int np_buckets_order(const struct np_buckets *buckets, int kind, int family, const uint8_t *members, size_t size);
/* cdef: end */

#endif
