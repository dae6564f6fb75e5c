/* A target of a rule as the target of an x_tables entry. */
#ifndef NP_XT_TARGET_H
#define NP_XT_TARGET_H

#include "np_xt_put.h"

void np_xt_read_target(struct np_pack *pack, int family, struct np_xt_payload *payload);

#endif
