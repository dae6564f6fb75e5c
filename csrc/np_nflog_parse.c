#include "np_nflog.h"
#include "np_nl.h"

#include <endian.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_log.h>
#include <string.h>

/* Protocol numbers, of IANA: linux/in.h and in6.h cannot be had beside the C library's. */
enum {
    NP_HOP_BY_HOP = 0,
    NP_ICMP = 1,
    NP_TCP = 6,
    NP_UDP = 17,
    NP_ROUTING = 43,
    NP_FRAGMENT = 44,
    NP_AUTHENTICATION = 51,
    NP_ICMPV6 = 58,
    NP_OPTIONS = 60,
    NP_SCTP = 132,
    NP_MOBILITY = 135,
    NP_UDPLITE = 136,
};

/* What one message says, besides its packet. */
struct fields {
    struct np_nl_in payload;
    uint32_t number;
    int has_payload;
    int has_number;
    int is_ours;
};

/* 16 bits of network byte order. */
static uint16_t be16(const uint8_t *data)
{
    return (uint16_t)(data[0] << 8 | data[1]);
}

/* Reads what stands at the front of the transport header: ports, or ICMP's type and code. */
static void parse_transport(const uint8_t *data, size_t size, struct np_nflog_packet *packet)
{
    const uint8_t protocol = packet->protocol;

    if (packet->flags & NP_NFLOG_FRAGMENT)
        return;
    if ((packet->family == 4 && protocol == NP_ICMP) || (packet->family == 6 && protocol == NP_ICMPV6)) {
        if (size < 2) {
            packet->flags |= NP_NFLOG_CUT_OFF;
            return;
        }
        packet->destination_port = be16(data);
        packet->flags |= NP_NFLOG_ICMP;
    } else if (protocol == NP_TCP || protocol == NP_UDP || protocol == NP_SCTP || protocol == NP_UDPLITE) {
        if (size < 4) {
            packet->flags |= NP_NFLOG_CUT_OFF;
            return;
        }
        packet->source_port = be16(data);
        packet->destination_port = be16(data + 2);
        packet->flags |= NP_NFLOG_PORTS;
    }
}

/* An IPv4 packet of at least one byte. Returns 0 or -EBADMSG. */
static int parse_ipv4(const uint8_t *data, size_t size, struct np_nflog_packet *packet)
{
    const size_t header = (size_t)(data[0] & 15) * 4;

    if (size < 20 || header < 20)
        return -EBADMSG;
    packet->family = 4;
    packet->protocol = data[9];
    memcpy(packet->source, data + 12, 4);
    memcpy(packet->destination, data + 16, 4);
    if (be16(data + 6) & 0x1fff)
        packet->flags |= NP_NFLOG_FRAGMENT;
    if (header > size)
        packet->flags |= NP_NFLOG_CUT_OFF;
    else
        parse_transport(data + header, size - header, packet);
    return 0;
}

/* Whether a header of IPv6 is one that another follows. */
static int is_extension(uint8_t number)
{
    return number == NP_HOP_BY_HOP || number == NP_ROUTING || number == NP_FRAGMENT || number == NP_AUTHENTICATION ||
           number == NP_OPTIONS || number == NP_MOBILITY;
}

/* An IPv6 packet of at least one byte; its protocol is what follows the extension headers, or the first of those that is cut off.
 * Returns 0 or -EBADMSG. */
static int parse_ipv6(const uint8_t *data, size_t size, struct np_nflog_packet *packet)
{
    size_t at = 40;

    if (size < at)
        return -EBADMSG;
    packet->family = 6;
    packet->protocol = data[6];
    memcpy(packet->source, data + 8, 16);
    memcpy(packet->destination, data + 24, 16);
    while (is_extension(packet->protocol)) {
        size_t length = 8;

        if (size - at < 8) {
            packet->flags |= NP_NFLOG_CUT_OFF;
            return 0;
        }
        if (packet->protocol == NP_FRAGMENT) {
            if (be16(data + at + 2) & 0xfff8)
                packet->flags |= NP_NFLOG_FRAGMENT;
        } else if (packet->protocol == NP_AUTHENTICATION) {
            length = ((size_t)data[at + 1] + 2) * 4;
        } else {
            length = ((size_t)data[at + 1] + 1) * 8;
        }
        packet->protocol = data[at];
        /* What follows in a later fragment is no header. */
        if (packet->flags & NP_NFLOG_FRAGMENT)
            return 0;
        if (length > size - at) {
            packet->flags |= NP_NFLOG_CUT_OFF;
            return 0;
        }
        at += length;
    }
    parse_transport(data + at, size - at, packet);
    return 0;
}

/* Reads the headers of a packet, as many as are there, into the fields from `source` on that they are about; the others stay. Returns 0,
 * or -EBADMSG for what is no IP packet or whose addresses are cut off. */
