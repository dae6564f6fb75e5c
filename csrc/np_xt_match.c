#include "np_xt_match.h"

#include <errno.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter/xt_addrtype.h>
#include <linux/netfilter/xt_connmark.h>
#include <linux/netfilter/xt_conntrack.h>
#include <linux/netfilter/xt_hashlimit.h>
#include <linux/netfilter/xt_multiport.h>
#include <linux/netfilter/xt_sctp.h>
#include <linux/netfilter/xt_set.h>
#include <linux/netfilter/xt_tcpudp.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>

_Static_assert(sizeof(struct xt_conntrack_mtinfo3) == 164, "struct xt_conntrack_mtinfo3");
_Static_assert(sizeof(struct xt_connmark_mtinfo1) == 12, "struct xt_connmark_mtinfo1");
_Static_assert(sizeof(struct xt_tcp) == 12, "struct xt_tcp");
_Static_assert(sizeof(struct xt_udp) == 10, "struct xt_udp");
_Static_assert(sizeof(struct xt_sctp_info) == 292, "struct xt_sctp_info");
_Static_assert(sizeof(struct xt_multiport_v1) == 48, "struct xt_multiport_v1");
_Static_assert(sizeof(struct xt_set_info_match_v4) == 48, "struct xt_set_info_match_v4");
_Static_assert(sizeof(struct xt_addrtype_info_v1) == 8, "struct xt_addrtype_info_v1");
_Static_assert(sizeof(struct xt_hashlimit_mtinfo3) == 312, "struct xt_hashlimit_mtinfo3");
_Static_assert(sizeof(struct ipt_icmp) == 4 && sizeof(struct ip6t_icmp) == 4, "struct ipt_icmp");
_Static_assert(XT_MULTI_PORTS == 15 && XT_CONNTRACK_STATE_UNTRACKED == 256 && XT_CONNTRACK_DIRECTION == 4096,
               "multiport, conntrack");

/* The place of a text among `count` words; -EPROTO when it is none of them. */
static unsigned np_word(struct np_pack *pack, const char *const *words, unsigned count)
{
    struct np_pack_text text = np_pack_text(pack);

    for (unsigned i = 0; i < count; i++)
        if (np_pack_same(text, words[i]))
            return i;
    np_pack_fail(pack, -ERANGE);
    return 0;
}

/* The words of an array as the sum of their bits. */
static unsigned np_words(struct np_pack *pack, const char *const *words, const unsigned *bits, unsigned count)
{
    unsigned sum = 0;

    for (uint32_t left = np_pack_array(pack); left && !pack->error; left--)
        sum |= bits[np_word(pack, words, count)];
    return sum;
}

/* A pair of ports, or of other numbers up to `most`. */
static void np_range(struct np_pack *pack, int64_t most, uint16_t range[2])
{
    if (np_pack_array(pack) != 2)
        np_pack_fail(pack, -EPROTO);
    range[0] = (uint16_t)np_pack_int(pack, 0, most);
    range[1] = (uint16_t)np_pack_int(pack, 0, most);
}

/* `bit` when a boolean is set. */
static unsigned np_flag(struct np_pack *pack, unsigned bit)
{
    return np_pack_bool(pack) ? bit : 0;
}

static void np_conntrack(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    static const char *const states[] = {"INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"};
    static const unsigned bits[] = {XT_CONNTRACK_STATE_INVALID,
                                    XT_CONNTRACK_STATE_BIT(IP_CT_NEW),
                                    XT_CONNTRACK_STATE_BIT(IP_CT_RELATED),
                                    XT_CONNTRACK_STATE_BIT(IP_CT_ESTABLISHED),
                                    XT_CONNTRACK_STATE_UNTRACKED,
                                    XT_CONNTRACK_STATE_SNAT,
                                    XT_CONNTRACK_STATE_DNAT};
    static const char *const directions[] = {"ORIGINAL", "REPLY"};
    static const unsigned inverted[] = {0, XT_CONNTRACK_DIRECTION};
    struct xt_conntrack_mtinfo3 info = {.match_flags = XT_CONNTRACK_STATE};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "states"))
            info.state_mask = (uint16_t)np_words(pack, states, bits, 7);
        else if (np_pack_is(pack, "invert"))
            info.invert_flags |= (uint16_t)np_flag(pack, XT_CONNTRACK_STATE);
        else if (np_pack_is(pack, "direction")) {
            info.match_flags |= XT_CONNTRACK_DIRECTION;
            info.invert_flags |= (uint16_t)inverted[np_word(pack, directions, 2)];
        } else
            np_pack_fail(pack, -EPROTO);
    np_xt_put(pack, out, "conntrack", 3, &info, sizeof(info));
}

