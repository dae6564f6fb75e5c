#include "np_ct.h"
#include "np_nl.h"
#include "np_sys.h"

#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <string.h>

enum {
    /* Updates of one send. Their errors wait to be received, about 1 KiB of the socket's memory each: all of them fit.
     * An update has at most 148 bytes. */
    NP_UPDATES = 128,
    /* Entries that one send asks for. They wait as those errors do, in up to twice the memory. */
    NP_GETS = 64,
    /* The attributes of Linux 5.8's filter, which older headers lack, and the bit by which it looks at a tuple's source address. */
    NP_CTA_FILTER = 25,
    NP_CTA_FILTER_ORIGINAL = 1,
    NP_CTA_FILTER_REPLY = 2,
    NP_FILTER_SOURCE = 1,
    /* linux/in6.h has it, and cannot be had beside the C library's. */
    NP_ICMPV6 = 58,
};

_Static_assert(sizeof(struct nfgenmsg) == 4, "nfgenmsg is 4 bytes");

/* Begins a ctnetlink message for a family, 0 meaning both. Returns where it starts. */
static size_t begin(struct np_nl_out *out, int command, int flags, uint32_t seq, int family)
{
    const struct nfgenmsg generic = {
        .nfgen_family = family == 4   ? NFPROTO_IPV4
                        : family == 6 ? NFPROTO_IPV6
                                      : NFPROTO_UNSPEC,
        .version = NFNETLINK_V0,
    };
    const size_t start = np_nl_begin(out, (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | command), (uint16_t)flags, seq);
    uint8_t *place = np_nl_reserve(out, sizeof(generic));

    if (place)
        memcpy(place, &generic, sizeof(generic));
    return start;
}

/* Sends what was written. Returns 0 or -errno. */
static int send_all(struct np_ct *ct, const struct np_nl_out *out)
{
    const int result = out->overflow ? -ENOBUFS : np_sys_send(ct->fd, out->data, out->used, &ct->calls);

    return result < 0 ? result : 0;
}

/* A writer on the whole buffer. */
static struct np_nl_out writer(const struct np_ct *ct)
{
    return (struct np_nl_out){.data = ct->buffer, .room = ct->room};
}

/* Opens the socket in the calling thread's network namespace. `protocol` is NETLINK_NETFILTER. The caller has set `buffer` and `room`,
 * and closes `fd`. Returns 0 or -errno. */
int np_ct_open(struct np_ct *ct, int protocol)
{
    ct->fd = np_sys_netlink_open(protocol, &ct->calls);
    return ct->fd < 0 ? ct->fd : 0;
}

/* Asks how many entries there are in this network namespace. Returns 0 or -errno: -EINVAL has no ctnetlink, -EPERM may not ask. */
int np_ct_entries(struct np_ct *ct, uint32_t seq, uint32_t *entries)
{
    struct np_nl_out out = writer(ct);
    int result = 0;

    np_nl_end(&out, begin(&out, IPCTNL_MSG_CT_GET_STATS, 0, seq, 0));
    result = send_all(ct, &out);
    if (result < 0)
        return result;
    /* Answers to requests that were given up are passed over. */
    do
        result = np_sys_recv(ct->fd, ct->buffer, ct->room, 0, &ct->calls);
    while (result >= 0 && np_nl_is_left_over(ct->buffer, (size_t)result, seq));
    if (result == -EAGAIN)
        return -ENODATA;
    return result < 0 ? result : np_ct_parse_entries(ct->buffer, (size_t)result, seq, entries);
}

/* Puts the IPv4 address that is the source of one of an entry's tuples, and that the kernel's filter is to look at nothing else. */
static void put_filter(struct np_nl_out *out, int which, const uint8_t *address)
{
    const uint32_t original = which == NP_CT_ORIGINAL_SOURCE ? NP_FILTER_SOURCE : 0;
    const uint32_t reply = which == NP_CT_REPLY_SOURCE ? NP_FILTER_SOURCE : 0;
    const size_t tuple = np_nl_nest(out, original ? CTA_TUPLE_ORIG : CTA_TUPLE_REPLY);
    const size_t ip = np_nl_nest(out, CTA_TUPLE_IP);
    size_t filter = 0;

    np_nl_put(out, CTA_IP_V4_SRC, address, 4);
    np_nl_unnest(out, ip);
    np_nl_unnest(out, tuple);
    filter = np_nl_nest(out, NP_CTA_FILTER);
    np_nl_put(out, NP_CTA_FILTER_ORIGINAL, &original, sizeof(original));
    np_nl_put(out, NP_CTA_FILTER_REPLY, &reply, sizeof(reply));
    np_nl_unnest(out, filter);
}

