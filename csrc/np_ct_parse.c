#include "np_ct.h"
#include "np_nl.h"

#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <string.h>

_Static_assert(sizeof(struct np_ct_first) == 36 && sizeof(struct np_ct_tuple) == 36, "neither has padding");
_Static_assert(sizeof(struct np_ct_flow) == 120 && offsetof(struct np_ct_flow, mark) == 108, "a flow has no padding");
_Static_assert(sizeof(struct nf_ct_tcp_flags) == 2, "flags and their mask are a byte each");
_Static_assert(CTA_PROTO_ICMPV6_ID == CTA_PROTO_ICMP_ID + 3 && CTA_PROTO_ICMPV6_CODE == CTA_PROTO_ICMP_CODE + 3,
               "the numbers of ICMPv6 follow those of ICMP");

/* The message type of a ctnetlink command. */
static uint16_t type_of(int command)
{
    return (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | command);
}

/* Drops nfgenmsg at the front; its family, 4, 6 or 0 for another, or -EBADMSG. */
static int take_family(struct np_nl_in *in)
{
    struct nfgenmsg generic;

    if (in->left < sizeof(generic))
        return -EBADMSG;
    memcpy(&generic, in->data, sizeof(generic));
    in->data += sizeof(generic);
    in->left -= sizeof(generic);
    return generic.nfgen_family == NFPROTO_IPV4 ? 4 : generic.nfgen_family == NFPROTO_IPV6 ? 6 : 0;
}

/* The number of entries in the answer to IPCTNL_MSG_CT_GET_STATS. Returns 0 or -errno. */
int np_ct_parse_entries(const uint8_t *data, size_t size, uint32_t seq, uint32_t *entries)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    struct np_nl_attribute attribute;

    if (np_nl_next_message(&in, &message) <= 0 || message.seq != seq)
        return -EBADMSG;
    if (message.type == NLMSG_ERROR) {
        const int error = np_nl_error(&message.body);
        return error < 0 ? error : -EBADMSG;
    }
    if (message.type != type_of(IPCTNL_MSG_CT_GET_STATS) || take_family(&message.body) < 0)
        return -EBADMSG;
    while (np_nl_next_attribute(&message.body, &attribute) > 0)
        if (attribute.type == CTA_STATS_GLOBAL_ENTRIES)
            return np_nl_get_be32(&attribute, entries);
    return -EBADMSG;
}

/* Enters answers to the updates `first` to `first + count - 1` into the outcome: how many entries were gone, the first other failure
 * (`failed` counted from 0, `code` an errno) and how many there were. Sets NP_CT_DONE at the acknowledgement of the number after those;
 * other numbers are left-overs and ignored. Returns 0 or -EBADMSG. */
int np_ct_parse_answers(const uint8_t *data, size_t size, struct np_ct_outcome *outcome)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0;

    while ((result = np_nl_next_message(&in, &message)) > 0) {
        const uint32_t number = message.seq - outcome->first;
        int error = 0;

        if (number > outcome->count)
            continue;
        if (message.type != NLMSG_ERROR)
            return -EBADMSG;
        error = np_nl_error(&message.body);
        if (error == -EBADMSG)
            return error;
        if (number == outcome->count) {
            outcome->flags |= NP_CT_DONE;
        } else if (error == -ENOENT) {
            outcome->gone++;
        } else if (error < 0 && outcome->failures++ == 0) {
            outcome->code = -error;
            outcome->failed = number;
        }
    }
    return result;
}

/* Reads the two addresses of a tuple, of exactly `size` bytes each. Returns 0 or -EBADMSG. */
static int parse_addresses(struct np_nl_in in, size_t size, struct np_ct_tuple *tuple)
{
    const uint16_t source = size == 4 ? CTA_IP_V4_SRC : CTA_IP_V6_SRC;
    const uint16_t destination = size == 4 ? CTA_IP_V4_DST : CTA_IP_V6_DST;
    struct np_nl_attribute attribute;
    unsigned int missing = 3;
    int result = 0;

    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        if (attribute.type == source) {
            result = np_nl_get(&attribute, tuple->source, size);
            missing &= ~1U;
        } else if (attribute.type == destination) {
            result = np_nl_get(&attribute, tuple->destination, size);
            missing &= ~2U;
        }
        if (result < 0)
            return result;
    }
    return result < 0 || missing ? -EBADMSG : 0;
}