int np_nflog_packet(const uint8_t *data, size_t size, struct np_nflog_packet *packet)
{
    const int version = size ? data[0] >> 4 : 0;

    return version == 4 ? parse_ipv4(data, size, packet) : version == 6 ? parse_ipv6(data, size, packet) : -EBADMSG;
}

/* Reads a time stamp into microseconds. Returns 0 or -EBADMSG. */
static int parse_time(const struct np_nl_attribute *attribute, uint64_t *time)
{
    struct nfulnl_msg_packet_timestamp stamp;
    uint64_t seconds = 0, microseconds = 0;

    if (np_nl_get(attribute, &stamp, sizeof(stamp)) < 0)
        return -EBADMSG;
    seconds = be64toh(stamp.sec);
    microseconds = be64toh(stamp.usec);
    /* A clock that is far off is no time. */
    *time = seconds > UINT64_MAX / 2000000 || microseconds >= 1000000 ? 0 : seconds * 1000000 + microseconds;
    return 0;
}

/* Whether that is the text, with or without its terminating zero. */
static int is_text(struct np_nl_in value, const char *text)
{
    const size_t size = strlen(text);

    return value.left >= size && value.left <= size + 1 && memcmp(value.data, text, size) == 0 &&
           (value.left == size || value.data[size] == 0);
}

/* Whether an attribute is the prefix of our rules; then what they say behind it of the packet is among its flags. */
static int parse_prefix(const struct np_nl_attribute *attribute, const char *prefix, struct np_nflog_packet *packet)
{
    const size_t size = strlen(prefix);
    struct np_nl_in rest = attribute->value;

    if (rest.left < size || memcmp(rest.data, prefix, size) != 0)
        return 0;
    rest.data += size;
    rest.left -= size;
    packet->flags = is_text(rest, "-cut") ? NP_NFLOG_ORIGINAL : is_text(rest, "-cut-reply") ? NP_NFLOG_REPLY : 0;
    return packet->flags || is_text(rest, "");
}

/* Reads the attributes of a logged packet. Returns 0 or -EBADMSG. */
static int parse_attributes(struct np_nl_in in, const char *prefix, struct np_nflog_packet *packet,
                            struct fields *fields)
{
    struct np_nl_attribute attribute;
    int result = 0, bad = 0;

    while (!bad && (result = np_nl_next_attribute(&in, &attribute)) > 0) {
        switch (attribute.type) {
        case NFULA_TIMESTAMP:
            bad = parse_time(&attribute, &packet->time);
            break;
        case NFULA_IFINDEX_INDEV:
            bad = np_nl_get_be32(&attribute, &packet->in_device);
            break;
        case NFULA_IFINDEX_OUTDEV:
            bad = np_nl_get_be32(&attribute, &packet->out_device);
            break;
        case NFULA_SEQ:
            bad = np_nl_get_be32(&attribute, &fields->number);
            fields->has_number = 1;
            break;
        case NFULA_PREFIX:
            fields->is_ours = parse_prefix(&attribute, prefix, packet);
            break;
        case NFULA_PAYLOAD:
            fields->payload = attribute.value;
            fields->has_payload = 1;
            break;
        default:
            break;
        }
    }
    return bad < 0 || result < 0 ? -EBADMSG : 0;
}

/* Counts what the kernel numbered and we never saw. A step back is a group that was taken anew. */
static void follow_number(struct np_nflog_batch *batch, uint32_t number)
{
    const uint32_t gap = number - batch->next;

    if (batch->numbered && gap < UINT32_MAX / 2)
        batch->lost += gap;
    batch->next = number + 1;
    batch->numbered = 1;
}

/* Reads one datagram into the batch, from its first packet on. Messages of other types, and of other versions of nfnetlink, are passed
 * over. Returns 0, -EBADMSG when a length cannot be, or -ENOSPC when there are more packets than room. */
int np_nflog_parse(const uint8_t *data, size_t size, struct np_nflog_batch *batch)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0;

    batch->count = 0;
    while ((result = np_nl_next_message(&in, &message)) > 0) {
        struct np_nflog_packet packet = {.family = 0};
        struct fields fields = {.is_ours = 0};

        if (message.type != (NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET))
            continue;
        if (message.body.left < sizeof(struct nfgenmsg))
            return -EBADMSG;
        message.body.data += sizeof(struct nfgenmsg);
        message.body.left -= sizeof(struct nfgenmsg);
        if (parse_attributes(message.body, batch->prefix, &packet, &fields) < 0)
            return -EBADMSG;
        if (fields.has_number)
            follow_number(batch, fields.number);
        if (!fields.is_ours) {
            batch->strangers++;
        } else if (!fields.has_payload || np_nflog_packet(fields.payload.data, fields.payload.left, &packet) < 0) {
            batch->unreadable++;
        } else if (batch->count == batch->room) {
            return -ENOSPC;
        } else {
            batch->packets[batch->count++] = packet;
        }
    }
    return result;
}
