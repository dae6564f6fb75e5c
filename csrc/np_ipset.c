#include "np_ipset.h"
#include "np_ipset_put.h"
#include "np_nl.h"
#include "np_sys.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <string.h>

enum {
    /* One send. The kernel may allow less; then it is found out. */
    NP_SEND = 1024 * 1024,
    /* Answers that may wait: a few hundred failed messages. */
    NP_ANSWERS = 4 * 1024 * 1024,
    /* No datagram is longer: the kernel fills 32 KiB of a dump at most, and repeats a message that failed. */
    NP_DATAGRAM = 32 * 1024,
    /* Nor one that says no more of a set than its header. */
    NP_SHORT = 8 * 1024,
    /* IPSET_ATTR_INITVAL, whose name headers of before Linux 5.11 lack (it was IPSET_ATTR_GC, of no use). */
    NP_INITVAL = IPSET_ATTR_HASHSIZE - 1,
};

_Static_assert(NP_IPSET_ADD == IPSET_CMD_ADD && NP_IPSET_DELETE == IPSET_CMD_DEL, "the commands are the kernel's");
_Static_assert(NP_IPSET_NAMES == IPSET_FLAG_LIST_SETNAME && NP_IPSET_HEADERS == IPSET_FLAG_LIST_HEADER,
               "the flags, too");
_Static_assert(sizeof(struct nfgenmsg) == 4, "nfgenmsg is 4 bytes");

/* The message type of an ipset command. */
static uint16_t type_of(int command)
{
    return (uint16_t)(NFNL_SUBSYS_IPSET << 8 | command);
}

/* Begins an ipset message with its protocol version. Returns where it starts. */
size_t np_ipset_begin(struct np_nl_out *out, int command, int flags, uint32_t seq)
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
int np_ipset_writer(struct np_ipset *ipset, struct np_nl_out *out)
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
int np_ipset_keep(struct np_ipset *ipset, struct np_nl_out *out, size_t start)
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
    int result = np_ipset_writer(ipset, &out);

    if (result >= 0)
        result = np_ipset_keep(ipset, &out, np_ipset_begin(&out, IPSET_CMD_PROTOCOL, 0, seq));
    if (result >= 0)
        result = ask(ipset, seq);
    return result < 0 ? result : np_ipset_parse_version(ipset->buffer, (size_t)result, seq);
}

/* Begins the message that creates a set. Returns where its nested numbers begin. */
static size_t begin_create(struct np_nl_out *out, uint32_t seq, const char *name, const char *type, int revision,
                           int family)
{
    np_ipset_begin(out, IPSET_CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, seq);
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
    const int result = np_ipset_writer(ipset, &out);

    if (result < 0)
        return result;
    start = out.used;
    data = begin_create(&out, seq, name, type, revision, family);
    np_nl_put_be32(&out, IPSET_ATTR_HASHSIZE, hashsize);
    np_nl_put_be32(&out, IPSET_ATTR_MAXELEM, maxelem);
    if (initval)
        np_nl_put_be32(&out, NP_INITVAL, initval);
    np_nl_unnest(&out, data);
    return np_ipset_keep(ipset, &out, start);
}

/* Puts an address of zeros. Returns where it is. */
size_t np_ipset_put_address(struct np_nl_out *out, uint16_t type, size_t size)
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
    const int result = np_ipset_writer(ipset, &out);

    if (result < 0)
        return result;
    start = out.used;
    data = begin_create(&out, seq, name, "bitmap:ip", revision, 4);
    place = np_ipset_put_address(&out, IPSET_ATTR_IP, 4);
    if (!out.overflow)
        memcpy(out.data + place, address, 4);
    np_nl_put_u8(&out, IPSET_ATTR_CIDR, (uint8_t)length);
    np_nl_unnest(&out, data);
    return np_ipset_keep(ipset, &out, start);
}

/* Writes a command on one set, or on two; that a set is not there is an error. Returns 0 or -errno. */
static int put_names(struct np_ipset *ipset, uint32_t seq, int command, const char *name, const char *other)
{
    struct np_nl_out out;
    size_t start = 0;
    const int result = np_ipset_writer(ipset, &out);

    if (result < 0)
        return result;
    start = np_ipset_begin(&out, command, NLM_F_EXCL, seq);
    np_nl_put_string(&out, IPSET_ATTR_SETNAME, name);
    if (other)
        np_nl_put_string(&out, IPSET_ATTR_SETNAME2, other);
    return np_ipset_keep(ipset, &out, start);
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
    int result = np_ipset_writer(ipset, &out);

    /* A message for nobody: only its acknowledgement matters. An error of the last command is thus never taken for the end. */
    if (result >= 0)
        result =
            np_ipset_keep(ipset, &out, np_nl_begin(&out, NLMSG_NOOP, NLM_F_ACK, outcome->first + outcome->commands));
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
    int result = np_ipset_writer(ipset, &out);

    if (result < 0)
        return result;
    start = np_ipset_begin(&out, IPSET_CMD_LIST, NLM_F_DUMP, seq);
    if (name)
        np_nl_put_string(&out, IPSET_ATTR_SETNAME, name);
    if (only)
        np_nl_put_be32(&out, IPSET_ATTR_FLAGS, only);
    result = np_ipset_keep(ipset, &out, start);
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