/* Reads a tuple's protocol and its numbers: ports, or ICMP's id as the source's and type << 8 | code as the destination's, which is
 * how conntrack keeps them. `flags` gets NP_CT_PORTS or NP_CT_ICMP. Returns the protocol or -EBADMSG. */
static int parse_protocol(struct np_nl_in in, struct np_ct_tuple *tuple, uint16_t *flags)
{
    struct np_nl_attribute attribute;
    uint8_t protocol = 0, number = 0, icmp[2] = {0, 0};
    int result = 0, bad = 0, found = 0;

    while (!bad && (result = np_nl_next_attribute(&in, &attribute)) > 0) {
        switch (attribute.type) {
        case CTA_PROTO_NUM:
            bad = np_nl_get(&attribute, &protocol, sizeof(protocol));
            found = 1;
            break;
        case CTA_PROTO_SRC_PORT:
            bad = np_nl_get_be16(&attribute, &tuple->source_port);
            *flags |= NP_CT_PORTS;
            break;
        case CTA_PROTO_DST_PORT:
            bad = np_nl_get_be16(&attribute, &tuple->destination_port);
            break;
        case CTA_PROTO_ICMP_ID:
        case CTA_PROTO_ICMPV6_ID:
            bad = np_nl_get_be16(&attribute, &tuple->source_port);
            *flags |= NP_CT_ICMP;
            break;
        case CTA_PROTO_ICMP_TYPE:
        case CTA_PROTO_ICMPV6_TYPE:
        case CTA_PROTO_ICMP_CODE:
        case CTA_PROTO_ICMPV6_CODE:
            bad = np_nl_get(&attribute, &number, sizeof(number));
            icmp[attribute.type == CTA_PROTO_ICMP_CODE || attribute.type == CTA_PROTO_ICMPV6_CODE] = number;
            break;
        default:
            break;
        }
    }
    if (*flags & NP_CT_ICMP)
        tuple->destination_port = (uint16_t)(icmp[0] << 8 | icmp[1]);
    return bad < 0 || result < 0 || !found ? -EBADMSG : protocol;
}

/* Reads one of the two tuples. `zone` is left as it is where the tuple has none of its own. Returns the protocol or -EBADMSG. */
static int parse_tuple(struct np_nl_in in, size_t size, struct np_ct_tuple *tuple, uint16_t *zone, uint16_t *flags)
{
    struct np_nl_attribute attribute;
    int result = 0, protocol = -EBADMSG, addresses = -EBADMSG;

    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        if (attribute.type == CTA_TUPLE_IP)
            addresses = parse_addresses(attribute.value, size, tuple);
        else if (attribute.type == CTA_TUPLE_PROTO)
            protocol = parse_protocol(attribute.value, tuple, flags);
        else if (attribute.type == CTA_TUPLE_ZONE && np_nl_get_be16(&attribute, zone) < 0)
            return -EBADMSG;
    }
    return result < 0 || addresses < 0 ? -EBADMSG : protocol;
}

/* Whether conntrack met this TCP connection in its middle: it then watches both sides' windows liberally. Returns 0, 1 or -EBADMSG. */
static int parse_picked_up(struct np_nl_in in)
{
    struct np_nl_attribute attribute;
    int result = np_nl_next_attribute(&in, &attribute), liberal = 0;

    if (result <= 0 || attribute.type != CTA_PROTOINFO_TCP)
        return result < 0 ? result : 0;
    in = attribute.value;
    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        struct nf_ct_tcp_flags flags;

        if (attribute.type != CTA_PROTOINFO_TCP_FLAGS_ORIGINAL && attribute.type != CTA_PROTOINFO_TCP_FLAGS_REPLY)
            continue;
        if (np_nl_get(&attribute, &flags, sizeof(flags)) < 0)
            return -EBADMSG;
        liberal += (flags.flags & IP_CT_TCP_FLAG_BE_LIBERAL) != 0;
    }
    return result < 0 ? result : liberal >= 2;
}

