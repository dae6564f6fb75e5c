/* nfnetlink_log: packets that an NFLOG rule logged to a group, as plain structs of what their headers say.
 *
 * np_nflog_open takes a group, np_nflog_receive reads what the kernel has gathered; nothing is written to the kernel afterwards. What
 * the packets hold was chosen by whoever sent them, and what of them is there by the rule: nothing is read outside it. Addresses are
 * network byte order, an IPv4 one in the first 4 of 16 bytes and zeros behind it; all numbers are host byte order. */
#ifndef NP_NFLOG_H
#define NP_NFLOG_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_NFLOG_PORTS    1
#define NP_NFLOG_ICMP     2
#define NP_NFLOG_FRAGMENT 4
#define NP_NFLOG_CUT_OFF  8
#define NP_NFLOG_ORIGINAL 16
#define NP_NFLOG_REPLY    32

struct np_nflog {
    uint8_t *buffer;
    size_t room;
    uint64_t calls;
    int fd;
};

struct np_nflog_packet {
    uint8_t source[16];
    uint8_t destination[16];
    uint64_t time;      /* microseconds since 1970; 0: the kernel gave none */
    uint32_t in_device; /* indexes of interfaces; 0: none */
    uint32_t out_device;
    uint16_t source_port;
    uint16_t destination_port; /* of ICMP: type << 8 | code */
    uint8_t family;            /* 4 or 6 */
    uint8_t protocol;
    uint16_t flags;
};

/* `packets` has room for `room` of them. Ours have the prefix as it is, and those of a flow that was cut with "-cut" behind it, on their
 * way back with "-cut-reply". Of the messages of a datagram: `count` are there, `strangers` had another prefix, `unreadable`
 * held no packet whose addresses can be read. `lost` is how many the kernel numbered before them that never came; `next` is the number
 * that is expected, once `numbered` is not 0. The counters go on from one call to the next, but for `count`. */
struct np_nflog_batch {
    struct np_nflog_packet *packets;
    size_t room;
    size_t count;
    uint64_t strangers;
    uint64_t unreadable;
    uint64_t lost;
    const char *prefix;
    uint32_t next;
    int numbered;
};

int np_nflog_open(struct np_nflog *log, int protocol, uint16_t group, uint32_t copy, uint32_t delay);
int np_nflog_receive(struct np_nflog *log, struct np_nflog_batch *batch);
int np_nflog_parse_answers(const uint8_t *data, size_t size, uint32_t seq);
int np_nflog_parse(const uint8_t *data, size_t size, struct np_nflog_batch *batch);
int np_nflog_packet(const uint8_t *data, size_t size, struct np_nflog_packet *packet);
/* cdef: end */

#endif
