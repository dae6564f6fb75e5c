/* Rules as the entries of an x_tables blob. Chains come as MessagePack, as msgspec writes the values of netpol.rules.ruleset: a chain
 * is an array of its name and its packed rules (bytes); rules, matches and targets are each a map of their fields by name, the latter two
 * with their class under "kind"; a field that is left out has the default of its class. What comes out is what iptables-restore
 * would write. Numbers are in host byte order. */
#ifndef NP_XT_ENCODE_H
#define NP_XT_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "np_xt_put.h"

/* cdef: begin */
int np_xt_count(const uint8_t *packed, size_t size);
int np_xt_encode(const uint8_t *packed, size_t size, struct np_xt_encoding *out);
int np_xt_encode_match(const uint8_t *packed, size_t size, struct np_xt_encoding *out);
int np_xt_encode_target(const uint8_t *packed, size_t size, struct np_xt_encoding *out);
/* cdef: end */

#endif