static void np_connmark(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct xt_connmark_mtinfo1 info = {.mask = UINT32_MAX};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "mark"))
            info.mark = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "mask"))
            info.mask = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "invert"))
            info.invert = (uint8_t)np_flag(pack, 1);
        else
            np_pack_fail(pack, -EPROTO);
    np_xt_put(pack, out, "connmark", 1, &info, sizeof(info));
}

static void np_tcp(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct xt_tcp info = {.spts = {0, UINT16_MAX}, .dpts = {0, UINT16_MAX}};
    unsigned inverted = 0;

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "source"))
            np_range(pack, UINT16_MAX, info.spts);
        else if (np_pack_is(pack, "destination"))
            np_range(pack, UINT16_MAX, info.dpts);
        else if (np_pack_is(pack, "not_source"))
            inverted |= np_flag(pack, XT_TCP_INV_SRCPT);
        else if (np_pack_is(pack, "not_destination"))
            inverted |= np_flag(pack, XT_TCP_INV_DSTPT);
        else if (np_pack_is(pack, "flags_mask"))
            info.flg_mask = (uint8_t)np_pack_int(pack, 0, UINT8_MAX);
        else if (np_pack_is(pack, "flags_set"))
            info.flg_cmp = (uint8_t)np_pack_int(pack, 0, UINT8_MAX);
        else if (np_pack_is(pack, "not_flags"))
            inverted |= np_flag(pack, XT_TCP_INV_FLAGS);
        else if (np_pack_is(pack, "option"))
            info.option = (uint8_t)np_pack_int(pack, 0, UINT8_MAX);
        else if (np_pack_is(pack, "not_option"))
            inverted |= np_flag(pack, XT_TCP_INV_OPTION);
        else
            np_pack_fail(pack, -EPROTO);
    info.invflags = (uint8_t)inverted;
    np_xt_put(pack, out, "tcp", 0, &info, sizeof(info));
}

static void np_udp(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct xt_udp info = {.spts = {0, UINT16_MAX}, .dpts = {0, UINT16_MAX}};
    unsigned inverted = 0;

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "source"))
            np_range(pack, UINT16_MAX, info.spts);
        else if (np_pack_is(pack, "destination"))
            np_range(pack, UINT16_MAX, info.dpts);
        else if (np_pack_is(pack, "not_source"))
            inverted |= np_flag(pack, XT_UDP_INV_SRCPT);
        else if (np_pack_is(pack, "not_destination"))
            inverted |= np_flag(pack, XT_UDP_INV_DSTPT);
        else
            np_pack_fail(pack, -EPROTO);
    info.invflags = (uint8_t)inverted;
    np_xt_put(pack, out, "udp", 0, &info, sizeof(info));
}

/* Ports that nobody asked about stay 0, without their flag. The chunks are as iptables leaves them. */
static void np_sctp(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct xt_sctp_info info = {0};

    for (unsigned i = 0; i < XT_NUM_SCTP_FLAGS; i++)
        info.flag_info[i].chunktype = UINT8_MAX;
    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "source")) {
            info.flags |= XT_SCTP_SRC_PORTS;
            np_range(pack, UINT16_MAX, info.spts);
        } else if (np_pack_is(pack, "destination")) {
            info.flags |= XT_SCTP_DEST_PORTS;
            np_range(pack, UINT16_MAX, info.dpts);
        } else if (np_pack_is(pack, "not_source")) {
            info.invflags |= np_flag(pack, XT_SCTP_SRC_PORTS);
        } else if (np_pack_is(pack, "not_destination")) {
            info.invflags |= np_flag(pack, XT_SCTP_DEST_PORTS);
        } else {
            np_pack_fail(pack, -EPROTO);
        }
    np_xt_put(pack, out, "sctp", 0, &info, sizeof(info));
}