/* Starts a dump of a family's entries, 0 meaning both: of all (NP_CT_ALL), of those with this IPv4 address for the source in one of
 * the two tuples (family 4 only: the kernel's filter for IPv6 is inverted, 6.18 included, and sends all but those), or of those whose
 * mark has the one bit of `bits` (NP_CT_MARKED). A kernel before 5.8 knows no addresses here and sends all. Returns 0 or -errno. */
int np_ct_list(struct np_ct *ct, uint32_t seq, int family, int which, const uint8_t *address, uint32_t bits)
{
    struct np_nl_out out = writer(ct);
    const size_t start = begin(&out, IPCTNL_MSG_CT_GET, NLM_F_DUMP, seq, family);
    const int by_address = which == NP_CT_ORIGINAL_SOURCE || which == NP_CT_REPLY_SOURCE;

    if (which < NP_CT_ALL || which > NP_CT_MARKED || (by_address && family != 4))
        return -EINVAL;
    if (by_address)
        put_filter(&out, which, address);
    if (which == NP_CT_MARKED) {
        np_nl_put_be32(&out, CTA_MARK, bits);
        np_nl_put_be32(&out, CTA_MARK_MASK, bits);
    }
    np_nl_end(&out, start);
    return send_all(ct, &out);
}

/* Receives the next part of a dump and appends to `dump` what is wanted of it. Netlink answers within the call, so nothing is waited
 * for. Returns 0, -ENODATA when nothing is there, or another -errno. */
int np_ct_receive(struct np_ct *ct, struct np_ct_dump *dump)
{
    const int result = np_sys_recv(ct->fd, ct->buffer, ct->room, 0, &ct->calls);

    if (result == -EAGAIN)
        return -ENODATA;
    /* Nothing where a part should be: a dump without it is not whole. */
    if (result == 0)
        return -EBADMSG;
    return result < 0 ? result : np_ct_parse_dump(ct->buffer, (size_t)result, dump);
}

/* Puts the protocol of a tuple, with the numbers that the kernel gave for it. */
static void put_protocol(struct np_nl_out *out, const struct np_ct_flow *flow)
{
    const struct np_ct_tuple *reply = &flow->reply;
    const size_t nest = np_nl_nest(out, CTA_TUPLE_PROTO);
    const int six = flow->first.protocol == NP_ICMPV6;

    np_nl_put_u8(out, CTA_PROTO_NUM, flow->first.protocol);
    if (flow->flags & NP_CT_PORTS) {
        np_nl_put_be16(out, CTA_PROTO_SRC_PORT, reply->source_port);
        np_nl_put_be16(out, CTA_PROTO_DST_PORT, reply->destination_port);
    } else if (flow->flags & NP_CT_ICMP) {
        np_nl_put_be16(out, six ? CTA_PROTO_ICMPV6_ID : CTA_PROTO_ICMP_ID, reply->source_port);
        np_nl_put_u8(out, six ? CTA_PROTO_ICMPV6_TYPE : CTA_PROTO_ICMP_TYPE, (uint8_t)(reply->destination_port >> 8));
        np_nl_put_u8(out, six ? CTA_PROTO_ICMPV6_CODE : CTA_PROTO_ICMP_CODE, (uint8_t)reply->destination_port);
    }
    np_nl_unnest(out, nest);
}

/* Puts what names an entry, the reply tuple and the zone: by the reply tuple, for the original one of a Service may belong to another
 * backend by now. A zone of the original direction alone does not key the reply. */