/* Reads the attributes of an entry. Returns 0 or -EBADMSG. */
static int parse_attributes(struct np_nl_in in, size_t size, struct np_ct_flow *flow)
{
    struct np_nl_attribute attribute;
    uint16_t zones[2] = {0, 0}, both = 0;
    int result = 0, original = -EBADMSG, reply = -EBADMSG, bad = 0;

    while (bad >= 0 && (result = np_nl_next_attribute(&in, &attribute)) > 0) {
        switch (attribute.type) {
        case CTA_TUPLE_ORIG:
            bad = original = parse_tuple(attribute.value, size, &flow->original, &zones[0], &flow->flags);
            break;
        case CTA_TUPLE_REPLY:
            bad = reply = parse_tuple(attribute.value, size, &flow->reply, &zones[1], &flow->flags);
            break;
        case CTA_STATUS:
            bad = np_nl_get_be32(&attribute, &flow->status);
            break;
        case CTA_MARK:
            bad = np_nl_get_be32(&attribute, &flow->mark);
            break;
        case CTA_ZONE:
            bad = np_nl_get_be16(&attribute, &both);
            break;
        case CTA_PROTOINFO:
            bad = parse_picked_up(attribute.value);
            flow->flags |= bad == 1 ? NP_CT_PICKED_UP : 0;
            break;
        default:
            break;
        }
    }
    if (bad < 0 || result < 0 || original < 0 || original != reply)
        return -EBADMSG;
    flow->first.protocol = (uint8_t)original;
    flow->flags |= zones[0] ? NP_CT_ZONE_ORIGINAL : zones[1] ? NP_CT_ZONE_REPLY : 0;
    flow->zone = zones[0] ? zones[0] : zones[1] ? zones[1] : both;
    return 0;
}

static uint32_t number_of(const uint8_t *address)
{
    uint32_t network = 0;

    memcpy(&network, address, sizeof(network));
    return ntohl(network);
}

/* Whether an IPv4 address is among sorted ones. The way through them is no branch: nobody could foresee it. */
static int among4(const uint8_t *address, const uint8_t *sorted, size_t count)
{
    const uint32_t wanted = number_of(address);

    if (count == 0)
        return 0;
    while (count > 1) {
        const size_t half = count / 2;

        sorted += number_of(sorted + half * 4) <= wanted ? half * 4 : 0;
        count -= half;
    }
    return number_of(sorted) == wanted;
}

/* Whether an IPv6 address is among sorted ones. */
static int among6(const uint8_t *address, const uint8_t *sorted, size_t count)
{
    size_t low = 0, high = count;

    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = memcmp(address, sorted + middle * 16, 16);

        if (order == 0)
            return 1;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return 0;
}

/* Whether an address of `size` bytes, 4 or 16, is one of the wanted ends: with NP_CT_LINK_LOCAL these are among them, fe80::/10. */
int np_ct_is_end(const struct np_ct_dump *dump, const uint8_t *address, size_t size)
{
    if (size == 4)
        return among4(address, dump->ends4, dump->count4);
    if (dump->flags & NP_CT_LINK_LOCAL && address[0] == 0xfe && (address[1] & 0xc0) == 0x80)
        return 1;
    return among6(address, dump->ends6, dump->count6);
}

/* Whether a tuple's source address, of `size` bytes, is one of the wanted ends. */
static int has_end(const struct np_ct_dump *dump, struct np_nl_in tuple, size_t size)
{
    struct np_nl_attribute attribute;
    struct np_nl_in in;

    if (np_nl_next_attribute(&tuple, &attribute) <= 0 || attribute.type != CTA_TUPLE_IP)
        return 0;
    in = attribute.value;
    if (np_nl_next_attribute(&in, &attribute) <= 0 || attribute.value.left != size)
        return 0;
    return np_ct_is_end(dump, attribute.value.data, size);
}

