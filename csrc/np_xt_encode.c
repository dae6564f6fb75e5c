#include "np_xt_encode.h"
#include "np_xt_match.h"
#include "np_xt_target.h"

#include <errno.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>

_Static_assert(IPT_INV_VIA_IN == IP6T_INV_VIA_IN && IPT_INV_VIA_OUT == IP6T_INV_VIA_OUT &&
                   IPT_INV_SRCIP == IP6T_INV_SRCIP && IPT_INV_DSTIP == IP6T_INV_DSTIP &&
                   IPT_INV_PROTO == IP6T_INV_PROTO,
               "inverse flags");

/* A match that was written: how it was packed, and where in the output its bytes are. Nothing when `size` is 0. */
struct np_xt_repeat {
    const uint8_t *packed;
    size_t size;
    size_t data;
    size_t data_size;
};

/* So many places of matches in a rule are remembered; those behind them share. */
enum { NP_PLACES = 4 };

/* What earlier rules had: a match in each place, and the last target, with what it was read as. */
struct np_xt_repeats {
    struct np_xt_repeat matches[NP_PLACES];
    struct np_xt_repeat target;
    struct np_xt_payload payload;
};

/* What of a rule stands in the entry itself, in the wider of the two families' forms. Addresses in network order. */
struct np_xt_head {
    uint8_t source[16], destination[16], source_mask[16], destination_mask[16];
    char in[IFNAMSIZ], out[IFNAMSIZ];
    uint8_t in_mask[IFNAMSIZ], out_mask[IFNAMSIZ];
    uint16_t protocol;
    uint8_t inverted;
    uint8_t fragment;
};

/* An address and its mask, `width` bytes each, from a map of the packed address and the length of its prefix. */
static void np_network(struct np_pack *pack, unsigned width, uint8_t *address, uint8_t *mask)
{
    for (uint32_t fields = np_pack_map(pack); fields-- && np_pack_key(pack);) {
        if (np_pack_is(pack, "address")) {
            struct np_pack_text text = np_pack_text(pack);

            if (text.size != width)
                np_pack_fail(pack, -ERANGE);
            else
                memcpy(address, text.at, width);
        } else if (np_pack_is(pack, "length")) {
            unsigned length = (unsigned)np_pack_int(pack, 0, (int64_t)width * 8);

            memset(mask, 0xff, length / 8);
            if (length % 8)
                mask[length / 8] = (uint8_t)(0xff00U >> length % 8);
        } else {
            np_pack_fail(pack, -EPROTO);
        }
    }
}

/* An interface: the mask covers its name and the end of it, or, where it ends in +, what stands before. */
static void np_interface(struct np_pack *pack, char name[IFNAMSIZ], uint8_t mask[IFNAMSIZ])
{
    size_t size;

    np_xt_copy_text(pack, name, IFNAMSIZ - 1);
    size = strlen(name);
    if (size)
        memset(mask, 0xff, name[size - 1] == '+' ? size - 1 : size + 1);
}

/* The flag of the field that was read last, when it is one of those that invert another; or 0. */
static uint8_t np_inverse(const struct np_pack *pack)
{
    if (np_pack_is(pack, "not_source"))
        return IPT_INV_SRCIP;
    if (np_pack_is(pack, "not_destination"))
        return IPT_INV_DSTIP;
    if (np_pack_is(pack, "not_protocol"))
        return IPT_INV_PROTO;
    if (np_pack_is(pack, "not_in_interface"))
        return IPT_INV_VIA_IN;
    if (np_pack_is(pack, "not_out_interface"))
        return IPT_INV_VIA_OUT;
    return np_pack_is(pack, "not_fragment") ? IPT_INV_FRAG : 0;
}

/* Fills in a field of the entry, the key of which was read. */
static void np_head_field(struct np_pack *pack, int family, struct np_xt_head *head)
{
    unsigned width = family == 4 ? 4 : 16;
    uint8_t inverse = np_inverse(pack);

    if (inverse)
        head->inverted |= np_pack_bool(pack) ? inverse : 0;
    else if (np_pack_is(pack, "source"))
        np_network(pack, width, head->source, head->source_mask);
    else if (np_pack_is(pack, "destination"))
        np_network(pack, width, head->destination, head->destination_mask);
    else if (np_pack_is(pack, "protocol"))
        head->protocol = (uint16_t)np_pack_int(pack, 0, UINT8_MAX);
    else if (np_pack_is(pack, "in_interface"))
        np_interface(pack, head->in, head->in_mask);
    else if (np_pack_is(pack, "out_interface"))
        np_interface(pack, head->out, head->out_mask);
    else if (np_pack_is(pack, "fragment"))
        head->fragment = (uint8_t)np_pack_bool(pack);
    else
        np_pack_fail(pack, -EPROTO);
    if (family == 6 && (head->fragment || head->inverted & IPT_INV_FRAG))
        np_pack_fail(pack, -ERANGE);
}

