/* IPv4 addresses as runs of neighbours, in the order of the addresses.
 *
 * Pods' addresses mostly lie close together. Those are not sorted but marked in a bitmap of the smallest prefix that has them all, which is
 * read word by word: a fifth of the time that a sort takes, and 8 kB of memory for 60,000 addresses. Others are sorted. */
#ifndef NP_RUNS_H
#define NP_RUNS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
struct np_run {
    uint32_t first, last; /* addresses in host byte order */
    uint32_t members;     /* how many it stands for: more than there are addresses where some are the same */
};

struct np_runs {
    const uint8_t *sorted; /* addresses; NULL: they are `bits` */
    const uint8_t *bits;   /* a bit for each address from `base` on */
    size_t left;           /* members that are still to come */
    size_t place;          /* of the next one, or a bit before its */
    uint32_t base;
};

int np_runs_begin(struct np_runs *runs, const uint8_t *members, size_t count, uint8_t *scratch);
int np_runs_sort(struct np_runs *runs, const uint8_t *members, size_t count, uint8_t *scratch);
void np_runs_next(struct np_runs *runs, size_t most, struct np_run *run);
/* cdef: end */

#endif
