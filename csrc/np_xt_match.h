/* A match of a rule as a match of an x_tables entry. */
#ifndef NP_XT_MATCH_H
#define NP_XT_MATCH_H

#include "np_xt_put.h"

void np_xt_put_match(struct np_pack *pack, struct np_xt_encoding *out);

#endif
