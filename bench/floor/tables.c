/* The least that loading a table can be: one loop that writes the entries of netpol's very rules from three numbers each, and one replace.
 * No values, no lock, nothing kept of what was there, no errors that anyone could read; all sizes are the caller's promise. A test compares
 * the kernel's table with netpol's. */
#include <errno.h>
#include <stdint.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/xt_multiport.h>
#include <linux/netfilter/xt_set.h>
#include <linux/netfilter/xt_tcpudp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#ifdef __clang__
/* The kernel's own structs end where the next one begins. */
#pragma clang diagnostic ignored "-Wgnu-variable-sized-type-not-at-end"
#endif

enum { HOOKS = 5, ACCEPT = -NF_ACCEPT - 1 };

/* A rule: two ports, and the kernel's number of a set. */
struct rule {
    uint16_t set, first, second;
};

struct name {
    char text[XT_FUNCTION_MAXNAMELEN];
};

struct standard {
    struct ipt_entry entry;
    struct xt_standard_target target;
};

struct error {
    struct ipt_entry entry;
    struct xt_error_target target;
};

/* A match is a header and its data, filled up to 8 bytes. */
struct tcp {
    struct xt_entry_match header;
    struct xt_tcp data;
    uint8_t filled[4];
};

struct set {
    struct xt_entry_match header;
    struct xt_set_info_match_v4 data;
};

struct multiport {
    struct xt_entry_match header;
    struct xt_multiport_v1 data;
};

struct full {
    struct ipt_entry entry;
    struct tcp tcp;
    struct set set;
    struct multiport multiport;
    struct xt_standard_target target;
};

_Static_assert(sizeof(struct tcp) == 48 && sizeof(struct set) == 80 && sizeof(struct multiport) == 80, "no holes");

static struct standard standard_of(int verdict)
{
    struct standard made = {.entry = {.target_offset = sizeof(made.entry), .next_offset = sizeof(made)}};

    made.target.target.u.user.target_size = sizeof(made.target);
    made.target.verdict = verdict;
    return made;
}

static struct error error_of(const char *name)
{
    struct error made = {.entry = {.target_offset = sizeof(made.entry), .next_offset = sizeof(made)}};

    made.target.target.u.user.target_size = sizeof(made.target);
    memcpy(made.target.target.u.user.name, XT_ERROR_TARGET, sizeof(XT_ERROR_TARGET));
    memcpy(made.target.errorname, name, strlen(name) + 1);
    return made;
}

/* What all rules have in common. */
static struct full full_of(void)
{
    struct full made = {.entry = {.target_offset = offsetof(struct full, target), .next_offset = sizeof(made)}};

    made.entry.ip.proto = 6;
    made.tcp.header.u.user.match_size = sizeof(made.tcp);
    memcpy(made.tcp.header.u.user.name, "tcp", sizeof("tcp"));
    made.tcp.data.spts[1] = made.tcp.data.dpts[1] = UINT16_MAX;
    made.set.header.u.user.match_size = sizeof(made.set);
    memcpy(made.set.header.u.user.name, "set", sizeof("set"));
    made.set.header.u.user.revision = 4;
    made.set.data.match_set.dim = IPSET_DIM_ONE;
    made.set.data.match_set.flags = IPSET_DIM_ONE_SRC;
    made.multiport.header.u.user.match_size = sizeof(made.multiport);
    memcpy(made.multiport.header.u.user.name, "multiport", sizeof("multiport"));
    made.multiport.header.u.user.revision = 1;
    made.multiport.data.flags = XT_MULTIPORT_DESTINATION;
    made.multiport.data.count = 2;
    made.target = standard_of(XT_RETURN).target;
    return made;
}

#define PUT(at, value)                                   \
    do {                                                 \
        memcpy(at, &(value), sizeof(value));             \
        (at) = (at) + sizeof(value);                     \
        replace->num_entries = replace->num_entries + 1; \
    } while (0)

/* The built-in chains, and in FORWARD a jump to the entry `root`. */
static uint8_t *put_hooks(struct ipt_replace *replace, uint8_t *at)
{
    const struct standard accept = standard_of(ACCEPT);
    const size_t heads = (HOOKS + 1) * sizeof(struct standard) + sizeof(struct error);
    const struct standard jump = standard_of((int)heads);

    for (unsigned hook = 0; hook < HOOKS; hook++) {
        replace->hook_entry[hook] = (unsigned)(at - (uint8_t *)replace->entries);
        if (hook == NF_INET_FORWARD)
            PUT(at, jump);
        replace->underflow[hook] = (unsigned)(at - (uint8_t *)replace->entries);
        PUT(at, accept);
    }
    return at;
}

/* Replaces the table called `table` by `chains` chains of `length` rules each, to which the first of the `names` jumps; `data` has room for
 * all of it. 0 or -errno. */
int floor_load(int fd, const char *table, const struct name *names, size_t chains, const struct rule *rules,
               size_t length, uint8_t *data, uint8_t *counters)
{
    const size_t size = sizeof(struct error) + length * sizeof(struct full) + sizeof(struct standard);
    const struct standard leave = standard_of(XT_RETURN);
    struct ipt_replace *replace = (struct ipt_replace *)(void *)data;
    struct ipt_getinfo info = {.valid_hooks = 0};
    struct error head = error_of(names[0].text);
    struct full full = full_of();
    uint8_t *at = data + sizeof(*replace);
    size_t first = 0;

    memcpy(info.name, table, strlen(table) + 1);
    if (getsockopt(fd, IPPROTO_IP, IPT_SO_GET_INFO, &info, &(socklen_t){sizeof(info)}) < 0)
        return -errno;
    *replace = (struct ipt_replace){.valid_hooks = info.valid_hooks, .num_counters = info.num_entries};
    memcpy(replace->name, table, strlen(table) + 1);
    replace->counters = (struct xt_counters *)(void *)counters;
    at = put_hooks(replace, at);
    PUT(at, head);
    first = (size_t)(at - (uint8_t *)replace->entries) + (chains + 1) * sizeof(struct standard) + sizeof(struct error);
    for (size_t i = 0; i < chains; i++) {
        const struct standard jump = standard_of((int)(first + i * size));

        PUT(at, jump);
    }
    PUT(at, leave);
    for (size_t i = 0; i < chains; i++) {
        head = error_of(names[i + 1].text);
        PUT(at, head);
        for (size_t j = 0; j < length; j++, rules++) {
            full.set.data.match_set.index = rules->set;
            full.multiport.data.ports[0] = rules->first;
            full.multiport.data.ports[1] = rules->second;
            PUT(at, full);
        }
        PUT(at, leave);
    }
    head = error_of(XT_ERROR_TARGET);
    PUT(at, head);
    replace->size = (unsigned)(at - (uint8_t *)replace->entries);
    return setsockopt(fd, IPPROTO_IP, IPT_SO_SET_REPLACE, data, (socklen_t)(at - data)) < 0 ? -errno : 0;
}
