#include "np_xt.h"

#include <errno.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <string.h>

_Static_assert(sizeof(struct ipt_entry) == 112, "struct ipt_entry");
_Static_assert(sizeof(struct ip6t_entry) == 168, "struct ip6t_entry");
_Static_assert(sizeof(struct xt_entry_match) == 32, "struct xt_entry_match");
_Static_assert(sizeof(struct xt_entry_target) == 32, "struct xt_entry_target");
_Static_assert(sizeof(struct xt_standard_target) == 40, "struct xt_standard_target");
_Static_assert(XT_ALIGN(sizeof(struct xt_error_target)) == 64, "struct xt_error_target");
_Static_assert(sizeof(struct xt_counters) == 16, "struct xt_counters");
_Static_assert(sizeof(struct np_xt_chain) == 52 && sizeof(struct np_xt_jump) == 12, "as the caller packs them");
_Static_assert(NP_XT_HOOKS == NF_INET_NUMHOOKS, "hooks");
_Static_assert(XT_FUNCTION_MAXNAMELEN <= sizeof(((struct np_xt_chain *)0)->name), "chain names");
_Static_assert(offsetof(struct ipt_entry, next_offset) == offsetof(struct ipt_entry, target_offset) + 2, "offsets");
_Static_assert(offsetof(struct ip6t_entry, next_offset) == offsetof(struct ip6t_entry, target_offset) + 2, "offsets");

_Static_assert(sizeof(struct np_xt_info) == sizeof(struct ipt_getinfo) &&
                   sizeof(struct np_xt_info) == sizeof(struct ip6t_getinfo),
               "info");
_Static_assert(offsetof(struct np_xt_info, num_entries) == offsetof(struct ipt_getinfo, num_entries), "info");
_Static_assert(sizeof(struct np_xt_replace) == sizeof(struct ipt_replace) &&
                   sizeof(struct np_xt_replace) == sizeof(struct ip6t_replace),
               "replace");
_Static_assert(offsetof(struct np_xt_replace, counters) == offsetof(struct ipt_replace, counters), "replace");
_Static_assert(offsetof(struct np_xt_replace, underflow) == offsetof(struct ipt_replace, underflow), "replace");
_Static_assert(sizeof(struct np_xt_revision) == sizeof(struct xt_get_revision), "revision");
_Static_assert(sizeof(struct ipt_get_entries) == 40 && sizeof(struct xt_counters_info) == 40, "headers");

enum {
    NP_ALIGN = XT_ALIGN(1),
    NP_TARGET = sizeof(struct xt_entry_target),
    NP_ERROR = XT_ALIGN(sizeof(struct xt_error_target))
};

/* What there is to know of one entry. All offsets are within the blob. */
struct np_xt_entry {
    uint32_t offset;
    uint32_t target;
    uint32_t end;
    int is_error;
    int is_standard;
};

/* The sizes and field offsets of a family's entries. Returns 0, or -EINVAL for a family that is none. */
int np_xt_sizes(int family, struct np_xt_sizes *sizes)
{
    if (family == 4)
        *sizes = (struct np_xt_sizes){.entry = sizeof(struct ipt_entry),
                                      .counters_at = offsetof(struct ipt_entry, counters),
                                      .comefrom_at = offsetof(struct ipt_entry, comefrom),
                                      .target_offset_at = offsetof(struct ipt_entry, target_offset)};
    else if (family == 6)
        *sizes = (struct np_xt_sizes){.entry = sizeof(struct ip6t_entry),
                                      .counters_at = offsetof(struct ip6t_entry, counters),
                                      .comefrom_at = offsetof(struct ip6t_entry, comefrom),
                                      .target_offset_at = offsetof(struct ip6t_entry, target_offset)};
    else
        return -EINVAL;
    sizes->head = sizes->entry + NP_ERROR;
    sizes->tail = sizes->entry + (uint32_t)sizeof(struct xt_standard_target);
    return 0;
}

