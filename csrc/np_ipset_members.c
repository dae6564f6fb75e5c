#include "np_buckets.h"
#include "np_ipset.h"
#include "np_ipset_put.h"
#include "np_nl.h"
#include "np_runs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <string.h>

/* One entry of a list of members, encoded once for a command and copied for each member. The numbers are where the fields are in
 * `bytes`; 0 where the entry has no such field (the entry's own header is at 0). */
struct form {
    uint8_t bytes[96];
    size_t size, address, last, length, protocol, port, lineno;
};

/* What all messages of one command on members share. */
struct batch {
    struct np_ipset *ipset;
    const char *name;
    const uint8_t *members;
    const uint32_t *order; /* the members' numbers as they are to be written; NULL: as they lie */
    size_t count, width, address;
    uint32_t seq;
    uint16_t type;
    int kind, merged; /* merged: neither `members` nor `order` but `runs` are written */
    struct np_runs runs;
    struct form plain, nomatch, range;
};

/* Encodes the form of an entry with an address of `address` bytes. Returns 0 or -ENOBUFS. */
static int make_form(struct form *form, int kind, size_t address, int range, int nomatch)
{
    struct np_nl_out out = {.data = form->bytes, .room = sizeof(form->bytes)};
    const uint32_t lineno = 0;
    const size_t entry = np_nl_nest(&out, IPSET_ATTR_DATA);

    form->address = np_ipset_put_address(&out, IPSET_ATTR_IP, address);
    if (range)
        form->last = np_ipset_put_address(&out, IPSET_ATTR_IP_TO, address);
    if (kind & NP_IPSET_NET)
        form->length = np_nl_put_u8(&out, IPSET_ATTR_CIDR, 0);
    if (kind & NP_IPSET_PORT) {
        form->protocol = np_nl_put_u8(&out, IPSET_ATTR_PROTO, 0);
        form->port = np_nl_put_be16(&out, IPSET_ATTR_PORT, 0);
    }
    if (nomatch)
        np_nl_put_be32(&out, IPSET_ATTR_CADT_FLAGS, IPSET_FLAG_NOMATCH);
    form->lineno = np_nl_put(&out, IPSET_ATTR_LINENO, &lineno, sizeof(lineno));
    np_nl_unnest(&out, entry);
    form->size = out.used;
    return out.overflow ? -ENOBUFS : 0;
}

/* Writes the entry of the next run of addresses, of which the first is the i-th member. Returns what is next after it. */
static size_t put_run(struct np_nl_out *out, struct batch *batch, size_t i)
{
    const uint32_t lineno = (uint32_t)(i + 1);
    const struct form *form = NULL;
    uint32_t first = 0, last = 0;
    struct np_run run;
    uint8_t *entry = NULL;

    np_runs_next(&batch->runs, NP_IPSET_RUN, &run);
    form = run.first == run.last ? &batch->plain : &batch->range;
    entry = np_nl_reserve(out, form->size);
    if (entry) {
        first = htonl(run.first);
        last = htonl(run.last);
        memcpy(entry, form->bytes, form->size);
        memcpy(entry + form->address, &first, sizeof(first));
        if (form->last)
            memcpy(entry + form->last, &last, sizeof(last));
        memcpy(entry + form->lineno, &lineno, sizeof(lineno));
    }
    return i + run.members;
}

/* Writes the entry of the member that is the i-th to be written. */
static void put_member(struct np_nl_out *out, const struct batch *batch, size_t i)
{
    const size_t number = batch->order ? batch->order[i] : i;
    const uint8_t *member = batch->members + number * batch->width, *rest = member + batch->address;
    const int nomatch = batch->kind & NP_IPSET_NET && rest[1] != 0;
    const struct form *form = nomatch ? &batch->nomatch : &batch->plain;
    const uint32_t lineno = (uint32_t)(number + 1);
    uint8_t *entry = np_nl_reserve(out, form->size);

    if (!entry)
        return;
    memcpy(entry, form->bytes, form->size);
    memcpy(entry + form->address, member, batch->address);
    if (form->length) {
        entry[form->length] = rest[0];
        rest += 2;
    }
    if (form->port) {
        entry[form->protocol] = rest[0];
        memcpy(entry + form->port, rest + 1, 2);
    }
    memcpy(entry + form->lineno, &lineno, sizeof(lineno));
}