/* Writes the entry itself at `at`: its target stands `target` bytes behind it and the next entry `next`. */
static void np_put_entry(uint8_t *at, int family, const struct np_xt_head *head, uint16_t is_goto, uint16_t target,
                         uint16_t next)
{
    if (family == 4) {
        struct ipt_entry entry = {.target_offset = target, .next_offset = next};

        memcpy(&entry.ip.src, head->source, 4);
        memcpy(&entry.ip.dst, head->destination, 4);
        memcpy(&entry.ip.smsk, head->source_mask, 4);
        memcpy(&entry.ip.dmsk, head->destination_mask, 4);
        memcpy(entry.ip.iniface, head->in, IFNAMSIZ);
        memcpy(entry.ip.outiface, head->out, IFNAMSIZ);
        memcpy(entry.ip.iniface_mask, head->in_mask, IFNAMSIZ);
        memcpy(entry.ip.outiface_mask, head->out_mask, IFNAMSIZ);
        entry.ip.proto = head->protocol;
        entry.ip.flags = (uint8_t)((head->fragment ? IPT_F_FRAG : 0) | (is_goto ? IPT_F_GOTO : 0));
        entry.ip.invflags = head->inverted;
        memcpy(at, &entry, sizeof(entry));
    } else {
        struct ip6t_entry entry = {.target_offset = target, .next_offset = next};

        memcpy(&entry.ipv6.src, head->source, 16);
        memcpy(&entry.ipv6.dst, head->destination, 16);
        memcpy(&entry.ipv6.smsk, head->source_mask, 16);
        memcpy(&entry.ipv6.dmsk, head->destination_mask, 16);
        memcpy(entry.ipv6.iniface, head->in, IFNAMSIZ);
        memcpy(entry.ipv6.outiface, head->out, IFNAMSIZ);
        memcpy(entry.ipv6.iniface_mask, head->in_mask, IFNAMSIZ);
        memcpy(entry.ipv6.outiface_mask, head->out_mask, IFNAMSIZ);
        entry.ipv6.proto = head->protocol;
        entry.ipv6.flags = (uint8_t)((head->protocol ? IP6T_F_PROTO : 0) | (is_goto ? IP6T_F_GOTO : 0));
        entry.ipv6.invflags = head->inverted;
        memcpy(at, &entry, sizeof(entry));
    }
}

/* An entry that matches every packet, with this target. */
static void np_put_plain(struct np_pack *pack, struct np_xt_encoding *out, const char *target, const void *data,
                         size_t size)
{
    struct np_xt_sizes sizes;
    struct np_xt_head head = {.protocol = 0};
    uint8_t *at;

    np_xt_sizes(out->family, &sizes);
    at = np_xt_reserve(pack, out, sizes.entry);
    np_xt_put(pack, out, target, 0, data, size);
    if (at && !pack->error)
        np_put_entry(at, out->family, &head, 0, (uint16_t)sizes.entry,
                     (uint16_t)(sizes.entry + sizeof(struct xt_entry_target) + XT_ALIGN(size)));
}

/* Notes a verdict that is to be filled in, at `at` of the output, of the entry that begins at `entry`. */
static void np_note_open(struct np_pack *pack, struct np_xt_encoding *out, size_t entry, size_t at,
                         struct np_pack_text to)
{
    struct np_xt_jump jump = {.at = (uint32_t)at, .entry = (uint32_t)entry, .chain = -1};

    if (out->jump_count == out->jump_room) {
        np_pack_fail(pack, -ENOBUFS);
        return;
    }
    if (to.size) {
        jump.chain = (int32_t)out->target_count++;
        memcpy(out->targets + out->target_size, to.at, to.size);
        out->target_size += to.size;
        out->targets[out->target_size++] = 0;
    }
    out->jumps[out->jump_count++] = jump;
}

