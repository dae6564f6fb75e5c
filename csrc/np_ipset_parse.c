#include "np_digest.h"
#include "np_ipset.h"
#include "np_nl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <string.h>

/* The attribute of a set that looks at some bits of its members only (Linux 6.2), which older headers lack. */
enum { NP_IPSET_ATTR_BITMASK = 12 };

_Static_assert(sizeof(struct np_ipset_header) == 92, "a header has no padding");
_Static_assert(sizeof(struct np_ipset_record) == 112 && offsetof(struct np_ipset_record, digest) == 96,
               "a record has no padding");
_Static_assert(sizeof(((struct np_ipset_header *)0)->name) == IPSET_MAXNAMELEN, "a name is as long as the kernel's");
_Static_assert(sizeof(struct nlmsgerr) == 20 && offsetof(struct nlmsgerr, msg) == 4,
               "an error repeats the message's header");

/* The kind of a set type, which says what a member is made of: NP_IPSET_NET and NP_IPSET_PORT; or -EOPNOTSUPP for a type that netpol
 * does not read or write. */
int np_ipset_kind(const char *type)
{
    static const char *const types[] = {"hash:ip", "hash:net", "hash:ip,port", "hash:net,port"};

    if (strcmp(type, "bitmap:ip") == 0)
        return 0;
    for (int kind = 0; kind < 4; kind++)
        if (strcmp(type, types[kind]) == 0)
            return kind;
    return -EOPNOTSUPP;
}

/* Bytes of a packed member of that kind and family, or -EINVAL. */
int np_ipset_width(int kind, int family)
{
    if (kind < 0 || kind > (NP_IPSET_NET | NP_IPSET_PORT) || (family != 4 && family != 6))
        return -EINVAL;
    return (family == 4 ? 4 : 16) + (kind & NP_IPSET_NET ? 2 : 0) + (kind & NP_IPSET_PORT ? 3 : 0);
}

/* The message type of an ipset command. */
static uint16_t type_of(int command)
{
    return (uint16_t)(NFNL_SUBSYS_IPSET << 8 | command);
}

/* Drops `size` bytes at the front. Returns 0 or -EBADMSG. */
static int skip(struct np_nl_in *in, size_t size)
{
    if (in->left < size)
        return -EBADMSG;
    in->data += size;
    in->left -= size;
    return 0;
}

/* One attribute of `size` bytes, at most 2, out of the answer to a command that asks one thing. Returns 0 or -EBADMSG. */
static int answer_to(const struct np_nl_message *message, int command, int type, void *value, size_t size)
{
    struct np_nl_in body = message->body;
    struct np_nl_attribute attribute;

    if (message->type != type_of(command) || skip(&body, sizeof(struct nfgenmsg)) < 0)
        return -EBADMSG;
    while (np_nl_next_attribute(&body, &attribute) > 0)
        if (attribute.type == type)
            return np_nl_get(&attribute, value, size) < 0 ? -EBADMSG : 0;
    return -EBADMSG;
}

/* The version in the answer to IPSET_CMD_PROTOCOL. Returns it, or -errno. */
int np_ipset_parse_version(const uint8_t *data, size_t size, uint32_t seq)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    uint8_t version = 0;
    int result = 0;

    if (np_nl_next_message(&in, &message) <= 0 || message.seq != seq)
        return -EBADMSG;
    if (message.type == NLMSG_ERROR) {
        result = np_nl_error(&message.body);
        return result < 0 ? result : -EBADMSG;
    }
    result = answer_to(&message, IPSET_CMD_PROTOCOL, IPSET_ATTR_PROTOCOL, &version, sizeof(version));
    return result < 0 ? result : version;
}

/* The number of the member that failed, out of the request that an error repeats; 0 where it repeats none. */
static uint32_t failed_member(struct np_nl_in body)
{
    struct np_nl_attribute attribute;
    uint32_t lineno = 0;

    if (skip(&body, sizeof(struct nlmsgerr) + sizeof(struct nfgenmsg)) < 0)
        return 0;
    while (np_nl_next_attribute(&body, &attribute) > 0)
        if (attribute.type == IPSET_ATTR_LINENO)
            return np_nl_get(&attribute, &lineno, sizeof(lineno)) < 0 ? 0 : lineno;
    return 0;
}

