/* The least that filling a set can be: one loop that writes netpol's very messages from sorted addresses, and sends them. No values, no
 * sorting, no errors that anyone could read; all sizes are the caller's promise. A test compares the bytes with netpol's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MESSAGE = 16 * 1024, SLACK = 512, ROOM = 1024 * 1024, ANSWERS = 4 * 1024 * 1024, RUN = 65536 };

/* Nested attributes of the kernel's, as they lie in a message. */
struct address {
    struct nlattr nest, attribute;
    uint32_t value;
};

struct lineno {
    struct nlattr attribute;
    uint32_t value;
};

struct single {
    struct nlattr data;
    struct address first;
    struct lineno lineno;
};

struct range {
    struct nlattr data;
    struct address first, last;
    struct lineno lineno;
};

static uint8_t buffer[ROOM];

static struct nlattr nested(size_t size, int type)
{
    return (struct nlattr){(uint16_t)size, (uint16_t)(type | NLA_F_NESTED)};
}

static struct address address_of(int type, uint32_t value)
{
    const uint16_t version = IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER;

    return (struct address){
        nested(sizeof(struct address), type), {sizeof(struct nlattr) + sizeof(value), version}, value};
}

static struct lineno lineno_of(size_t member)
{
    return (struct lineno){{sizeof(struct lineno), IPSET_ATTR_LINENO}, (uint32_t)member + 1};
}

static uint8_t *put(uint8_t *at, uint16_t type, const void *value, size_t size)
{
    const struct nlattr header = {(uint16_t)(sizeof(header) + size), type};

    memcpy(at, &header, sizeof(header));
    memset(at + sizeof(header), 0, (size + 3) & ~(size_t)3);
    memcpy(at + sizeof(header), value, size);
    return at + sizeof(header) + ((size + 3) & ~(size_t)3);
}

/* Header, protocol and name of a message. */
static uint8_t *begin(uint8_t *at, int command, int flags, uint32_t seq, const char *name)
{
    const struct nlmsghdr header = {0, (uint16_t)(NFNL_SUBSYS_IPSET << 8 | command), (uint16_t)(flags | NLM_F_REQUEST),
                                    seq, 0};
    const struct nfgenmsg generic = {NFPROTO_IPV4, NFNETLINK_V0, 0};

    memcpy(at, &header, sizeof(header));
    memcpy(at + sizeof(header), &generic, sizeof(generic));
    at = put(at + sizeof(header) + sizeof(generic), IPSET_ATTR_PROTOCOL, &(uint8_t){IPSET_PROTOCOL}, 1);
    return put(at, IPSET_ATTR_SETNAME, name, strlen(name) + 1);
}

static void end(uint8_t *start, const uint8_t *at)
{
    const uint32_t size = (uint32_t)(at - start);

    memcpy(start, &size, sizeof(size));
}

static uint8_t *create(uint8_t *at, uint32_t seq, const char *name, uint32_t hashsize, uint32_t maxelem)
{
    uint8_t *const start = at, *nest = NULL;
    struct nlattr header;

    at = begin(at, IPSET_CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, seq, name);
    at = put(at, IPSET_ATTR_TYPENAME, "hash:ip", sizeof("hash:ip"));
    at = put(at, IPSET_ATTR_REVISION, &(uint8_t){0}, 1);
    at = put(at, IPSET_ATTR_FAMILY, &(uint8_t){NFPROTO_IPV4}, 1);
    nest = at;
    at = put(at + sizeof(header), IPSET_ATTR_HASHSIZE | NLA_F_NET_BYTEORDER, &(uint32_t){htonl(hashsize)}, 4);
    at = put(at, IPSET_ATTR_MAXELEM | NLA_F_NET_BYTEORDER, &(uint32_t){htonl(maxelem)}, 4);
    header = nested((size_t)(at - nest), IPSET_ATTR_DATA);
    memcpy(nest, &header, sizeof(header));
    end(start, at);
    return at;
}

/* One message of members from *i on, a run of neighbours as a range. */
static uint8_t *add(uint8_t *at, uint32_t seq, const char *name, const uint32_t *members, size_t count, size_t *i)
{
    uint8_t *const start = at, *list = NULL;
    struct nlattr header;

    at = begin(at, IPSET_CMD_ADD, 0, seq, name);
    at = put(at, IPSET_ATTR_LINENO, &(uint32_t){0}, 4);
    list = at;
    at += sizeof(header);
    while (*i < count && at - start < MESSAGE) {
        const size_t first = (*i)++;

        while (*i < count && *i - first < RUN && ntohl(members[*i]) - ntohl(members[*i - 1]) <= 1)
            (*i)++;
        if (*i == first + 1) {
            const struct single entry = {nested(sizeof(entry), IPSET_ATTR_DATA),
                                         address_of(IPSET_ATTR_IP, members[first]), lineno_of(first)};
            memcpy(at, &entry, sizeof(entry));
            at += sizeof(entry);
        } else {
            const struct range entry = {nested(sizeof(entry), IPSET_ATTR_DATA),
                                        address_of(IPSET_ATTR_IP, members[first]),
                                        address_of(IPSET_ATTR_IP_TO, members[*i - 1]), lineno_of(first)};
            memcpy(at, &entry, sizeof(entry));
            at += sizeof(entry);
        }
    }
    header = nested((size_t)(at - list), IPSET_ATTR_ADT);
    memcpy(list, &header, sizeof(header));
    end(start, at);
    return at;
}

/* A netlink socket with room for what floor_fill sends, in the calling thread's network namespace. The descriptor or -errno. */
int floor_open(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &(int){ROOM}, sizeof(int)) < 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){ROOM}, sizeof(int));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){ANSWERS}, sizeof(int));
    return fd;
}

/* Makes a hash:ip set of `count` sorted addresses in network byte order. 0, or -errno, the kernel's or the socket's. */
int floor_fill(int fd, uint32_t seq, const char *name, const uint32_t *members, size_t count, uint32_t hashsize,
               uint32_t maxelem)
{
    const struct nlmsghdr last = {sizeof(last), NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, seq + 1, 0};
    struct nlmsghdr header;
    uint8_t *at = create(buffer, seq, name, hashsize, maxelem);
    int code = 0;

    for (size_t i = 0; i < count;) {
        if (buffer + ROOM - at < MESSAGE + SLACK) {
            if (send(fd, buffer, (size_t)(at - buffer), 0) < 0)
                return -errno;
            at = buffer;
        }
        at = add(at, seq, name, members, count, &i);
    }
    memcpy(at, &last, sizeof(last));
    if (send(fd, buffer, (size_t)(at - buffer) + sizeof(last), 0) < 0 || recv(fd, buffer, ROOM, MSG_DONTWAIT) < 0)
        return -errno;
    memcpy(&header, buffer, sizeof(header));
    memcpy(&code, buffer + sizeof(header), sizeof(code));
    return header.nlmsg_type == NLMSG_ERROR && header.nlmsg_seq == seq + 1 ? code : -EPROTO;
}