/* Whether the next value has the bytes of that one; they are consumed then. No value's bytes are the beginning of another's. */
static int np_is_repeated(struct np_pack *pack, const struct np_xt_repeat *last)
{
    if (!last->size || last->size > (size_t)(pack->end - pack->at) || memcmp(pack->at, last->packed, last->size) != 0)
        return 0;
    pack->at += last->size;
    return 1;
}

/* Reads the target of a rule, unless it is the last one once more. */
static const struct np_xt_payload *np_rule_target(struct np_pack *pack, int family, struct np_xt_repeats *repeats)
{
    const uint8_t *at = pack->at;

    if (!np_is_repeated(pack, &repeats->target)) {
        repeats->payload = (struct np_xt_payload){.is_open = 0};
        np_xt_read_target(pack, family, &repeats->payload);
        repeats->target = (struct np_xt_repeat){.packed = at, .size = pack->error ? 0 : (size_t)(pack->at - at)};
    }
    return &repeats->payload;
}

/* Reads the matches of a rule and writes them. Rules repeat each other's matches: one that is packed as the one in its place in an
 * earlier rule was has the same bytes, which are copied. */
static void np_put_matches(struct np_pack *pack, struct np_xt_encoding *out, struct np_xt_repeats *repeats)
{
    uint32_t count = np_pack_array(pack);

    for (uint32_t i = 0; i < count && !pack->error; i++) {
        struct np_xt_repeat *last = &repeats->matches[i % NP_PLACES];
        const uint8_t *at = pack->at;
        size_t start = out->data_size;

        if (np_is_repeated(pack, last)) {
            uint8_t *copy = np_xt_reserve(pack, out, last->data_size);

            if (copy)
                memcpy(copy, out->data + last->data, last->data_size);
        } else {
            np_xt_put_match(pack, out);
            *last = (struct np_xt_repeat){
                .packed = at, .size = (size_t)(pack->at - at), .data = start, .data_size = out->data_size - start};
        }
    }
}

/* Reads one rule and writes it. */
static void np_put_rule(struct np_pack *pack, struct np_xt_encoding *out, struct np_xt_repeats *repeats, uint32_t entry)
{
    const struct np_xt_payload *payload = NULL;
    struct np_xt_head head = {.protocol = 0};
    size_t start = out->data_size, target;

    np_xt_reserve(pack, out, entry);
    for (uint32_t fields = np_pack_map(pack); fields-- && np_pack_key(pack);)
        if (np_pack_is(pack, "target") && !payload)
            payload = np_rule_target(pack, out->family, repeats);
        else if (np_pack_is(pack, "matches"))
            np_put_matches(pack, out, repeats);
        else
            np_head_field(pack, out->family, &head);
    target = out->data_size;
    if (!payload || !payload->data.at)
        np_pack_fail(pack, -EPROTO);
    else
        np_xt_put(pack, out, payload->name, payload->revision, payload->data.at, payload->data.size);
    if (out->data_size - start > UINT16_MAX && !pack->error) {
        pack->key_size = 0;
        np_pack_fail(pack, -ERANGE);
    }
    if (pack->error || !payload)
        return;
    np_put_entry(out->data + start, out->family, &head, payload->is_goto, (uint16_t)(target - start),
                 (uint16_t)(out->data_size - start));
    if (payload->is_open)
        np_note_open(pack, out, start, target + sizeof(struct xt_entry_target), payload->to);
}

/* Reads one chain and writes it: its ERROR head, its rules, and the RETURN that every user chain ends with. */
static void np_put_chain(struct np_pack *pack, struct np_xt_encoding *out, struct np_xt_repeats *repeats)
{
    static const int32_t fall_off = XT_RETURN;
    size_t start = out->data_size;
    struct np_pack_text packed;
    struct np_xt_sizes sizes;
    struct np_xt_chain *chain;

    np_xt_sizes(out->family, &sizes);
    if (out->chain_count == out->chain_room) {
        np_pack_fail(pack, -ENOBUFS);
        return;
    }
    chain = &out->chains[out->chain_count];
    *chain = (struct np_xt_chain){.hook = -1, .offset = (uint32_t)start, .entries = 2};
    if (out->chain_count)
        chain->first = chain[-1].first + chain[-1].entries;
    out->rule = UINT32_MAX;
    if (np_pack_array(pack) != 2)
        np_pack_fail(pack, -EPROTO);
    np_xt_copy_text(pack, chain->name, NP_CHAIN_NAME);
    if (!chain->name[0])
        np_pack_fail(pack, -ERANGE);
    np_put_plain(pack, out, XT_ERROR_TARGET, chain->name, sizeof(chain->name));
    packed = np_pack_text(pack);
    if (!pack->error)
        pack->at = packed.at;
    for (uint32_t left = np_pack_array(pack); left && !pack->error; left--, chain->entries++) {
        out->rule = chain->entries - 2;
        np_put_rule(pack, out, repeats, sizes.entry);
    }
    np_put_plain(pack, out, "", &fall_off, sizeof(fall_off));
    if (!pack->error && pack->at != packed.at + packed.size)
        np_pack_fail(pack, -EPROTO);
    if (pack->error)
        return;
    chain->size = (uint32_t)(out->data_size - start);
    out->chain_count++;
}