/* Enters answers to the commands `first` to `first + commands - 1` into the outcome: the first failure (`command` counted from 0,
 * `code` an errno, `member` its number or 0), how many commands failed, and the numbers of sets, plus 1,
 * that commands asked for, at the command's place in `numbers`, where that is not NULL. Sets NP_IPSET_DONE at the acknowledgement of the number
 * after those; other numbers are left-overs and ignored. Returns 0 or -EBADMSG. */
int np_ipset_parse_answers(const uint8_t *data, size_t size, struct np_ipset_outcome *outcome)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0;

    while ((result = np_nl_next_message(&in, &message)) > 0) {
        const uint32_t command = message.seq - outcome->first;
        int error = 0;

        if (command > outcome->commands)
            continue;
        if (message.type != NLMSG_ERROR) {
            uint16_t number = 0;

            if (!outcome->numbers || command == outcome->commands ||
                answer_to(&message, IPSET_CMD_GET_BYNAME, IPSET_ATTR_INDEX, &number, sizeof(number)) < 0)
                return -EBADMSG;
            outcome->numbers[command] = ntohs(number) + 1U;
            continue;
        }
        error = np_nl_error(&message.body);
        if (error == -EBADMSG)
            return error;
        if (command == outcome->commands) {
            outcome->flags |= NP_IPSET_DONE;
        } else if (error < 0 && (outcome->failures == 0 || command != outcome->last)) {
            if (outcome->failures++ == 0) {
                outcome->code = -error;
                outcome->command = command;
                outcome->member = failed_member(message.body);
            }
            outcome->last = command;
        }
    }
    return result;
}

/* Reads a nested address of exactly `size` bytes, 4 or 16, network byte order. Returns 0 or -EBADMSG. */
static int parse_address(const struct np_nl_attribute *nested, uint8_t *address, size_t size)
{
    struct np_nl_in in = nested->value;
    struct np_nl_attribute attribute;

    if (np_nl_next_attribute(&in, &attribute) <= 0)
        return -EBADMSG;
    if (attribute.type != (size == 4 ? IPSET_ATTR_IPADDR_IPV4 : IPSET_ATTR_IPADDR_IPV6))
        return -EBADMSG;
    return np_nl_get(&attribute, address, size);
}

/* Reads the set's numbers, the ends of a range of addresses, and the name of an option with which its members are others than those that
 * were added, or do not stay, out of the nested attribute IPSET_ATTR_DATA. Returns 0 or -EBADMSG. */
static int parse_numbers(struct np_nl_in in, struct np_ipset_header *header, const char **option)
{
    struct np_nl_attribute attribute;
    uint32_t flags = 0;
    int result = 0;

    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        int bad = 0;

        switch (attribute.type) {
        case IPSET_ATTR_TIMEOUT:
            *option = "timeout";
            break;
        case IPSET_ATTR_NETMASK:
            *option = "netmask";
            break;
        case NP_IPSET_ATTR_BITMASK:
            *option = "bitmask";
            break;
        case IPSET_ATTR_CADT_FLAGS:
            bad = np_nl_get_be32(&attribute, &flags);
            if (flags & IPSET_FLAG_WITH_FORCEADD)
                *option = "forceadd";
            break;
        case IPSET_ATTR_HASHSIZE:
            bad = np_nl_get_be32(&attribute, &header->hashsize);
            break;
        case IPSET_ATTR_MAXELEM:
            bad = np_nl_get_be32(&attribute, &header->maxelem);
            break;
        case IPSET_ATTR_ELEMENTS:
            bad = np_nl_get_be32(&attribute, &header->entries);
            break;
        case IPSET_ATTR_REFERENCES:
            bad = np_nl_get_be32(&attribute, &header->references);
            break;
        case IPSET_ATTR_IP:
            bad = parse_address(&attribute, header->first, sizeof(header->first));
            break;
        case IPSET_ATTR_IP_TO:
            bad = parse_address(&attribute, header->last, sizeof(header->last));
            break;
        default:
            break;
        }
        if (bad < 0)
            return bad;
    }
    return result;
}