/* The ports of a multiport match: a range takes two of its 15 places. */
static void np_ports(struct np_pack *pack, struct xt_multiport_v1 *info)
{
    uint16_t range[2] = {0, 0};

    for (uint32_t left = np_pack_array(pack); left && !pack->error; left--) {
        np_range(pack, UINT16_MAX, range);
        if (info->count + (range[0] != range[1]) >= XT_MULTI_PORTS) {
            np_pack_fail(pack, -ERANGE);
            return;
        }
        info->pflags[info->count] = range[0] != range[1];
        info->ports[info->count++] = range[0];
        if (range[0] != range[1])
            info->ports[info->count++] = range[1];
    }
    if (!info->count)
        np_pack_fail(pack, -ERANGE);
}

static void np_multiport(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    static const char *const which[] = {"sports", "dports", "ports"};
    struct xt_multiport_v1 info = {.flags = XT_MULTIPORT_DESTINATION};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "ports"))
            np_ports(pack, &info);
        else if (np_pack_is(pack, "which"))
            info.flags = (uint8_t)np_word(pack, which, 3);
        else if (np_pack_is(pack, "invert"))
            info.invert = (uint8_t)np_flag(pack, 1);
        else
            np_pack_fail(pack, -EPROTO);
    np_xt_put(pack, out, "multiport", 1, &info, sizeof(info));
}

/* The kernel's number of a set; -ENOENT when there is none of that name. */
static uint16_t np_set_index(struct np_pack *pack, const struct np_xt_encoding *out)
{
    const struct np_pack_text name = np_pack_text(pack);
    uint32_t low = 0, high = out->set_count;

    if (name.size >= sizeof(out->sets->name) || memchr(name.at, 0, name.size)) {
        np_pack_fail(pack, -ERANGE);
        return 0;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = memcmp(out->sets[middle].name, name.at, name.size);

        if (!order && !out->sets[middle].name[name.size])
            return out->sets[middle].index;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    np_pack_fail(pack, -ENOENT);
    return 0;
}

static void np_set(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    static const char *const directions[] = {"dst", "src"};
    struct xt_set_info_match_v4 info = {.match_set.index = 0};
    unsigned flags = 0;

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "name")) {
            info.match_set.index = np_set_index(pack, out);
        } else if (np_pack_is(pack, "directions")) {
            uint32_t count = np_pack_array(pack);

            if (count < 1 || count > IPSET_DIM_MAX)
                np_pack_fail(pack, -ERANGE);
            for (info.match_set.dim = 0; info.match_set.dim < count && !pack->error;)
                flags |= np_word(pack, directions, 2) << ++info.match_set.dim;
        } else if (np_pack_is(pack, "invert")) {
            flags |= np_flag(pack, IPSET_INV_MATCH);
        } else {
            np_pack_fail(pack, -EPROTO);
        }
    info.match_set.flags = (uint8_t)flags;
    np_xt_put(pack, out, "set", 4, &info, sizeof(info));
}

static void np_addrtype(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct xt_addrtype_info_v1 info = {0};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "source"))
            info.source = (uint16_t)np_pack_int(pack, 0, UINT16_MAX);
        else if (np_pack_is(pack, "destination"))
            info.dest = (uint16_t)np_pack_int(pack, 0, UINT16_MAX);
        else if (np_pack_is(pack, "not_source"))
            info.flags |= np_flag(pack, XT_ADDRTYPE_INVERT_SOURCE);
        else if (np_pack_is(pack, "not_destination"))
            info.flags |= np_flag(pack, XT_ADDRTYPE_INVERT_DEST);
        else if (np_pack_is(pack, "limit_in"))
            info.flags |= np_flag(pack, XT_ADDRTYPE_LIMIT_IFACE_IN);
        else if (np_pack_is(pack, "limit_out"))
            info.flags |= np_flag(pack, XT_ADDRTYPE_LIMIT_IFACE_OUT);
        else
            np_pack_fail(pack, -EPROTO);
    np_xt_put(pack, out, "addrtype", 1, &info, sizeof(info));
}