/* Writes one message with as many members as it takes, from member *i on, and moves *i behind them. Returns 0 or -errno. */
static int put_message(struct batch *batch, size_t *i)
{
    const uint32_t lineno = 0;
    struct np_nl_out out;
    size_t start = 0, list = 0;
    const int result = np_ipset_writer(batch->ipset, &out);

    if (result < 0)
        return result;
    start = np_ipset_begin(&out, batch->type, 0, batch->seq);
    np_nl_put_string(&out, IPSET_ATTR_SETNAME, batch->name);
    /* The kernel refuses a list without one, and writes the failing member's into it. */
    np_nl_put(&out, IPSET_ATTR_LINENO, &lineno, sizeof(lineno));
    list = np_nl_nest(&out, IPSET_ATTR_ADT);
    while (*i < batch->count && out.used - start < NP_MESSAGE) {
        if (batch->merged)
            *i = put_run(&out, batch, *i);
        else
            put_member(&out, batch, (*i)++);
    }
    np_nl_unnest(&out, list);
    return np_ipset_keep(batch->ipset, &out, start);
}

/* Whether most of the members are no part of a run. */
static int is_scattered(const struct batch *batch)
{
    struct np_runs runs = batch->runs;
    size_t count = 0;

    for (; count + runs.left > batch->count / 2 && count <= batch->count / 2; count++) {
        struct np_run run;

        np_runs_next(&runs, NP_IPSET_RUN, &run);
    }
    return count > batch->count / 2;
}

/* Has a batch written in the order of the buckets, in which no runs are left; addresses of IPv4 are sorted in `scratch` before, for their
 * numbers. Returns 0 or -errno. */
static int put_in_order(struct batch *batch, const struct np_buckets *buckets, int family, uint8_t *scratch)
{
    int result = 0;

    if (batch->merged) {
        if (!batch->runs.sorted)
            result = np_runs_sort(&batch->runs, batch->members, batch->count, scratch);
        batch->members = scratch;
        batch->merged = 0;
    }
    batch->order = buckets->room;
    if (result >= 0)
        result = np_buckets_order(buckets, batch->kind, family, batch->members, batch->count * batch->width);
    return result;
}

/* Adds (NP_IPSET_ADD) or deletes (NP_IPSET_DELETE) packed members; that one is there, or not there, already is no error. `scratch`
 * has twice `size` bytes for IPv4 hash:ip and bitmap:ip, whose contiguous addresses go as ranges, and may be NULL elsewhere.
 * `buckets` are those of the new set that the members come into, or NULL: unless most go as ranges, they are written in their order.
 * A member's number, in an error, is its place from 1 on: in sorted order there, as given elsewhere. Returns 0 or -errno. */
int np_ipset_members(struct np_ipset *ipset, uint32_t seq, int command, const char *name, int kind, int family,
                     const uint8_t *members, size_t size, uint8_t *scratch, const struct np_buckets *buckets)
{
    const int width = np_ipset_width(kind, family);
    struct batch batch = {
        .ipset = ipset, .name = name, .members = members, .seq = seq, .kind = kind, .type = (uint16_t)command};
    int result = 0;

    if (width <= 0 || size % (size_t)width != 0 || (command != NP_IPSET_ADD && command != NP_IPSET_DELETE))
        return -EINVAL;
    batch.width = (size_t)width;
    batch.count = size / batch.width;
    batch.address = family == 4 ? 4 : 16;
    batch.merged = kind == 0 && family == 4 && scratch != NULL;
    if (batch.count > UINT32_MAX - 1)
        return -EINVAL;
    result = make_form(&batch.plain, kind, batch.address, 0, 0);
    if (result >= 0 && kind & NP_IPSET_NET)
        result = make_form(&batch.nomatch, kind, batch.address, 0, command == NP_IPSET_ADD);
    if (result >= 0 && batch.merged) {
        result = make_form(&batch.range, kind, batch.address, 1, 0);
        if (result >= 0)
            result = np_runs_begin(&batch.runs, members, batch.count, scratch);
    }
    if (result >= 0 && buckets && (!batch.merged || is_scattered(&batch)))
        result = put_in_order(&batch, buckets, family, scratch);
    for (size_t i = 0; i < batch.count && result >= 0;)
        result = put_message(&batch, &i);
    return result;
}
