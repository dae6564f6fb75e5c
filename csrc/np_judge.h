/* The rules in force, indexed by the addresses they are about, and what they would do with the first packet of a flow.
 *
 * A judge is put together by its caller, who owns all arrays, and reads only: several threads may use one. It knows what netpol
 * emits; of all else it says NP_JUDGE_ASK. Addresses are 16 bytes, an IPv4 one in the first 4 and zeros behind it; numbers are host
 * byte order, but for ports inside members of sets, which are as ipset has them. */
#ifndef NP_JUDGE_H
#define NP_JUDGE_H

#include "np_ct.h"

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_JUDGE_PASS  0
#define NP_JUDGE_DENY  1
#define NP_JUDGE_ASK   2
#define NP_JUDGE_RULES 3

#define NP_JUDGE_POD   1
#define NP_JUDGE_LOCAL 2

#define NP_JUDGE_MATCHES 2

struct np_judge_set {
    const uint8_t *members;
    size_t count;
    uint32_t *slots;
    uint32_t slot_count;
    uint8_t width;
    uint8_t record;
    uint8_t is_net;
    uint8_t has_port;
    uint8_t length_count;
    uint8_t lengths[129];
};

struct np_judge_rule {
    uint8_t net[16];
    uint32_t first_port;
    uint32_t port_count;
    uint32_t sets[2];
    uint8_t of_source[2];
    uint8_t set_count;
    uint8_t protocol;
    uint8_t net_side;
    uint8_t net_length;
};

struct np_judge_class {
    uint32_t first_rule;
    uint32_t rule_count;
};

struct np_judge_end {
    uint8_t address[16];
    uint32_t classes[2];
    uint32_t family;
    uint32_t flags;
};

struct np_judge_range {
    uint8_t net[16];
    uint8_t length;
    uint8_t family;
    uint8_t ingress;
};

struct np_judge {
    struct np_judge_set *sets;
    const struct np_judge_rule *rules;
    const uint16_t *ports;
    const struct np_judge_class *classes;
    const struct np_judge_end *ends;
    uint32_t *slots;
    const struct np_judge_range *ranges;
    uint32_t set_count;
    uint32_t rule_count;
    uint32_t port_count;
    uint32_t class_count;
    uint32_t end_count;
    uint32_t slot_count;
    uint32_t range_count;
    uint32_t families;
};

int np_judge_index_set(struct np_judge_set *set);
int np_judge_index(const struct np_judge *judge);
int np_judge_flow(const struct np_judge *judge, const struct np_ct_flow *flow);
size_t np_judge_sort(const struct np_judge *judge, struct np_ct_flow *flows, size_t count, uint32_t bit,
                     uint8_t *verdicts);
/* cdef: end */

#endif
