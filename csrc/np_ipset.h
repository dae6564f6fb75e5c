/* ipset over netlink: commands are gathered in one buffer, sent with one acknowledgement at the end, and answered; dumps are parsed.
 *
 * `messages` and `bytes` are what was sent so far.
 *
 * A run is any number of np_ipset_create, _members, _ask_number, _destroy and _swap, then np_ipset_finish. Each command has a sequence number
 * of its own, which all its messages carry and by which an error is known; np_ipset_finish has the number after the last one.
 * Packed members, A being 4 or 16 bytes of address, are the form in which members cross:
 *   hash:ip       A                              hash:net       A length(1) nomatch(1)
 *   hash:ip,port  A protocol(1) port(2)          hash:net,port  A length(1) nomatch(1) protocol(1) port(2)
 *   bitmap:ip     A of 4 bytes, inside the range that the set was made with
 * Addresses and ports are network byte order, all other numbers host byte order. A family is 4 or 6. */
#ifndef NP_IPSET_H
#define NP_IPSET_H

#include "np_buckets.h"

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_IPSET_NET  1
#define NP_IPSET_PORT 2

#define NP_IPSET_ADD    9
#define NP_IPSET_DELETE 10

#define NP_IPSET_RUN 65536

#define NP_IPSET_DONE        1
#define NP_IPSET_INTERRUPTED 2
#define NP_IPSET_LOST        4

#define NP_IPSET_NAMES   2
#define NP_IPSET_HEADERS 4

struct np_ipset {
    uint8_t *buffer;
    size_t room;
    size_t used;
    size_t limit;
    uint64_t calls;
    uint64_t messages;
    uint64_t bytes;
    int fd;
};

struct np_ipset_outcome {
    uint32_t *numbers;
    uint32_t first;
    uint32_t commands;
    uint32_t command;
    uint32_t member;
    uint32_t failures;
    int code;
    int flags;
    uint32_t last;
};

struct np_ipset_header {
    char name[32];
    char type[32];
    uint32_t entries;
    uint32_t references;
    uint32_t hashsize;
    uint32_t maxelem;
    uint16_t index;
    uint8_t family;
    uint8_t revision;
    uint8_t first[4];
    uint8_t last[4];
};

struct np_ipset_record {
    struct np_ipset_header header;
    uint32_t members;
    uint64_t digest[2];
};

struct np_ipset_dump {
    struct np_ipset_header *headers;
    size_t header_room;
    size_t header_count;
    uint8_t *members;
    size_t member_room;
    size_t member_size;
    struct np_ipset_record *records;
    size_t record_room;
    size_t record_count;
    const char *prefix;
    const uint8_t *key;
    struct np_ipset_header set;
    uint32_t only;
    uint32_t seq;
    int flags;
};

int np_ipset_open(struct np_ipset *ipset, int protocol);
int np_ipset_protocol(struct np_ipset *ipset, uint32_t seq);
int np_ipset_create(struct np_ipset *ipset, uint32_t seq, const char *name, const char *type, int revision, int family,
                    uint32_t hashsize, uint32_t maxelem, uint32_t initval);
int np_ipset_create_bitmap(struct np_ipset *ipset, uint32_t seq, const char *name, int revision, const uint8_t *address,
                           int length);
int np_ipset_members(struct np_ipset *ipset, uint32_t seq, int command, const char *name, int kind, int family,
                     const uint8_t *members, size_t size, uint8_t *scratch, const struct np_buckets *buckets);
int np_ipset_destroy(struct np_ipset *ipset, uint32_t seq, const char *name);
int np_ipset_swap(struct np_ipset *ipset, uint32_t seq, const char *name, const char *other);
int np_ipset_ask_number(struct np_ipset *ipset, uint32_t seq, const char *name);
int np_ipset_finish(struct np_ipset *ipset, struct np_ipset_outcome *outcome);
int np_ipset_list(struct np_ipset *ipset, uint32_t seq, const char *name, uint32_t only);
int np_ipset_receive(struct np_ipset *ipset, struct np_ipset_dump *dump);
int np_ipset_record(struct np_ipset *ipset, struct np_ipset_dump *dump, const char *name);
int np_ipset_kind(const char *type);
int np_ipset_width(int kind, int family);
int np_ipset_parse_version(const uint8_t *data, size_t size, uint32_t seq);
int np_ipset_parse_answers(const uint8_t *data, size_t size, struct np_ipset_outcome *outcome);
int np_ipset_parse_dump(const uint8_t *data, size_t size, struct np_ipset_dump *dump);
/* cdef: end */

#endif