/* Begins to read; the output is as the caller gave it, with nothing in it. */
static struct np_pack np_begin(const uint8_t *packed, size_t size, struct np_xt_encoding *out)
{
    struct np_pack pack = {.at = packed, .end = packed + size, .key = packed};

    out->data_size = 0;
    out->chain_count = out->jump_count = out->target_count = out->target_size = 0;
    out->rule = out->field = out->field_size = 0;
    if (size > INT32_MAX || out->data_room > INT32_MAX || (out->family != 4 && out->family != 6))
        np_pack_fail(&pack, -EINVAL);
    return pack;
}

/* Ends reading: 0, or the error, and where it is. */
static int np_end(struct np_pack *pack, const uint8_t *packed, struct np_xt_encoding *out)
{
    if (pack->at != pack->end)
        np_pack_fail(pack, -EPROTO);
    out->field = (uint32_t)(pack->key - packed);
    out->field_size = pack->key_size;
    return pack->error;
}

/* How many rules an array of chains has, by what it says of itself. Returns that, or -EPROTO. */
int np_xt_count(const uint8_t *packed, size_t size)
{
    struct np_pack pack = {.at = packed, .end = packed + size, .key = packed};
    uint64_t count = 0;

    for (uint32_t left = np_pack_array(&pack); left && !pack.error; left--) {
        struct np_pack_text rules;

        if (np_pack_array(&pack) != 2)
            np_pack_fail(&pack, -EPROTO);
        np_pack_text(&pack);
        rules = np_pack_text(&pack);
        if (!pack.error) {
            struct np_pack inside = {.at = rules.at, .end = rules.at + rules.size, .key = rules.at};

            count += np_pack_array(&inside);
            if (inside.error || count > size)
                np_pack_fail(&pack, -EPROTO);
        }
    }
    return pack.error ? pack.error : (int)count;
}

/* Encodes an array of chains. The caller gives the family, the sets and the room of each part of *out. Returns 0; -ENOBUFS: not enough
 * room; -ENOENT: no set of that name; -ERANGE: a value that the kernel's form cannot hold; -EPROTO: what came has another form than our
 * values. An error tells the chain (chain_count), the rule and the field. */
int np_xt_encode(const uint8_t *packed, size_t size, struct np_xt_encoding *out)
{
    struct np_pack pack = np_begin(packed, size, out);
    struct np_xt_repeats repeats = {.target.size = 0};

    for (uint32_t left = np_pack_array(&pack); left && !pack.error; left--)
        np_put_chain(&pack, out, &repeats);
    return np_end(&pack, packed, out);
}

/* Encodes one match into out->data, with its header. Returns as np_xt_encode does. */
int np_xt_encode_match(const uint8_t *packed, size_t size, struct np_xt_encoding *out)
{
    struct np_pack pack = np_begin(packed, size, out);

    np_xt_put_match(&pack, out);
    return np_end(&pack, packed, out);
}

/* Encodes one target into out->data, with its header; a jump with a verdict of 0. Returns as np_xt_encode does. */
int np_xt_encode_target(const uint8_t *packed, size_t size, struct np_xt_encoding *out)
{
    struct np_pack pack = np_begin(packed, size, out);
    struct np_xt_payload payload = {.is_open = 0};

    np_xt_read_target(&pack, out->family, &payload);
    if (!pack.error && payload.data.at)
        np_xt_put(&pack, out, payload.name, payload.revision, payload.data.at, payload.data.size);
    return np_end(&pack, packed, out);
}
