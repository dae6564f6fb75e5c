#include "np_judge.h"

#include <errno.h>
#include <string.h>

enum { NP_TCP = 6, NP_UDP = 17, NP_ICMPV6 = 58, NP_SCTP = 132, NP_EXPECTED = 1, NP_EPHEMERAL = 32768, NP_RECORD = 21 };

_Static_assert(sizeof(struct np_judge_rule) == 40 && sizeof(struct np_judge_class) == 8, "as the caller packs them");
_Static_assert(sizeof(struct np_judge_end) == 32 && sizeof(struct np_judge_range) == 19, "as the caller packs them");

/* A first packet, as FORWARD saw it. */
struct packet {
    const uint8_t *ends[2]; /* source, destination */
    uint16_t service;
    uint8_t family;
    uint8_t protocol;
};

/* Of a few words of eight bytes; the last one is filled up with zeros. */
static uint32_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = 0;

    for (size_t at = 0; at < size; at += sizeof(hash)) {
        uint64_t word = 0;

        memcpy(&word, bytes + at, size - at < sizeof(word) ? size - at : sizeof(word));
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

/* Whether the first `length` bits of two addresses are the same. */
static int within(const uint8_t *address, const uint8_t *net, unsigned length)
{
    const unsigned whole = length / 8, rest = length % 8;

    if (memcmp(address, net, whole) != 0)
        return 0;
    return rest == 0 || ((address[whole] ^ net[whole]) & (0xff00u >> rest & 0xffu)) == 0;
}

/* Where the nomatch flag stands in a member, which is no part of its key; behind the end where there is none. */
static size_t flag_of(const struct np_judge_set *set)
{
    return set->is_net ? (size_t)set->width + 1 : set->record;
}

static int same_key(const struct np_judge_set *set, const uint8_t *one, const uint8_t *other)
{
    const size_t flag = flag_of(set);

    return memcmp(one, other, flag) == 0 &&
           (flag >= set->record || memcmp(one + flag + 1, other + flag + 1, set->record - flag - 1) == 0);
}

/* The member with this key (its flag is 0), or NULL. */
static const uint8_t *find(const struct np_judge_set *set, const uint8_t *key)
{
    uint32_t at = hash_of(key, set->record) & (set->slot_count - 1);

    for (; set->slots[at]; at = (at + 1) & (set->slot_count - 1)) {
        const uint8_t *member = set->members + (size_t)(set->slots[at] - 1) * set->record;

        if (same_key(set, member, key))
            return member;
    }
    return NULL;
}

/* Fills the slots of a set and the lengths of its networks, the longest first. The number of slots is a power of two, more than
 * there are members, and they are zero. Returns 0, or -EINVAL for what cannot be. */
int np_judge_index_set(struct np_judge_set *set)
{
    uint8_t seen[129] = {0};

    if (set->slot_count <= set->count || (set->slot_count & (set->slot_count - 1)) != 0 || set->record > NP_RECORD ||
        (set->width != 4 && set->width != 16) ||
        set->record != set->width + (set->is_net ? 2 : 0) + (set->has_port ? 3 : 0))
        return -EINVAL;
    for (size_t i = 0; i < set->count; i++) {
        uint8_t key[NP_RECORD];
        uint32_t at;

        memcpy(key, set->members + i * set->record, set->record);
        if (set->is_net) {
            if (key[set->width] > set->width * 8)
                return -EINVAL;
            seen[key[set->width]] = 1;
            key[set->width + 1] = 0;
        }
        at = hash_of(key, set->record) & (set->slot_count - 1);
        while (set->slots[at])
            at = (at + 1) & (set->slot_count - 1);
        set->slots[at] = (uint32_t)i + 1;
    }
    set->length_count = 0;
    for (int length = 128; length >= 0; length--) {
        if (seen[length])
            set->lengths[set->length_count++] = (uint8_t)length;
    }
    return 0;
}

/* Writes the network of this length around an address. */
static void mask(uint8_t *net, const uint8_t *address, unsigned width, unsigned length)
{
    const unsigned whole = length / 8;

    memset(net, 0, width);
    memcpy(net, address, whole);
    if (length % 8)
        net[whole] = (uint8_t)(address[whole] & (0xff00u >> length % 8));
}

/* Whether a set answers yes: networks by the longest one that the address lies in. */
static int in_set(const struct np_judge_set *set, const uint8_t *address, const struct packet *packet)
{
    uint8_t key[NP_RECORD];
    uint8_t *port = key + set->width + (set->is_net ? 2 : 0);

    if (set->width != (packet->family == 4 ? 4 : 16))
        return 0;
    if (set->has_port) {
        if (packet->protocol != NP_TCP && packet->protocol != NP_UDP && packet->protocol != NP_SCTP)
            return 0;
        port[0] = packet->protocol;
        port[1] = (uint8_t)(packet->service >> 8);
        port[2] = (uint8_t)packet->service;
    }
    if (!set->is_net) {
        memcpy(key, address, set->width);
        return find(set, key) != NULL;
    }
    key[set->width + 1] = 0;
    for (unsigned i = 0; i < set->length_count; i++) {
        const uint8_t *member;

        mask(key, address, set->width, set->lengths[i]);
        key[set->width] = set->lengths[i];
        member = find(set, key);
        if (member)
            return !member[set->width + 1];
    }
    return 0;
}

static int applies(const struct np_judge *judge, const struct np_judge_rule *rule, const struct packet *packet)
{
    if (rule->protocol && rule->protocol != packet->protocol)
        return 0;
    if (rule->port_count) {
        const uint16_t *ports = judge->ports + rule->first_port;
        uint32_t i = 0;

        while (i < rule->port_count && (packet->service < ports[i] || packet->service > ports[i + 1]))
            i += 2;
        if (i >= rule->port_count)
            return 0;
    }
    if (rule->net_side && !within(packet->ends[rule->net_side - 1], rule->net, rule->net_length))
        return 0;
    for (unsigned i = 0; i < rule->set_count; i++) {
        if (!in_set(judge->sets + rule->sets[i], packet->ends[!rule->of_source[i]], packet))
            return 0;
    }
    return 1;
}

/* What a class says of a packet: one of its rules lets it through, or none does. */
static int by_class(const struct np_judge *judge, uint32_t class, const struct packet *packet)
{
    const struct np_judge_class *rules;

    if (class < NP_JUDGE_RULES)
        return (int)class;
    rules = judge->classes + (class - NP_JUDGE_RULES);
    for (uint32_t i = 0; i < rules->rule_count; i++) {
        if (applies(judge, judge->rules + rules->first_rule + i, packet))
            return NP_JUDGE_PASS;
    }
    return NP_JUDGE_DENY;
}

static const struct np_judge_end *find_end(const struct np_judge *judge, const uint8_t *address, uint8_t family)
{
    uint32_t at = hash_of(address, 16) & (judge->slot_count - 1);

    for (; judge->slots[at]; at = (at + 1) & (judge->slot_count - 1)) {
        const struct np_judge_end *end = judge->ends + (judge->slots[at] - 1);

        if (end->family == family && memcmp(end->address, address, 16) == 0)
            return end;
    }
    return NULL;
}

/* Whether the indices of a judge point into its arrays; and fills the slots of its ends, which are zero, a power of two, and more than
 * there are ends. Returns 0 or -EINVAL. */
int np_judge_index(const struct np_judge *judge)
{
    if (judge->slot_count <= judge->end_count || (judge->slot_count & (judge->slot_count - 1)) != 0)
        return -EINVAL;
    for (uint32_t i = 0; i < judge->rule_count; i++) {
        const struct np_judge_rule *rule = judge->rules + i;

        if (rule->port_count % 2 || rule->port_count > judge->port_count ||
            rule->first_port > judge->port_count - rule->port_count || rule->set_count > NP_JUDGE_MATCHES ||
            rule->net_side > 2 || rule->net_length > 128)
            return -EINVAL;
        for (unsigned j = 0; j < rule->set_count; j++) {
            if (rule->sets[j] >= judge->set_count)
                return -EINVAL;
        }
    }
    for (uint32_t i = 0; i < judge->range_count; i++) {
        if (judge->ranges[i].length > 128)
            return -EINVAL;
    }
    for (uint32_t i = 0; i < judge->class_count; i++) {
        const struct np_judge_class *class = judge->classes + i;

        if (class->rule_count > judge->rule_count || class->first_rule > judge->rule_count - class->rule_count)
            return -EINVAL;
    }
    for (uint32_t i = 0; i < judge->end_count; i++) {
        const struct np_judge_end *end = judge->ends + i;
        uint32_t at = hash_of(end->address, 16) & (judge->slot_count - 1);

        if (end->classes[0] >= judge->class_count + NP_JUDGE_RULES ||
            end->classes[1] >= judge->class_count + NP_JUDGE_RULES)
            return -EINVAL;
        while (judge->slots[at])
            at = (at + 1) & (judge->slot_count - 1);
        judge->slots[at] = i + 1;
    }
    return 0;
}

/* What one side's rules say; egress is side 0 and looks for the source. A pod always reaches itself. */
static int by_side(const struct np_judge *judge, const struct np_judge_end *end, unsigned side,
                   const struct packet *packet)
{
    if (end)
        return by_class(judge, end->classes[side], packet);
    for (uint32_t i = 0; i < judge->range_count; i++) {
        const struct np_judge_range *range = judge->ranges + i;

        if (range->family == packet->family && range->ingress == side &&
            within(packet->ends[side], range->net, range->length))
            return NP_JUDGE_DENY;
    }
    return NP_JUDGE_PASS;
}

static int by_packet(const struct np_judge *judge, const struct packet *packet)
{
    const struct np_judge_end *source = find_end(judge, packet->ends[0], packet->family);
    const struct np_judge_end *destination = find_end(judge, packet->ends[1], packet->family);
    const uint32_t either = (source ? source->flags : 0) | (destination ? destination->flags : 0);
    int egress, ingress;

    if (packet->family != 4 && packet->family != 6)
        return NP_JUDGE_ASK;
    if (!(judge->families & 1u << packet->family) || either & NP_JUDGE_LOCAL)
        return NP_JUDGE_PASS;
    /* Link-local addresses, a pod's as well as anybody's, and what IPv6 cannot do without: rules of their own. */
    if (packet->family == 6 && (packet->ends[0][0] == 0xfe || packet->ends[1][0] == 0xfe))
        return NP_JUDGE_ASK;
    if (!(either & NP_JUDGE_POD))
        return NP_JUDGE_PASS;
    if (packet->family == 6 && packet->protocol == NP_ICMPV6)
        return NP_JUDGE_ASK;
    if (memcmp(packet->ends[0], packet->ends[1], 16) == 0)
        return NP_JUDGE_ASK;
    egress = by_side(judge, source, 0, packet);
    ingress = by_side(judge, destination, 1, packet);
    if (egress == NP_JUDGE_DENY || ingress == NP_JUDGE_DENY)
        return NP_JUDGE_DENY;
    return egress == NP_JUDGE_ASK || ingress == NP_JUDGE_ASK ? NP_JUDGE_ASK : NP_JUDGE_PASS;
}

/* Whether a flow would be let through today: NP_JUDGE_PASS, _DENY or _ASK. One that conntrack met in its middle is read the way its
 * ports say, or else denied only if it is both ways. */
int np_judge_flow(const struct np_judge *judge, const struct np_ct_flow *flow)
{
    const struct packet forward = {
        {flow->first.source, flow->first.destination}, flow->first.service, flow->first.family, flow->first.protocol};
    const struct packet backward = {{flow->first.destination, flow->first.source},
                                    flow->original.source_port,
                                    flow->first.family,
                                    flow->first.protocol};
    const int client = flow->original.source_port >= NP_EPHEMERAL, server = flow->reply.source_port >= NP_EPHEMERAL;
    int one, other;

    if (flow->status & NP_EXPECTED)
        return NP_JUDGE_PASS;
    if (!(flow->flags & NP_CT_PICKED_UP) || (client && !server))
        return by_packet(judge, &forward);
    if (server && !client)
        return by_packet(judge, &backward);
    one = by_packet(judge, &forward);
    if (one != NP_JUDGE_DENY)
        return one;
    other = by_packet(judge, &backward);
    return other;
}

/* Keeps, in place and in order, the flows whose mark is not as it should be and those that have to be asked about, each with its verdict;
 * returns how many these are. */
size_t np_judge_sort(const struct np_judge *judge, struct np_ct_flow *flows, size_t count, uint32_t bit,
                     uint8_t *verdicts)
{
    size_t kept = 0;

    for (size_t i = 0; i < count; i++) {
        const int verdict = np_judge_flow(judge, flows + i), marked = (flows[i].mark & bit) != 0;

        if (verdict == NP_JUDGE_ASK || (verdict == NP_JUDGE_DENY) != marked) {
            if (kept != i)
                flows[kept] = flows[i];
            verdicts[kept++] = (uint8_t)verdict;
        }
    }
    return kept;
}