static void np_hashlimit(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    static const char *const modes[] = {"srcip", "srcport", "dstip", "dstport"};
    static const unsigned bits[] = {XT_HASHLIMIT_HASH_SIP, XT_HASHLIMIT_HASH_SPT, XT_HASHLIMIT_HASH_DIP,
                                    XT_HASHLIMIT_HASH_DPT};
    struct xt_hashlimit_mtinfo3 info = {.cfg = {.gc_interval = 1000, .expire = 1000, .srcmask = 32, .dstmask = 32}};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "name"))
            np_xt_copy_text(pack, info.name, sizeof(info.name) - 1);
        else if (np_pack_is(pack, "average"))
            info.cfg.avg = (uint64_t)np_pack_int(pack, 0, INT64_MAX);
        else if (np_pack_is(pack, "burst"))
            info.cfg.burst = (uint64_t)np_pack_int(pack, 0, INT64_MAX);
        else if (np_pack_is(pack, "mode"))
            info.cfg.mode |= np_words(pack, modes, bits, 4);
        else if (np_pack_is(pack, "above"))
            info.cfg.mode |= np_flag(pack, XT_HASHLIMIT_INVERT);
        else if (np_pack_is(pack, "size"))
            info.cfg.size = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "maximum"))
            info.cfg.max = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "gc_interval"))
            info.cfg.gc_interval = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "expire"))
            info.cfg.expire = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "source_length"))
            info.cfg.srcmask = (uint8_t)np_pack_int(pack, 0, out->family == 4 ? 32 : 128);
        else if (np_pack_is(pack, "destination_length"))
            info.cfg.dstmask = (uint8_t)np_pack_int(pack, 0, out->family == 4 ? 32 : 128);
        else
            np_pack_fail(pack, -EPROTO);
    np_xt_put(pack, out, "hashlimit", 3, &info, sizeof(info));
}

static void np_icmp(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct ipt_icmp info = {.code = {0, UINT8_MAX}};
    uint16_t codes[2] = {0, UINT8_MAX};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "type"))
            info.type = (uint8_t)np_pack_int(pack, 0, UINT8_MAX);
        else if (np_pack_is(pack, "codes"))
            np_range(pack, UINT8_MAX, codes);
        else if (np_pack_is(pack, "invert"))
            info.invflags = (uint8_t)np_flag(pack, IPT_ICMP_INV);
        else
            np_pack_fail(pack, -EPROTO);
    info.code[0] = (uint8_t)codes[0];
    info.code[1] = (uint8_t)codes[1];
    np_xt_put(pack, out, out->family == 6 ? "icmp6" : "icmp", 0, &info, sizeof(info));
}

static void np_opaque(struct np_pack *pack, uint32_t fields, struct np_xt_encoding *out)
{
    struct np_xt_payload opaque = {.data.at = pack->end};

    np_xt_read_opaque(pack, fields, &opaque);
    np_xt_put(pack, out, opaque.name, opaque.revision, opaque.data.at, opaque.data.size);
}

/* Reads one match and writes it: header and data, filled up to the kernel's alignment. */
void np_xt_put_match(struct np_pack *pack, struct np_xt_encoding *out)
{
    /* Kinds that are often met come first; a kind and its length. */
#define NP_KIND(name, put) {sizeof(name) - 1, name, put}
    static const struct {
        size_t size;
        char kind[16];
        void (*put)(struct np_pack *, uint32_t, struct np_xt_encoding *);
    } kinds[] = {
        NP_KIND("Tcp", np_tcp),
        NP_KIND("Udp", np_udp),
        NP_KIND("SetMatch", np_set),
        NP_KIND("Multiport", np_multiport),
        NP_KIND("Conntrack", np_conntrack),
        NP_KIND("Connmark", np_connmark),
        NP_KIND("Sctp", np_sctp),
        NP_KIND("Icmp", np_icmp),
        NP_KIND("Addrtype", np_addrtype),
        NP_KIND("Hashlimit", np_hashlimit),
        NP_KIND("Opaque", np_opaque),
    };
#undef NP_KIND
    uint32_t fields;
    struct np_pack_text kind = np_xt_kind(pack, &fields);

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (kind.size == kinds[i].size && memcmp(kind.at, kinds[i].kind, kind.size) == 0) {
            kinds[i].put(pack, fields, out);
            return;
        }
    np_pack_fail(pack, -EPROTO);
}