static void put_key(struct np_nl_out *out, const struct np_ct_flow *flow)
{
    const size_t tuple = np_nl_nest(out, CTA_TUPLE_REPLY), ip = np_nl_nest(out, CTA_TUPLE_IP);
    const int four = flow->first.family == 4;
    const size_t size = four ? 4 : 16;

    np_nl_put(out, four ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, flow->reply.source, size);
    np_nl_put(out, four ? CTA_IP_V4_DST : CTA_IP_V6_DST, flow->reply.destination, size);
    np_nl_unnest(out, ip);
    put_protocol(out, flow);
    if (flow->flags & NP_CT_ZONE_REPLY)
        np_nl_put_be16(out, CTA_TUPLE_ZONE, flow->zone);
    np_nl_unnest(out, tuple);
    if (flow->zone && !(flow->flags & (NP_CT_ZONE_ORIGINAL | NP_CT_ZONE_REPLY)))
        np_nl_put_be16(out, CTA_ZONE, flow->zone);
}

/* Asks for the entries of these flows one by one, and appends to `dump`, with NP_CT_EACH, those that are there and wanted. Each is either
 * seen or gone afterwards. Returns 0, or -errno: -ENODATA when an answer did not come. */
int np_ct_get(struct np_ct *ct, const struct np_ct_flow *flows, size_t count, struct np_ct_dump *dump)
{
    int result = 0;

    for (size_t i = 0; i < count && result >= 0;) {
        const size_t end = count - i < NP_GETS ? count : i + NP_GETS;
        struct np_nl_out out = writer(ct);

        for (; i < end; i++) {
            const size_t start = begin(&out, IPCTNL_MSG_CT_GET, 0, dump->seq, flows[i].first.family);

            put_key(&out, &flows[i]);
            np_nl_end(&out, start);
        }
        result = send_all(ct, &out);
        while (result >= 0 && dump->seen + dump->gone < end)
            result = np_ct_receive(ct, dump);
    }
    return result;
}

/* Writes one update: the flow's entry gets `mark` in the bits of `mask`. */
static void put_update(struct np_nl_out *out, const struct np_ct_flow *flow, uint32_t seq, uint32_t mark, uint32_t mask)
{
    const size_t start = begin(out, IPCTNL_MSG_CT_NEW, 0, seq, flow->first.family);

    put_key(out, flow);
    np_nl_put_be32(out, CTA_MARK, mark);
    np_nl_put_be32(out, CTA_MARK_MASK, mask);
    np_nl_end(out, start);
}

/* Reads all answers that wait into the outcome. Returns 0 when none is left, or -errno. */
static int read_answers(struct np_ct *ct, struct np_ct_outcome *outcome)
{
    for (;;) {
        int result = np_sys_recv(ct->fd, ct->buffer, ct->room, 0, &ct->calls);

        if (result == -EAGAIN)
            return 0;
        if (result == -ENOBUFS && !(outcome->flags & NP_CT_LOST))
            outcome->flags |= NP_CT_LOST;
        else if (result < 0 || (result = np_ct_parse_answers(ct->buffer, (size_t)result, outcome)) < 0)
            return result;
    }
}

/* Gives the entries `mark` in the bits of `mask` and leaves their other bits: `outcome->count` flows, numbered from `outcome->first`
 * on; the caller has zeroed the rest of the outcome. An entry that is gone is counted there and no failure. Returns 0 when all was
 * answered, whatever the answers were, or -errno: -ENODATA when the acknowledgement did not come. */
int np_ct_update(struct np_ct *ct, const struct np_ct_flow *flows, uint32_t mark, uint32_t mask,
                 struct np_ct_outcome *outcome)
{
    int result = 0;

    for (uint32_t i = 0; i < outcome->count && result >= 0;) {
        const uint32_t end = outcome->count - i < NP_UPDATES ? outcome->count : i + NP_UPDATES;
        struct np_nl_out out = writer(ct);

        for (; i < end; i++)
            put_update(&out, &flows[i], outcome->first + i, mark, mask);
        /* A message for nobody ends the last send: its acknowledgement says that all was read. */
        if (end == outcome->count)
            np_nl_end(&out, np_nl_begin(&out, NLMSG_NOOP, NLM_F_ACK, outcome->first + outcome->count));
        result = send_all(ct, &out);
        if (result >= 0)
            result = read_answers(ct, outcome);
    }
    if (result >= 0 && outcome->count && !(outcome->flags & NP_CT_DONE) && outcome->failures == 0)
        result = -ENODATA;
    return result;
}
