#include "np_ipset.h"
#include "np_nl.h"
#include "np_sort.h"
#include "np_sys.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <string.h>

enum {
    /* A message of members ends near this size. The kernel repeats a message that fails, so small ones keep its memory and ours free. */
    NP_MESSAGE = 16 * 1024,
    /* Room that the ends of a message may need: header, name, the member that passed NP_MESSAGE. */
    NP_SLACK = 512,
    /* One send. The kernel may allow less; then it is found out. */
    NP_SEND = 1024 * 1024,
    /* Answers that may wait: a few hundred failed messages. */
    NP_ANSWERS = 4 * 1024 * 1024,
    /* No datagram is longer: the kernel fills 32 KiB of a dump at most, and repeats a message that failed. */
    NP_DATAGRAM = 32 * 1024,
    /* Nor one that says no more of a set than its header. */
    NP_SHORT = 8 * 1024,
    /* IPSET_ATTR_INITVAL, whose name headers of before Linux 5.10 lack (it was IPSET_ATTR_GC, of no use). */
    NP_INITVAL = IPSET_ATTR_HASHSIZE - 1,
};

_Static_assert(NP_IPSET_ADD == IPSET_CMD_ADD && NP_IPSET_DELETE == IPSET_CMD_DEL, "the commands are the kernel's");
_Static_assert(NP_IPSET_NAMES == IPSET_FLAG_LIST_SETNAME && NP_IPSET_HEADERS == IPSET_FLAG_LIST_HEADER,
               "the flags, too");
_Static_assert(sizeof(struct nfgenmsg) == 4, "nfgenmsg is 4 bytes");

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
    int kind, merged;
    struct form plain, nomatch, range;
};

/* The message type of an ipset command. */
static uint16_t type_of(int command)
{
    return (uint16_t)(NFNL_SUBSYS_IPSET << 8 | command);
}

