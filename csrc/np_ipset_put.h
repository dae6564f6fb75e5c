/* How messages of ipset get into the buffer of a socket: shared by the commands (np_ipset.c) and the members (np_ipset_members.c). */
#ifndef NP_IPSET_PUT_H
#define NP_IPSET_PUT_H

#include "np_ipset.h"
#include "np_nl.h"

#include <stddef.h>
#include <stdint.h>

enum {
    /* A message of members ends near this size. The kernel repeats a message that fails, so small ones keep its memory and ours free. */
    NP_MESSAGE = 16 * 1024,
    /* Room that the ends of a message may need: header, name, the member that passed NP_MESSAGE. */
    NP_SLACK = 512,
};

size_t np_ipset_begin(struct np_nl_out *out, int command, int flags, uint32_t seq);
int np_ipset_writer(struct np_ipset *ipset, struct np_nl_out *out);
int np_ipset_keep(struct np_ipset *ipset, struct np_nl_out *out, size_t start);
size_t np_ipset_put_address(struct np_nl_out *out, uint16_t type, size_t size);

#endif
