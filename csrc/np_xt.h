/* The blob of an x_tables table: a sequence of entries (rules), in which chains are spans and jumps are byte offsets.
 * Here it is taken apart into chains and put together again; what stands inside a rule is nobody's business in this file.
 * All numbers are in host byte order; offsets count bytes from the start of the blob. Family is 4 or 6. */
#ifndef NP_XT_H
#define NP_XT_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_XT_HOOKS 5

struct np_xt_chain {
    char name[32];    /* of a user chain; empty for a built-in one */
    int32_t hook;     /* of a built-in chain; -1 for a user chain */
    uint32_t offset;  /* of its first entry: a user chain's is its ERROR head */
    uint32_t size;    /* bytes, from head to tail */
    uint32_t entries; /* head and tail included */
    uint32_t first;   /* index of its first entry in the table */
};

struct np_xt_jump {
    uint32_t at;    /* offset of the verdict */
    uint32_t entry; /* offset of the entry it stands in */
    int32_t chain;  /* index of the chain it goes to; -1: on to the next entry, a rule without a target */
};

struct np_xt_table {
    uint32_t valid_hooks;
    uint32_t hook_entry[5];
    uint32_t underflow[5];
    uint32_t entries;
};

/* A table with its chains, and its jumps in the order of their places. */
struct np_xt_view {
    const uint8_t *blob;
    const struct np_xt_chain *chains;
    const struct np_xt_jump *jumps;
    uint32_t size;
    uint32_t chain_count;
    uint32_t jump_count;
    uint32_t entries;
};

struct np_xt_sizes {
    uint32_t entry;
    uint32_t counters_at;
    uint32_t comefrom_at;
    uint32_t target_offset_at;
    uint32_t head;
    uint32_t tail;
};

/* struct ipt_getinfo, ipt_replace (without its entries) and xt_get_revision, which are alike for both families. */
struct np_xt_info {
    char name[32];
    uint32_t valid_hooks;
    uint32_t hook_entry[5];
    uint32_t underflow[5];
    uint32_t num_entries;
    uint32_t size;
};

struct np_xt_replace {
    char name[32];
    uint32_t valid_hooks;
    uint32_t num_entries;
    uint32_t size;
    uint32_t hook_entry[5];
    uint32_t underflow[5];
    uint32_t num_counters;
    uint8_t *counters;
};

struct np_xt_revision {
    char name[29];
    uint8_t revision;
};

int np_xt_sizes(int family, struct np_xt_sizes *sizes);
int np_xt_split(const uint8_t *blob, size_t size, int family, const struct np_xt_table *table,
                struct np_xt_chain *chains, size_t chain_room, struct np_xt_jump *jumps, size_t jump_room,
                uint32_t *jump_count, uint32_t *where);
int np_xt_normalise(uint8_t *blob, size_t size, int family, uint8_t *counters, size_t room);
int np_xt_same(const uint8_t *left, const uint8_t *found, size_t size, int family);
int np_xt_place(const struct np_xt_chain *chains, size_t count, uint32_t offset, uint32_t first,
                struct np_xt_chain *out);
int np_xt_users(const uint8_t *blob, size_t size, int family, const struct np_xt_chain *chains, size_t chain_count,
                const uint8_t *sets, uint8_t *users);
int np_xt_relocate(const struct np_xt_jump *jumps, size_t count, uint32_t from, uint32_t to, uint32_t target,
                   const int32_t *renumber, size_t chain_count, struct np_xt_jump *out, size_t room);
int np_xt_link(uint8_t *blob, size_t size, int family, const struct np_xt_chain *chains, size_t chain_count,
               const struct np_xt_jump *jumps, size_t jump_count, struct np_xt_table *table);
int np_xt_carry(const struct np_xt_view *old, const struct np_xt_view *now, const int32_t *renumber,
                const uint8_t *counters, uint8_t *carried, uint8_t *done);
/* cdef: end */

#endif