/* Packs one member into `member`, which has the width of that kind and family. Returns 0, or -EBADMSG where a part of it is missing. */
static int parse_member(struct np_nl_in in, int kind, size_t address, uint8_t *member)
{
    uint8_t *net = member + address, *port = net + (kind & NP_IPSET_NET ? 2 : 0);
    struct np_nl_attribute attribute;
    unsigned int missing = 1U << IPSET_ATTR_IP;
    int result = 0;

    if (kind & NP_IPSET_NET) {
        missing |= 1U << IPSET_ATTR_CIDR;
        net[1] = 0;
    }
    if (kind & NP_IPSET_PORT)
        missing |= 1U << IPSET_ATTR_PROTO | 1U << IPSET_ATTR_PORT;
    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        uint32_t flags = 0;
        int bad = 0;

        if (attribute.type == IPSET_ATTR_IP)
            bad = parse_address(&attribute, member, address);
        else if (attribute.type == IPSET_ATTR_CIDR && kind & NP_IPSET_NET)
            bad = np_nl_get(&attribute, net, 1);
        else if (attribute.type == IPSET_ATTR_PROTO && kind & NP_IPSET_PORT)
            bad = np_nl_get(&attribute, port, 1);
        else if (attribute.type == IPSET_ATTR_PORT && kind & NP_IPSET_PORT)
            bad = np_nl_get(&attribute, port + 1, 2);
        else if (attribute.type == IPSET_ATTR_CADT_FLAGS && kind & NP_IPSET_NET) {
            bad = np_nl_get_be32(&attribute, &flags);
            net[1] = flags & IPSET_FLAG_NOMATCH ? 1 : 0;
        }
        if (bad < 0)
            return bad;
        if (attribute.type < 32)
            missing &= ~(1U << attribute.type);
    }
    return result < 0 || missing ? -EBADMSG : 0;
}

/* Appends the members of a list to the dump. Returns 0, -EOPNOTSUPP for a type that we do not read, -ENOSPC, or -EBADMSG. */
static int parse_members(struct np_nl_in in, struct np_ipset_dump *dump)
{
    const int kind = np_ipset_kind(dump->set.type);
    const int width = kind < 0 ? kind : np_ipset_width(kind, dump->set.family);
    struct np_nl_attribute attribute;
    int result = 0;

    if (width < 0)
        return kind < 0 ? kind : -EBADMSG;
    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        if (attribute.type != IPSET_ATTR_DATA)
            return -EBADMSG;
        if (dump->member_room - dump->member_size < (size_t)width)
            return -ENOSPC;
        result = parse_member(attribute.value, kind, dump->set.family == 4 ? 4 : 16, dump->members + dump->member_size);
        if (result < 0)
            return result;
        dump->member_size += (size_t)width;
    }
    return result;
}

/* Begins the record of the set that the dump is at, where its name begins with the prefix. Returns 0, or -ENOSPC where there is no
 * room for one. */
static int begin_record(struct np_ipset_dump *dump)
{
    if (strncmp(dump->set.name, dump->prefix, strlen(dump->prefix)) != 0)
        return 0;
    if (dump->record_count == dump->record_room)
        return -ENOSPC;
    dump->records[dump->record_count++] = (struct np_ipset_record){.header = dump->set};
    return 0;
}

/* Adds the members of a list to the record of the set that the dump is at, where it has one and is of a type that we read. Returns 0
 * or -EBADMSG. */
static int record_members(struct np_nl_in in, struct np_ipset_dump *dump)
{
    struct np_ipset_record *record = dump->record_count ? &dump->records[dump->record_count - 1] : NULL;
    const int kind = np_ipset_kind(dump->set.type);
    const int width = kind < 0 ? kind : np_ipset_width(kind, dump->set.family);
    struct np_nl_attribute attribute;
    uint8_t member[32];
    int result = 0;

    if (width < 0 || !record || strcmp(record->header.name, dump->set.name) != 0)
        return 0;
    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        if (attribute.type != IPSET_ATTR_DATA)
            return -EBADMSG;
        result = parse_member(attribute.value, kind, dump->set.family == 4 ? 4 : 16, member);
        if (result < 0)
            return result;
        np_digest_members(dump->key, member, (size_t)width, (size_t)width, record->digest);
        record->members++;
    }
    return result;
}

/* Puts a word behind the name of a set's type, if there is room: no type that we read has so long a name that there is none. */
static void extend_type(struct np_ipset_header *header, const char *word)
{
    const size_t used = strlen(header->type), size = strlen(word);

    if (sizeof(header->type) - used < size + 2)
        return;
    header->type[used] = ' ';
    memcpy(header->type + used + 1, word, size + 1);
}

