/* What is common to the matches and the targets of rules: where they are read from and what they are written into. Numbers are in host
 * byte order. */
#ifndef NP_XT_PUT_H
#define NP_XT_PUT_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "np_pack.h"
#include "np_xt.h"

/* cdef: begin */
#define NP_XT_NAME 29 /* bytes of the name of a chain, its NUL included */

struct np_xt_set {
    char name[32]; /* filled up with NULs */
    uint16_t index;
};

struct np_xt_encoding {
    const struct np_xt_set *sets; /* sorted by name */
    uint8_t *data;                /* the chains, end to end, each from its head to its tail */
    struct np_xt_chain *chains;
    struct np_xt_jump *jumps; /* their verdicts are 0; their chains are places among the targets, and -1 as ever */
    char *targets; /* names of chains, each with a NUL behind it; NP_XT_NAME bytes for each jump there is room for */
    size_t data_room;
    size_t data_size;
    uint32_t set_count;
    uint32_t chain_room, chain_count;
    uint32_t jump_room, jump_count;
    uint32_t target_count, target_size; /* how many targets, and how many bytes of them */
    int32_t family;
    /* When there is an error: */
    uint32_t rule;       /* which rule of the chain that comes next; UINT32_MAX: the chain itself */
    uint32_t field;      /* where in the packed chains the name of the field stands */
    uint32_t field_size; /* of that name; 0: the rule as a whole is too long */
};
/* cdef: end */

/* The longest name of a chain that iptables takes. */
enum { NP_CHAIN_NAME = NP_XT_NAME - 1 };

/* The target of a rule, which comes before its matches and stands behind them. */
struct np_xt_payload {
    char name[29];
    uint8_t revision;
    uint16_t is_goto;
    int is_open; /* a jump, or a rule without a target: its verdict is filled in later */
    struct np_pack_text to;
    struct np_pack_text data;
    uint8_t own[80]; /* where `data` is, unless it is opaque */
};

/* The next `size` bytes of the output, which the caller fills, all of them; NULL when there is no room. */
static inline uint8_t *np_xt_reserve(struct np_pack *pack, struct np_xt_encoding *out, size_t size)
{
    uint8_t *at;

    if (pack->error)
        return NULL;
    if (size > out->data_room - out->data_size) {
        np_pack_fail(pack, -ENOBUFS);
        return NULL;
    }
    at = out->data + out->data_size;
    out->data_size += size;
    return at;
}

void np_xt_put(struct np_pack *pack, struct np_xt_encoding *out, const char *name, uint8_t revision, const void *data,
               size_t size);
void np_xt_read_opaque(struct np_pack *pack, uint32_t fields, struct np_xt_payload *opaque);
struct np_pack_text np_xt_kind(struct np_pack *pack, uint32_t *fields);
void np_xt_copy_text(struct np_pack *pack, void *to, size_t most);

#endif