/* Begins an ipset message with its protocol version. Returns where it starts. */
static size_t begin(struct np_nl_out *out, int command, int flags, uint32_t seq)
{
    const struct nfgenmsg generic = {.nfgen_family = NFPROTO_IPV4, .version = NFNETLINK_V0};
    const size_t start = np_nl_begin(out, type_of(command), (uint16_t)flags, seq);
    uint8_t *place = np_nl_reserve(out, sizeof(generic));

    if (place)
        memcpy(place, &generic, sizeof(generic));
    np_nl_put_u8(out, IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
    return start;
}

/* Sends what the buffer holds, in as few sends as the kernel takes, cut between messages. The buffer is empty afterwards, also
 * when it failed. Returns 0 or -errno. */
static int flush(struct np_ipset *ipset)
{
    size_t sent = 0;
    int result = 0;

    while (sent < ipset->used) {
        const uint8_t *data = ipset->buffer + sent;
        const size_t size = np_nl_whole(data, ipset->used - sent, ipset->limit);

        if (size == 0) {
            result = -EBADMSG;
            break;
        }
        result = np_sys_send(ipset->fd, data, size, &ipset->calls);
        if (result == -EMSGSIZE && np_nl_whole(data, size, 0) < size) {
            ipset->limit = size / 2;
            continue;
        }
        if (result < 0)
            break;
        ipset->messages += np_nl_count(data, size);
        ipset->bytes += size;
        sent += size;
    }
    ipset->used = 0;
    return result < 0 ? result : 0;
}

/* A writer on the free part of the buffer with room for one message of the largest size; sends the rest first where that is short.
 * Returns 0 or -errno. */
static int writer(struct np_ipset *ipset, struct np_nl_out *out)
{
    int result = 0;

    if (ipset->room - ipset->used < NP_MESSAGE + NP_SLACK)
        result = flush(ipset);
    if (ipset->room < NP_MESSAGE + NP_SLACK)
        result = -ENOBUFS;
    *out = (struct np_nl_out){.data = ipset->buffer, .room = ipset->room, .used = ipset->used};
    return result;
}

/* Ends the message that starts at `start` and keeps it for the next send, or drops it where it did not fit. Returns 0 or -errno. */
static int keep(struct np_ipset *ipset, struct np_nl_out *out, size_t start)
{
    np_nl_end(out, start);
    if (out->overflow)
        return -ENOBUFS;
    ipset->used = out->used;
    return 0;
}

/* Opens the socket in the calling thread's network namespace. `protocol` is NETLINK_NETFILTER. The caller has set `buffer` and
 * `room`, and closes `fd`. Returns 0 or -errno. */
int np_ipset_open(struct np_ipset *ipset, int protocol)
{
    int result = 0;

    ipset->used = 0;
    ipset->limit = NP_SEND;
    ipset->fd = np_sys_netlink_open(protocol, &ipset->calls);
    if (ipset->fd < 0)
        return ipset->fd;
    result = np_sys_netlink_sndbuf(ipset->fd, NP_SEND, &ipset->calls);
    if (result >= 0)
        result = np_sys_netlink_rcvbuf(ipset->fd, NP_ANSWERS, &ipset->calls);
    if (result < 0) {
        np_sys_close(ipset->fd, &ipset->calls);
        ipset->fd = -1;
    }
    return result;
}

/* Sends the one message that the buffer holds, numbered `seq`, and receives its answer there; left-overs are passed over. Returns the
 * answer's size or -errno. */
static int ask(struct np_ipset *ipset, uint32_t seq)
{
    int result = flush(ipset);

    if (result < 0)
        return result;
    do
        result = np_sys_recv(ipset->fd, ipset->buffer, ipset->room, 0, &ipset->calls);
    while (result >= 0 && np_nl_is_left_over(ipset->buffer, (size_t)result, seq));
    return result;
}

/* Asks which version of ipset's protocol the kernel speaks. Returns it, or -errno: -EINVAL has no ip_set, -EPERM may not ask. */
int np_ipset_protocol(struct np_ipset *ipset, uint32_t seq)
{
    struct np_nl_out out;
    int result = writer(ipset, &out);

    if (result >= 0)
        result = keep(ipset, &out, begin(&out, IPSET_CMD_PROTOCOL, 0, seq));
    if (result >= 0)
        result = ask(ipset, seq);
    return result < 0 ? result : np_ipset_parse_version(ipset->buffer, (size_t)result, seq);
}

/* Begins the message that creates a set. Returns where its nested numbers begin. */
static size_t begin_create(struct np_nl_out *out, uint32_t seq, const char *name, const char *type, int revision,
                           int family)
{
    begin(out, IPSET_CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, seq);
    np_nl_put_string(out, IPSET_ATTR_SETNAME, name);
    np_nl_put_string(out, IPSET_ATTR_TYPENAME, type);
    np_nl_put_u8(out, IPSET_ATTR_REVISION, (uint8_t)revision);
    np_nl_put_u8(out, IPSET_ATTR_FAMILY, family == 4 ? NFPROTO_IPV4 : NFPROTO_IPV6);
    return np_nl_nest(out, IPSET_ATTR_DATA);
}

/* Creates a hash of a type in one of its revisions, without time-outs, counters and comments; that it exists is an error. `hashsize`
 * (buckets) and `maxelem` (members) are never 0; `initval` keys the hash, 0 lets the kernel draw it. Returns 0 or -errno. */
int np_ipset_create(struct np_ipset *ipset, uint32_t seq, const char *name, const char *type, int revision, int family,
                    uint32_t hashsize, uint32_t maxelem, uint32_t initval)
{
    struct np_nl_out out;
    size_t start = 0, data = 0;
    const int result = writer(ipset, &out);

    if (result < 0)
        return result;
    start = out.used;
    data = begin_create(&out, seq, name, type, revision, family);
    np_nl_put_be32(&out, IPSET_ATTR_HASHSIZE, hashsize);
    np_nl_put_be32(&out, IPSET_ATTR_MAXELEM, maxelem);
    if (initval)
        np_nl_put_be32(&out, NP_INITVAL, initval);
    np_nl_unnest(&out, data);
    return keep(ipset, &out, start);
}

/* Puts an address of zeros. Returns where it is. */
static size_t put_address(struct np_nl_out *out, uint16_t type, size_t size)
{
    static const uint8_t zeros[16] = {0};
    const uint16_t version = size == 4 ? IPSET_ATTR_IPADDR_IPV4 : IPSET_ATTR_IPADDR_IPV6;
    const size_t nest = np_nl_nest(out, type);
    const size_t place = np_nl_put(out, (uint16_t)(version | NLA_F_NET_BYTEORDER), zeros, size);

    np_nl_unnest(out, nest);
    return place;
}

/* Creates a bitmap:ip for the IPv4 prefix of `length` bits, 16 to 31, at `address` (4 bytes), as np_ipset_create. Returns 0 or -errno. */
int np_ipset_create_bitmap(struct np_ipset *ipset, uint32_t seq, const char *name, int revision, const uint8_t *address,
                           int length)
{
    struct np_nl_out out;
    size_t start = 0, data = 0, place = 0;
    const int result = writer(ipset, &out);

    if (result < 0)
        return result;
    start = out.used;
    data = begin_create(&out, seq, name, "bitmap:ip", revision, 4);
    place = put_address(&out, IPSET_ATTR_IP, 4);
    if (!out.overflow)
        memcpy(out.data + place, address, 4);
    np_nl_put_u8(&out, IPSET_ATTR_CIDR, (uint8_t)length);
    np_nl_unnest(&out, data);
    return keep(ipset, &out, start);
}

/* Encodes the form of an entry with an address of `address` bytes. Returns 0 or -ENOBUFS. */
static int make_form(struct form *form, int kind, size_t address, int range, int nomatch)
{
    struct np_nl_out out = {.data = form->bytes, .room = sizeof(form->bytes)};
    const uint32_t lineno = 0;
    const size_t entry = np_nl_nest(&out, IPSET_ATTR_DATA);

    form->address = put_address(&out, IPSET_ATTR_IP, address);
    if (range)
        form->last = put_address(&out, IPSET_ATTR_IP_TO, address);
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

/* The end of the run of contiguous addresses that begins at member `i` of a sorted batch: at most NP_IPSET_RUN members, of which
 * equal ones may be some. */
static size_t run_end(const struct batch *batch, size_t i)
{
    const size_t most = batch->count - i < NP_IPSET_RUN ? batch->count : i + NP_IPSET_RUN;
    uint32_t last = 0;

    memcpy(&last, batch->members + i * 4, sizeof(last));
    for (i++; i < most; i++) {
        uint32_t next = 0;

        memcpy(&next, batch->members + i * 4, sizeof(next));
        if (ntohl(next) - ntohl(last) > 1)
            break;
        last = next;
    }
    return i;
}

/* Writes the entry of the i-th member, or of the run that begins there. Returns what is next after it. */
static size_t put_entry(struct np_nl_out *out, const struct batch *batch, size_t i)
{
    const size_t number = batch->order ? batch->order[i] : i;
    const uint8_t *member = batch->members + number * batch->width, *rest = member + batch->address;
    const size_t end = batch->merged ? run_end(batch, i) : i + 1;
    const uint8_t *last = batch->members + (end - 1) * batch->width;
    const int nomatch = batch->kind & NP_IPSET_NET && rest[1] != 0;
    const struct form *form = end > i + 1 ? &batch->range : nomatch ? &batch->nomatch : &batch->plain;
    const uint32_t lineno = (uint32_t)(number + 1);
    uint8_t *entry = np_nl_reserve(out, form->size);

    if (!entry)
        return end;
    memcpy(entry, form->bytes, form->size);
    memcpy(entry + form->address, member, batch->address);
    if (form->last)
        memcpy(entry + form->last, last, batch->address);
    if (form->length) {
        entry[form->length] = rest[0];
        rest += 2;
    }
    if (form->port) {
        entry[form->protocol] = rest[0];
        memcpy(entry + form->port, rest + 1, 2);
    }
    memcpy(entry + form->lineno, &lineno, sizeof(lineno));
    return end;
}

/* Writes one message with as many members as it takes, from member *i on, and moves *i behind them. Returns 0 or -errno. */
static int put_message(const struct batch *batch, size_t *i)
{
    const uint32_t lineno = 0;
    struct np_nl_out out;
    size_t start = 0, list = 0;
    const int result = writer(batch->ipset, &out);

    if (result < 0)
        return result;
    start = begin(&out, batch->type, 0, batch->seq);
    np_nl_put_string(&out, IPSET_ATTR_SETNAME, batch->name);
    /* The kernel refuses a list without one, and writes the failing member's into it. */
    np_nl_put(&out, IPSET_ATTR_LINENO, &lineno, sizeof(lineno));
    list = np_nl_nest(&out, IPSET_ATTR_ADT);
    while (*i < batch->count && out.used - start < NP_MESSAGE)
        *i = put_entry(&out, batch, *i);
    np_nl_unnest(&out, list);
    return keep(batch->ipset, &out, start);
}

/* Whether most of a sorted batch are no part of a run. */
static int is_scattered(const struct batch *batch)
{
    size_t runs = 0;

    for (size_t i = 0; i < batch->count; i = run_end(batch, i))
        runs++;
    return runs > batch->count / 2;
}

/* Has a batch written in the order of the buckets, in which no runs are left. Returns 0 or -errno. */
static int put_in_order(struct batch *batch, const struct np_buckets *buckets, int family)
{
    const int result = np_buckets_order(buckets, batch->kind, family, batch->members, batch->count * batch->width);

    batch->order = buckets->room;
    batch->merged = 0;
    return result;
}

/* Adds (NP_IPSET_ADD) or deletes (NP_IPSET_DELETE) packed members; that one is there, or not there, already is no error. `scratch`
 * has twice `size` bytes for IPv4 hash:ip and bitmap:ip, which is sorted so that contiguous addresses go as ranges, and may be NULL elsewhere.
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
    if (result >= 0 && batch.merged && scratch) {
        result = make_form(&batch.range, kind, batch.address, 1, 0);
        memcpy(scratch, members, size);
        batch.members = scratch;
        if (result >= 0)
            result = np_sort(scratch, scratch + size, batch.count, batch.width);
    }
    if (result >= 0 && buckets && (!batch.merged || is_scattered(&batch)))
        result = put_in_order(&batch, buckets, family);
    for (size_t i = 0; i < batch.count && result >= 0;)
        result = put_message(&batch, &i);
    return result;
}

/* Writes a command on one set, or on two; that a set is not there is an error. Returns 0 or -errno. */
static int put_names(struct np_ipset *ipset, uint32_t seq, int command, const char *name, const char *other)
{
    struct np_nl_out out;
    size_t start = 0;
    const int result = writer(ipset, &out);

    if (result < 0)
        return result;
    start = begin(&out, command, NLM_F_EXCL, seq);
    np_nl_put_string(&out, IPSET_ATTR_SETNAME, name);
    if (other)
        np_nl_put_string(&out, IPSET_ATTR_SETNAME2, other);
    return keep(ipset, &out, start);
}

/* Asks for the number by which rules refer to a set; as a command of its own, or with the `seq` of the one that creates it. Returns 0 or
 * -errno. */
int np_ipset_ask_number(struct np_ipset *ipset, uint32_t seq, const char *name)
{
    return put_names(ipset, seq, IPSET_CMD_GET_BYNAME, name, NULL);
}

/* Destroys a set. Returns 0 or -errno. */
int np_ipset_destroy(struct np_ipset *ipset, uint32_t seq, const char *name)
{
    return put_names(ipset, seq, IPSET_CMD_DESTROY, name, NULL);
}

/* Exchanges the contents of two sets of one type and family; who refers to one of them sees the other's from then on. Returns 0 or -errno. */
int np_ipset_swap(struct np_ipset *ipset, uint32_t seq, const char *name, const char *other)
{
    return put_names(ipset, seq, IPSET_CMD_SWAP, name, other);
}

/* Receives the datagrams that are there, each at the next multiple of `each` bytes in the buffer. Returns how many, or -errno. */
static int receive(struct np_ipset *ipset, size_t each, uint32_t *sizes)
{
    const size_t most = ipset->room / each < NP_DATAGRAMS ? ipset->room / each : NP_DATAGRAMS;

    return np_sys_recv_many(ipset->fd, ipset->buffer, each, (int)most, sizes, &ipset->calls);
}

/* Sends what is left of a run of `outcome->commands` commands, the first numbered `outcome->first`, and reads all answers into the
 * outcome, of which the caller has zeroed the rest (`numbers` has room for each command, or is NULL). Netlink answers within the send, so nothing is ever waited for.
 * Returns 0 when all was answered, whatever the answers were, or -errno: -ENODATA when the acknowledgement did not come. */
int np_ipset_finish(struct np_ipset *ipset, struct np_ipset_outcome *outcome)
{
    uint32_t sizes[NP_DATAGRAMS];
    struct np_nl_out out;
    int result = writer(ipset, &out);

    /* A message for nobody: only its acknowledgement matters. An error of the last command is thus never taken for the end. */
    if (result >= 0)
        result = keep(ipset, &out, np_nl_begin(&out, NLMSG_NOOP, NLM_F_ACK, outcome->first + outcome->commands));
    if (result >= 0)
        result = flush(ipset);
    while (result >= 0 && !(outcome->flags & NP_IPSET_DONE)) {
        const int count = receive(ipset, NP_DATAGRAM, sizes);

        if (count == -ENOBUFS && !(outcome->flags & NP_IPSET_LOST))
            outcome->flags |= NP_IPSET_LOST;
        else
            result = count;
        for (int i = 0; i < count && result >= 0; i++)
            result = np_ipset_parse_answers(ipset->buffer + (size_t)i * NP_DATAGRAM, sizes[i], outcome);
    }
    if (result == -EAGAIN)
        result = outcome->failures ? 0 : -ENODATA;
    return result;
}

/* Starts a dump of all sets, or of the set called `name`. `only` is NP_IPSET_NAMES or NP_IPSET_HEADERS for those, or 0 for the members
 * too. Returns 0 or -errno. */
int np_ipset_list(struct np_ipset *ipset, uint32_t seq, const char *name, uint32_t only)
{
    struct np_nl_out out;
    size_t start = 0;
    int result = writer(ipset, &out);

    if (result < 0)
        return result;
    start = begin(&out, IPSET_CMD_LIST, NLM_F_DUMP, seq);
    if (name)
        np_nl_put_string(&out, IPSET_ATTR_SETNAME, name);
    if (only)
        np_nl_put_be32(&out, IPSET_ATTR_FLAGS, only);
    result = keep(ipset, &out, start);
    return result < 0 ? result : flush(ipset);
}

/* Receives the next parts of a dump and appends them to `dump`: of members, no more than the buffer's room. Returns 0, -ENODATA when
 * nothing is there, or another -errno. */
int np_ipset_receive(struct np_ipset *ipset, struct np_ipset_dump *dump)
{
    const size_t each = dump->only ? NP_SHORT : NP_DATAGRAM;
    uint32_t sizes[NP_DATAGRAMS];
    const int count = receive(ipset, each, sizes);
    int result = count < 0 ? count : 0;

    /* Nothing where a part should be: a dump without it is not whole. */
    for (int i = 0; i < count && result == 0; i++)
        result = sizes[i] ? np_ipset_parse_dump(ipset->buffer + (size_t)i * each, sizes[i], dump) : -EBADMSG;
    return result == -EAGAIN ? -ENODATA : result;
}

/* A whole dump, as np_ipset_list, of dump->only, numbered dump->seq: a record for each set of which the name begins with dump->prefix. Returns 0 or -errno; -ENOSPC where there are more of those than room. */
int np_ipset_record(struct np_ipset *ipset, struct np_ipset_dump *dump, const char *name)
{
    int result = np_ipset_list(ipset, dump->seq, name, dump->only);

    while (result == 0 && !(dump->flags & NP_IPSET_DONE))
        result = np_ipset_receive(ipset, dump);
    return result;
}