/* Whether an entry can matter to who asked: one of its ends is wanted, or its mark has one of the bits. One that cannot is counted here.
 * Reads no more of it than that takes, for most entries matter to nobody: this is what a dump of a large table costs. The kernel puts a
 * tuple's source first. */
static int is_wanted(struct np_ct_dump *dump, struct np_nl_in in, size_t size)
{
    const int all = dump->bits | dump->counted ? 3 : 2;
    struct np_nl_attribute attribute;
    uint32_t mark = 0;

    for (int seen = 0; seen < all && np_nl_next_attribute(&in, &attribute) > 0;) {
        if (attribute.type == CTA_TUPLE_ORIG || attribute.type == CTA_TUPLE_REPLY) {
            seen++;
            if (has_end(dump, attribute.value, size))
                return 1;
        } else if (attribute.type == CTA_MARK) {
            seen++;
            if (np_nl_get_be32(&attribute, &mark) == 0 && mark & dump->bits)
                return 1;
        }
    }
    dump->marked += (mark & dump->counted) != 0;
    return 0;
}

/* Appends an entry to the dump if it is wanted: what its first packet was in FORWARD, behind DNAT and before SNAT, comes first in it.
 * Returns 0, -ENOSPC or -EBADMSG. */
static int parse_entry(struct np_nl_in in, struct np_ct_dump *dump)
{
    const int family = take_family(&in);
    struct np_ct_flow *flow = NULL;

    if (family <= 0)
        return family;
    dump->seen++;
    if (!is_wanted(dump, in, family == 4 ? 4 : 16))
        return 0;
    if (dump->count == dump->room)
        return -ENOSPC;
    flow = &dump->flows[dump->count];
    memset(flow, 0, sizeof(*flow));
    if (parse_attributes(in, family == 4 ? 4 : 16, flow) < 0)
        return -EBADMSG;
    flow->first.family = (uint8_t)family;
    memcpy(flow->first.source, flow->original.source, sizeof(flow->first.source));
    memcpy(flow->first.destination, flow->reply.source, sizeof(flow->first.destination));
    if (flow->flags & NP_CT_ICMP)
        flow->first.service = flow->original.destination_port;
    else if (flow->flags & NP_CT_PORTS)
        flow->first.service = flow->reply.source_port;
    dump->count++;
    dump->marked += (flow->mark & dump->counted) != 0;
    return 0;
}

/* Appends what one datagram of the dump numbered `seq` holds of wanted entries: those with an end among the sorted addresses `ends4`
 * and `ends6`, or with one of `bits` in their mark. `seen` counts all of the two families, and `marked` those of all that have one of
 * the bits `counted`. With NP_CT_EACH one that is not there is `gone`. Sets NP_CT_DONE at the end. (A table that never rests has no
 * consistent dump, and ctnetlink does not say NLM_F_DUMP_INTR.) Returns 0, the kernel's -errno, -ENOSPC where the room is short, or
 * -EBADMSG. */
int np_ct_parse_dump(const uint8_t *data, size_t size, struct np_ct_dump *dump)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0;

    while (!(dump->flags & NP_CT_DONE) && (result = np_nl_next_message(&in, &message)) > 0) {
        if (message.seq != dump->seq)
            continue;
        if (message.type == NLMSG_DONE || message.type == NLMSG_ERROR) {
            result = np_nl_error(&message.body);
            if (result == -ENOENT && dump->flags & NP_CT_EACH) {
                dump->gone++;
                result = 0;
                continue;
            }
            if (result == 0 && message.type == NLMSG_ERROR)
                result = -EBADMSG;
            dump->flags |= NP_CT_DONE;
        } else if (message.type == type_of(IPCTNL_MSG_CT_NEW)) {
            result = parse_entry(message.body, dump);
        } else {
            result = -EBADMSG;
        }
        if (result < 0)
            return result;
    }
    return result < 0 ? result : 0;
}