/* Reads the attributes of a set's message but its members, whose list is left in `list`. Returns 0 or -EBADMSG. */
static int parse_set(struct np_nl_in in, struct np_ipset_header *header, struct np_nl_in *list)
{
    const char *option = NULL;
    struct np_nl_attribute attribute;
    int result = 0;

    while ((result = np_nl_next_attribute(&in, &attribute)) > 0) {
        int bad = 0;

        switch (attribute.type) {
        case IPSET_ATTR_SETNAME:
            bad = np_nl_get_string(&attribute, header->name, sizeof(header->name));
            break;
        case IPSET_ATTR_TYPENAME:
            bad = np_nl_get_string(&attribute, header->type, sizeof(header->type));
            break;
        case IPSET_ATTR_FAMILY:
            bad = np_nl_get(&attribute, &header->family, sizeof(header->family));
            break;
        case IPSET_ATTR_REVISION:
            bad = np_nl_get(&attribute, &header->revision, sizeof(header->revision));
            break;
        case IPSET_ATTR_INDEX:
            bad = np_nl_get_be16(&attribute, &header->index);
            break;
        case IPSET_ATTR_DATA:
            bad = parse_numbers(attribute.value, header, &option);
            break;
        case IPSET_ATTR_ADT:
            *list = attribute.value;
            break;
        default:
            break;
        }
        if (bad < 0)
            return bad;
    }
    if (option && header->type[0] != 0)
        extend_type(header, option);
    return result;
}

/* Enters one IPSET_CMD_LIST message: a set's header, of which the kernel's family number becomes 4, 6 or 0, and whose type has an option
 * behind it that makes it one that we do not read; or more members of the
 * set that the dump is at. Returns 0 or -errno. */
static int parse_list(struct np_nl_in in, struct np_ipset_dump *dump)
{
    struct np_ipset_header header = {.family = NFPROTO_UNSPEC};
    struct np_nl_in list = {NULL, 0};

    if (skip(&in, sizeof(struct nfgenmsg)) < 0 || parse_set(in, &header, &list) < 0 || header.name[0] == 0)
        return -EBADMSG;
    /* A dump of names says no more of a set. */
    if (header.type[0] != 0 || dump->only == NP_IPSET_NAMES) {
        header.family = header.family == NFPROTO_IPV4 ? 4 : header.family == NFPROTO_IPV6 ? 6 : 0;
        if (dump->headers && dump->header_count == dump->header_room)
            return -ENOSPC;
        if (dump->headers)
            dump->headers[dump->header_count++] = header;
        dump->set = header;
        if (dump->records && begin_record(dump) < 0)
            return -ENOSPC;
    } else if (strcmp(header.name, dump->set.name) != 0) {
        return -EBADMSG;
    }
    if (dump->records && list.data)
        return record_members(list, dump);
    return dump->members && list.data ? parse_members(list, dump) : 0;
}

/* Appends what one datagram of the dump numbered `seq` says: headers where `headers` is not NULL, packed members where `members`
 * is not; or, where `records` is not NULL, digests of the members of the sets whose names begin with `prefix`. `set` is the header of
 * the set it is at. Sets NP_IPSET_INTERRUPTED where the kernel says that the sets changed meanwhile, and
 * NP_IPSET_DONE at the end. Returns 0, the kernel's -errno, -EOPNOTSUPP for members of a type that we do not read, -ENOSPC where the
 * caller's room is short, or -EBADMSG. */
int np_ipset_parse_dump(const uint8_t *data, size_t size, struct np_ipset_dump *dump)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0;

    while (!(dump->flags & NP_IPSET_DONE) && (result = np_nl_next_message(&in, &message)) > 0) {
        if (message.seq != dump->seq)
            continue;
        if (message.flags & NLM_F_DUMP_INTR)
            dump->flags |= NP_IPSET_INTERRUPTED;
        if (message.type == NLMSG_DONE || message.type == NLMSG_ERROR) {
            result = np_nl_error(&message.body);
            if (result == 0 && message.type == NLMSG_ERROR)
                result = -EBADMSG;
            dump->flags |= NP_IPSET_DONE;
        } else if (message.type == type_of(IPSET_CMD_LIST)) {
            result = parse_list(message.body, dump);
        } else {
            result = -EBADMSG;
        }
        if (result < 0)
            return result;
    }
    return result < 0 ? result : 0;
}