static uint16_t np_u16(const uint8_t *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static int32_t np_s32(const uint8_t *at)
{
    int32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

/* Whether the name of a target, 29 bytes at `at`, is `name` to its NUL. */
static int np_is_named(const uint8_t *at, const char *name)
{
    return memcmp(at, name, strlen(name) + 1) == 0;
}

/* The matches of an entry fill the bytes from `at` to `end` exactly. Returns 0 or -EBADMSG. */
static int np_check_matches(const uint8_t *blob, uint32_t at, uint32_t end)
{
    while (at < end) {
        uint16_t size = end - at >= sizeof(struct xt_entry_match) ? np_u16(blob + at) : 0;

        if (size < sizeof(struct xt_entry_match) || size % NP_ALIGN || size > end - at)
            return -EBADMSG;
        at += size;
    }
    return 0;
}

/* Reads the entry at `offset` of a blob, every length of which is checked against the blob's. Returns 0 or -EBADMSG. */
static int np_read_entry(const uint8_t *blob, size_t size, const struct np_xt_sizes *sizes, uint32_t offset,
                         struct np_xt_entry *entry)
{
    uint32_t target_offset, next_offset;
    uint16_t target_size;

    if (offset % NP_ALIGN || size - offset < sizes->entry + NP_TARGET)
        return -EBADMSG;
    target_offset = np_u16(blob + offset + sizes->target_offset_at);
    next_offset = np_u16(blob + offset + sizes->target_offset_at + 2);
    if (target_offset < sizes->entry || target_offset % NP_ALIGN || next_offset % NP_ALIGN ||
        next_offset > size - offset || target_offset + NP_TARGET > next_offset)
        return -EBADMSG;
    *entry = (struct np_xt_entry){.offset = offset, .target = offset + target_offset, .end = offset + next_offset};
    target_size = np_u16(blob + entry->target);
    if (target_size < NP_TARGET || target_size > next_offset - target_offset)
        return -EBADMSG;
    entry->is_standard = np_is_named(blob + entry->target + 2, "");
    if (entry->is_standard && next_offset - target_offset != sizeof(struct xt_standard_target))
        return -EBADMSG;
    entry->is_error = np_is_named(blob + entry->target + 2, "ERROR");
    if (entry->is_error && (target_offset != sizes->entry || next_offset != sizes->head))
        return -EBADMSG;
    return np_check_matches(blob, offset + sizes->entry, entry->target);
}

/* The hook whose chain begins at this offset, or -1. */
static int np_hook_at(const struct np_xt_table *table, uint32_t offset)
{
    for (int hook = 0; hook < NP_XT_HOOKS; hook++)
        if (table->valid_hooks >> hook & 1 && table->hook_entry[hook] == offset)
            return hook;
    return -1;
}

/* Ends a chain at `end`, whose last entry is `tail`. Built-in chains end at their underflow. Returns 0 or -EBADMSG. */
static int np_close_chain(struct np_xt_chain *chain, const struct np_xt_table *table, const struct np_xt_sizes *sizes,
                          uint32_t tail, uint32_t end, uint32_t index)
{
    chain->size = end - chain->offset;
    chain->entries = index - chain->first;
    if (end - tail != sizes->tail || (chain->hook < 0 && chain->entries < 2))
        return -EBADMSG;
    return chain->hook >= 0 && table->underflow[chain->hook] != tail ? -EBADMSG : 0;
}

/* First pass: the chains, in the order of the blob; *where follows the entry that is looked at. Returns their number or -errno. */
static int np_find_chains(const uint8_t *blob, size_t size, const struct np_xt_sizes *sizes,
                          const struct np_xt_table *table, struct np_xt_chain *chains, size_t room, uint32_t *where)
{
    uint32_t index = 0, tail = 0, hooks = 0;
    size_t count = 0;

    for (uint32_t offset = 0; offset < size; index++) {
        struct np_xt_entry entry;
        int hook = np_hook_at(table, offset);

        *where = offset;
        if (np_read_entry(blob, size, sizes, offset, &entry) < 0)
            return -EBADMSG;
        if (hook >= 0 || entry.is_error) {
            struct np_xt_chain *chain = &chains[count];

            if (count && np_close_chain(&chains[count - 1], table, sizes, tail, offset, index) < 0)
                return -EBADMSG;
            if (entry.end == size)
                return entry.is_error && hook < 0 && hooks == table->valid_hooks && index + 1 == table->entries
                           ? (int)count
                           : -EBADMSG;
            if (count == room)
                return -ENOBUFS;
            *chain = (struct np_xt_chain){.hook = hook, .offset = offset, .first = index};
            if (hook >= 0)
                hooks |= 1U << hook;
            else
                memcpy(chain->name, blob + entry.target + NP_TARGET, XT_FUNCTION_MAXNAMELEN);
            if ((hook >= 0) == entry.is_error || (hook < 0 && !chain->name[0]) ||
                memchr(chain->name, 0, XT_FUNCTION_MAXNAMELEN) == NULL)
                return -EBADMSG;
            count++;
        } else if (!count) {
            return -EBADMSG;
        }
        tail = offset;
        offset = entry.end;
    }
    return -EBADMSG;
}

/* The user chain whose first rule stands at `offset`, or -1. Chains are in the order of their offsets. */
static int np_chain_at(const struct np_xt_chain *chains, size_t count, uint32_t offset)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (chains[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return (int)low - 1;
}

/* Takes a table apart. `blob` and `table` are as the kernel gave them (entries, hook entries and underflows of its info). Fills the
 * chains in the order of the blob, without the ERROR entry that ends it, and the jumps in the order of theirs. Returns the number of chains;
 * -EBADMSG when the blob has another form (*where: the offset of the entry), -ENOBUFS when there are more of either than room. Reads
 * nothing outside the blob, whatever it holds. */
int np_xt_split(const uint8_t *blob, size_t size, int family, const struct np_xt_table *table,
                struct np_xt_chain *chains, size_t chain_room, struct np_xt_jump *jumps, size_t jump_room,
                uint32_t *jump_count, uint32_t *where)
{
    struct np_xt_sizes sizes;
    uint32_t count = 0;
    int found;

    *jump_count = *where = 0;
    if (size > INT32_MAX || np_xt_sizes(family, &sizes) < 0)
        return -EINVAL;
    found = np_find_chains(blob, size, &sizes, table, chains, chain_room, where);
    if (found < 0)
        return found;
    for (uint32_t offset = 0; offset < size;) {
        struct np_xt_entry entry;
        int32_t verdict, chain = -1;

        *where = offset;
        if (np_read_entry(blob, size, &sizes, offset, &entry) < 0)
            return -EBADMSG;
        offset = entry.end;
        if (!entry.is_standard || (verdict = np_s32(blob + entry.target + NP_TARGET)) < 0)
            continue;
        if ((uint32_t)verdict != entry.end) {
            chain = np_chain_at(chains, (size_t)found, (uint32_t)verdict);
            if (chain < 0 || chains[chain].hook >= 0 || chains[chain].offset + sizes.head != (uint32_t)verdict)
                return -EBADMSG;
        }
        if (count == jump_room)
            return -ENOBUFS;
        jumps[count++] = (struct np_xt_jump){.at = entry.target + NP_TARGET, .entry = entry.offset, .chain = chain};
    }
    *jump_count = count;
    return found;
}

/* Clears what the kernel fills in by itself, the counters and comefrom of every entry, so that equal rules are equal bytes; the
 * counters (struct xt_counters, 16 bytes an entry) go to `counters`, where that is not NULL. Returns the number of entries; -EBADMSG, -ENOBUFS. */
int np_xt_normalise(uint8_t *blob, size_t size, int family, uint8_t *counters, size_t room)
{
    struct np_xt_sizes sizes;
    size_t count = 0;

    if (size > INT32_MAX || np_xt_sizes(family, &sizes) < 0)
        return -EINVAL;
    for (uint32_t offset = 0; offset < size; count++) {
        struct np_xt_entry entry;

        if (np_read_entry(blob, size, &sizes, offset, &entry) < 0)
            return -EBADMSG;
        if (count == room)
            return -ENOBUFS;
        if (counters)
            memcpy(counters + count * sizeof(struct xt_counters), blob + offset + sizes.counters_at,
                   sizeof(struct xt_counters));
        memset(blob + offset + sizes.comefrom_at, 0, sizeof(unsigned int));
        memset(blob + offset + sizes.counters_at, 0, sizeof(struct xt_counters));
        offset = entry.end;
    }
    return (int)count;
}

/* Whether `found`, a table as the kernel handed it out, is `left`, of the same size and of the form that np_xt_split takes: but for what the
 * kernel fills in by itself, and np_xt_normalise clears, the bytes are the same. Returns 1 or 0, or -EBADMSG when `left` has no such form. */
int np_xt_same(const uint8_t *left, const uint8_t *found, size_t size, int family)
{
    struct np_xt_sizes sizes;
    size_t from = 0;

    if (size > INT32_MAX || np_xt_sizes(family, &sizes) < 0)
        return -EINVAL;
    for (size_t offset = 0; offset < size;) {
        const size_t comefrom = offset + sizes.comefrom_at, counters = offset + sizes.counters_at;
        uint32_t next;

        if (size - offset < sizes.entry)
            return -EBADMSG;
        next = np_u16(left + offset + sizes.target_offset_at + 2);
        if (next < sizes.entry || next > size - offset)
            return -EBADMSG;
        if (memcmp(left + from, found + from, comefrom - from) != 0)
            return 0;
        from = comefrom + sizeof(unsigned int);
        if (memcmp(left + from, found + from, counters - from) != 0)
            return 0;
        from = counters + sizeof(struct xt_counters);
        offset += next;
    }
    return memcmp(left + from, found + from, size - from) == 0;
}

/* Copies chains that stand one behind the other, as they stand when the first of them begins at `offset` and its first entry has the
 * index `first`. Returns 0. */
int np_xt_place(const struct np_xt_chain *chains, size_t count, uint32_t offset, uint32_t first,
                struct np_xt_chain *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = chains[i];
        out[i].offset += offset - chains[0].offset;
        out[i].first += first - chains[0].first;
    }
    return 0;
}

/* Whether an entry has a match of one of these sets, bit n of `sets` (8 KiB) being that of number n. Its form was checked. */
static int np_uses_set(const uint8_t *blob, const struct np_xt_sizes *sizes, const struct np_xt_entry *entry,
                       const uint8_t *sets)
{
    const uint32_t head = sizeof(struct xt_entry_match);

    for (uint32_t at = entry->offset + sizes->entry; at < entry->target; at += np_u16(blob + at)) {
        uint16_t number;

        if (np_u16(blob + at) < head + sizeof(number) || !np_is_named(blob + at + 2, "set"))
            continue;
        number = np_u16(blob + at + head);
        if (sets[number / 8] >> number % 8 & 1)
            return 1;
    }
    return 0;
}

/* Finds the chains that match one of these sets, bit n of `sets` (8 KiB) being that of number n: users[chain] becomes 1 for each,
 * and 0 for the others. Returns 0; -EBADMSG for bytes of another form, -EINVAL when a chain lies outside. */
int np_xt_users(const uint8_t *blob, size_t size, int family, const struct np_xt_chain *chains, size_t chain_count,
                const uint8_t *sets, uint8_t *users)
{
    struct np_xt_sizes sizes;

    if (size > INT32_MAX || np_xt_sizes(family, &sizes) < 0)
        return -EINVAL;
    for (size_t i = 0; i < chain_count; i++) {
        const struct np_xt_chain *chain = &chains[i];

        if (chain->offset > size || chain->size > size - chain->offset)
            return -EINVAL;
        users[i] = 0;
        for (uint32_t offset = chain->offset; offset < chain->offset + chain->size;) {
            struct np_xt_entry entry;

            if (np_read_entry(blob, chain->offset + chain->size, &sizes, offset, &entry) < 0)
                return -EBADMSG;
            if (np_uses_set(blob, &sizes, &entry, sets))
                users[i] = 1;
            offset = entry.end;
        }
    }
    return 0;
}

/* The first of the jumps, sorted by place, whose verdict does not stand before `from`. */
static size_t np_first_jump(const struct np_xt_jump *jumps, size_t count, uint32_t from)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (jumps[middle].at < from)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Copies the jumps whose verdicts stand in [from, to), sorted by place, for bytes that now begin at `target`; renumber[old chain] is the
 * new index, or -1 where there is none. Returns their number; -ENOENT when one goes to a chain that is no more, -ENOBUFS. */
int np_xt_relocate(const struct np_xt_jump *jumps, size_t count, uint32_t from, uint32_t to, uint32_t target,
                   const int32_t *renumber, size_t chain_count, struct np_xt_jump *out, size_t room)
{
    size_t done = 0;

    for (size_t i = np_first_jump(jumps, count, from); i < count && jumps[i].at < to; i++, done++) {
        int32_t chain = jumps[i].chain;

        if (done == room)
            return -ENOBUFS;
        if (chain >= 0) {
            if ((size_t)chain >= chain_count || renumber[chain] < 0)
                return -ENOENT;
            chain = renumber[chain];
        }
        out[done] = (struct np_xt_jump){
            .at = jumps[i].at - from + target, .entry = jumps[i].entry - from + target, .chain = chain};
    }
    return (int)done;
}

/* Puts a table together: chains stand end to end in `blob` (their offsets and sizes given), the ERROR entry behind them. Writes the
 * verdicts of all jumps, and hook entries, underflows and number of entries into *table. Returns 0, or -EINVAL when something
 * would lie outside. */
int np_xt_link(uint8_t *blob, size_t size, int family, const struct np_xt_chain *chains, size_t chain_count,
               const struct np_xt_jump *jumps, size_t jump_count, struct np_xt_table *table)
{
    struct np_xt_sizes sizes;

    if (size > INT32_MAX || np_xt_sizes(family, &sizes) < 0)
        return -EINVAL;
    *table = (struct np_xt_table){.entries = 1};
    for (size_t i = 0; i < chain_count; i++) {
        const struct np_xt_chain *chain = &chains[i];

        if (chain->size < sizes.tail || chain->offset > size || chain->size > size - chain->offset ||
            chain->hook >= NP_XT_HOOKS)
            return -EINVAL;
        table->entries += chain->entries;
        if (chain->hook >= 0) {
            table->valid_hooks |= 1U << chain->hook;
            table->hook_entry[chain->hook] = chain->offset;
            table->underflow[chain->hook] = chain->offset + chain->size - sizes.tail;
        }
    }
    for (size_t i = 0; i < jump_count; i++) {
        const struct np_xt_jump *jump = &jumps[i];
        uint32_t verdict = jump->at + 8;

        if (jump->at > size - 8 || size < 8 || (jump->chain >= 0 && (size_t)jump->chain >= chain_count))
            return -EINVAL;
        if (jump->chain >= 0)
            verdict = chains[jump->chain].offset + sizes.head;
        memcpy(blob + jump->at, &verdict, sizeof(verdict));
    }
    return 0;
}

/* Whether a chain has the same entries in two tables, wherever it and the chains it jumps to stand in them. */
static int np_same_chain(const struct np_xt_view *old, const struct np_xt_chain *was, const struct np_xt_view *now,
                         const struct np_xt_chain *is, const int32_t *renumber)
{
    size_t i = np_first_jump(old->jumps, old->jump_count, was->offset);
    size_t j = np_first_jump(now->jumps, now->jump_count, is->offset);
    uint32_t done = 0;

    if (was->size != is->size || was->entries != is->entries)
        return 0;
    for (;; i++, j++) {
        int is_more = i < old->jump_count && old->jumps[i].at - was->offset < was->size;
        uint32_t next = is_more ? old->jumps[i].at - was->offset : was->size;
        int32_t to;

        if (is_more != (j < now->jump_count && now->jumps[j].at - is->offset < is->size) || next < done ||
            memcmp(old->blob + was->offset + done, now->blob + is->offset + done, next - done) != 0)
            return 0;
        if (!is_more)
            return 1;
        to = old->jumps[i].chain;
        if (to >= 0 && (uint32_t)to >= old->chain_count)
            return 0;
        if (now->jumps[j].at - is->offset != next || was->size - next < sizeof(to) ||
            (to < 0 ? to : renumber[to]) != now->jumps[j].chain || (to >= 0 && renumber[to] < 0))
            return 0;
        done = next + (uint32_t)sizeof(to);
    }
}

static int np_is_zero(const uint8_t *data, size_t size)
{
    return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

/* Moves the counters (struct xt_counters) of all chains that are in both tables with the same entries, into zeros: renumber[chain of old]
 * is its index in `now`, or -1. done[chain of now] becomes 1 for each that was moved, and for each whose entries counted nothing. The
 * chains of both lie within their blobs. Returns how many, or -EINVAL when something would lie outside. */
int np_xt_carry(const struct np_xt_view *old, const struct np_xt_view *now, const int32_t *renumber,
                const uint8_t *counters, uint8_t *carried, uint8_t *done)
{
    const size_t each = sizeof(struct xt_counters);
    int count = 0;

    for (uint32_t o = 0; o < old->chain_count; o++) {
        const struct np_xt_chain *was = &old->chains[o], *is;

        if (renumber[o] < 0)
            continue;
        if ((uint32_t)renumber[o] >= now->chain_count)
            return -EINVAL;
        is = &now->chains[renumber[o]];
        if ((uint64_t)was->first + was->entries > old->entries || (uint64_t)is->first + is->entries > now->entries ||
            (uint64_t)was->offset + was->size > old->size || (uint64_t)is->offset + is->size > now->size)
            return -EINVAL;
        if (!np_is_zero(counters + was->first * each, was->entries * each)) {
            if (!np_same_chain(old, was, now, is, renumber))
                continue;
            memcpy(carried + is->first * each, counters + was->first * each, was->entries * each);
        }
        done[renumber[o]] = 1;
        count++;
    }
    return count;
}
