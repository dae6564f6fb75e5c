/* ctnetlink: connection tracking entries are read, whole or filtered, and bits of their marks are set and cleared in bulk.
 *
 * Reading is np_ct_list, then np_ct_receive until NP_CT_DONE, or np_ct_get for some that are known; writing is one np_ct_update.
 * Entries cross as an array of plain structs. Addresses are network byte order, an IPv4 one in the first 4 of 16 bytes and zeros
 * behind it; ports and all other numbers are host byte order. A family is 4 or 6. */
#ifndef NP_CT_H
#define NP_CT_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_CT_PORTS         1
#define NP_CT_ICMP          2
#define NP_CT_PICKED_UP     4
#define NP_CT_ZONE_ORIGINAL 8
#define NP_CT_ZONE_REPLY    16

#define NP_CT_DONE       1
#define NP_CT_LOST       2
#define NP_CT_EACH       4
#define NP_CT_LINK_LOCAL 8

#define NP_CT_ALL             0
#define NP_CT_ORIGINAL_SOURCE 1
#define NP_CT_REPLY_SOURCE    2
#define NP_CT_MARKED          3

struct np_ct {
    uint8_t *buffer;
    size_t room;
    uint64_t calls;
    int fd;
};

struct np_ct_first {
    uint8_t source[16];
    uint8_t destination[16];
    uint16_t service;
    uint8_t family;
    uint8_t protocol;
};

struct np_ct_tuple {
    uint8_t source[16];
    uint8_t destination[16];
    uint16_t source_port;
    uint16_t destination_port;
};

struct np_ct_flow {
    struct np_ct_first first;
    struct np_ct_tuple original;
    struct np_ct_tuple reply;
    uint32_t mark;
    uint32_t status;
    uint16_t zone;
    uint16_t flags;
};

struct np_ct_dump {
    struct np_ct_flow *flows;
    size_t room;
    size_t count;
    size_t seen;
    size_t gone;
    size_t marked;
    const uint8_t *ends4;
    size_t count4;
    const uint8_t *ends6;
    size_t count6;
    uint32_t bits;
    uint32_t counted;
    uint32_t seq;
    int flags;
};

struct np_ct_outcome {
    uint32_t first;
    uint32_t count;
    uint32_t gone;
    uint32_t failures;
    uint32_t failed;
    int code;
    int flags;
};

int np_ct_open(struct np_ct *ct, int protocol);
int np_ct_entries(struct np_ct *ct, uint32_t seq, uint32_t *entries);
int np_ct_list(struct np_ct *ct, uint32_t seq, int family, int which, const uint8_t *address, uint32_t bits);
int np_ct_receive(struct np_ct *ct, struct np_ct_dump *dump);
int np_ct_get(struct np_ct *ct, const struct np_ct_flow *flows, size_t count, struct np_ct_dump *dump);
int np_ct_update(struct np_ct *ct, const struct np_ct_flow *flows, uint32_t mark, uint32_t mask,
                 struct np_ct_outcome *outcome);
int np_ct_parse_entries(const uint8_t *data, size_t size, uint32_t seq, uint32_t *entries);
int np_ct_parse_answers(const uint8_t *data, size_t size, struct np_ct_outcome *outcome);
int np_ct_parse_dump(const uint8_t *data, size_t size, struct np_ct_dump *dump);
int np_ct_parse_list(const char *text, size_t size, struct np_ct_dump *dump);
/* cdef: end */

int np_ct_is_end(const struct np_ct_dump *dump, const uint8_t *address, size_t size);

#endif
