/* SipHash-2-4 with 128 bits of output: a keyed digest of bytes, and an order-independent one of the members of a set.
 *
 * What is compared by digest is what the kernel held a moment ago with what it holds now. Whoever does not know the key, which is
 * drawn at random by each process, can do no better than to guess: 1 in 2^128 for one string, and no more for a sum of them, since
 * what a member adds to each half of the sum is a random number to everybody else. A sum is used, and no xor, so that a member that is
 * there twice does not vanish. A key is 16 bytes. */
#ifndef NP_DIGEST_H
#define NP_DIGEST_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_DIGEST_KEY 16

void np_digest(const uint8_t *key, const uint8_t *data, size_t size, uint64_t *digest);
int np_digest_members(const uint8_t *key, const uint8_t *members, size_t size, size_t width, uint64_t *digest);
/* cdef: end */

#endif
