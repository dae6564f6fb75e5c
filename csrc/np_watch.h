/* Sleeping, and looking meanwhile: whether somebody else changed what the kernel says about a few tables and sets.
 *
 * `tables` are what np_sys_getsockopt said of each, `records` what np_ipset_record did, set by set; the dump has room for as many. `seq` is
 * the first of `record_count` numbers for its requests, used again by each look. Times are nanoseconds of the monotonic clock. */
#ifndef NP_WATCH_H
#define NP_WATCH_H

#include "np_ipset.h"
#include "np_xt.h"

/* cdef: begin */
#define NP_WATCH_OVER    0
#define NP_WATCH_RUNG    1
#define NP_WATCH_TOUCHED 2

struct np_watch_table {
    struct np_xt_info said;
    uint64_t *calls;
    int fd;
    int level;
    int name;
};

struct np_watch {
    const struct np_watch_table *tables;
    size_t table_count;
    struct np_ipset *ipset;
    struct np_ipset_dump *dump;
    const struct np_ipset_record *records;
    size_t record_count;
    int64_t next;
    int64_t every;
    uint64_t calls;
    uint32_t seq;
    int bell;
};

int np_watch(struct np_watch *watch, int64_t until);
/* cdef: end */

#endif
