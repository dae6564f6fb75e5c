#include "np_nl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <string.h>

/* Larger numbers are no errors that a kernel has. */
enum { NP_ERROR_MAX = 65535 };

_Static_assert(sizeof(struct nlmsghdr) == 16, "a message header is 16 bytes");
_Static_assert(offsetof(struct nlmsghdr, nlmsg_seq) == 8, "the sequence number is at 8");
_Static_assert(sizeof(struct nlattr) == 4, "an attribute header is 4 bytes");

/* Bytes up to the next boundary of 4, where messages and attributes begin. Callers keep `size` far below SIZE_MAX. */
static size_t aligned(size_t size)
{
    return (size + 3U) & ~(size_t)3U;
}

/* Begins a message with NLM_F_REQUEST and `flags`. Returns where it starts, for np_nl_end. */
size_t np_nl_begin(struct np_nl_out *out, uint16_t type, uint16_t flags, uint32_t seq)
{
    const struct nlmsghdr header = {
        .nlmsg_type = type, .nlmsg_flags = (uint16_t)(flags | NLM_F_REQUEST), .nlmsg_seq = seq};
    const size_t start = out->used;
    uint8_t *place = np_nl_reserve(out, sizeof(header));

    if (place)
        memcpy(place, &header, sizeof(header));
    return start;
}

/* Ends the message that starts at `start`: writes its length. */
void np_nl_end(struct np_nl_out *out, size_t start)
{
    const size_t size = out->used - start;

    out->overflow |= size > UINT32_MAX;
    if (!out->overflow) {
        const uint32_t length = (uint32_t)size;
        memcpy(out->data + start + offsetof(struct nlmsghdr, nlmsg_len), &length, sizeof(length));
    }
}

/* Begins a nested attribute. Returns where it starts, for np_nl_unnest. */
size_t np_nl_nest(struct np_nl_out *out, uint16_t type)
{
    const struct nlattr header = {.nla_type = (uint16_t)(type | NLA_F_NESTED)};
    const size_t start = out->used;
    uint8_t *place = np_nl_reserve(out, sizeof(header));

    if (place)
        memcpy(place, &header, sizeof(header));
    return start;
}

/* Ends the nested attribute that starts at `start`. Its length has 16 bits: more is an overflow, not a smaller number. */
void np_nl_unnest(struct np_nl_out *out, size_t start)
{
    const size_t size = out->used - start;

    out->overflow |= size > UINT16_MAX;
    if (!out->overflow) {
        const uint16_t length = (uint16_t)size;
        memcpy(out->data + start + offsetof(struct nlattr, nla_len), &length, sizeof(length));
    }
}

/* Puts an attribute with `size` bytes of value, padded with zeros. `type` may carry NLA_F_NET_BYTEORDER. Returns where the value is. */
size_t np_nl_put(struct np_nl_out *out, uint16_t type, const void *value, size_t size)
{
    const struct nlattr header = {.nla_len = (uint16_t)(sizeof(header) + size), .nla_type = type};
    uint8_t *place = NULL;

    if (size > UINT16_MAX - sizeof(header))
        out->overflow = 1;
    else
        place = np_nl_reserve(out, sizeof(header) + aligned(size));
    if (!place)
        return 0;
    memcpy(place, &header, sizeof(header));
    memcpy(place + sizeof(header), value, size);
    memset(place + sizeof(header) + size, 0, aligned(size) - size);
    return (size_t)(place - out->data) + sizeof(header);
}

/* Puts a byte. */
size_t np_nl_put_u8(struct np_nl_out *out, uint16_t type, uint8_t value)
{
    return np_nl_put(out, type, &value, sizeof(value));
}

/* Puts 16 bits in network byte order, and says so in the type. */
size_t np_nl_put_be16(struct np_nl_out *out, uint16_t type, uint16_t value)
{
    const uint16_t network = htons(value);

    return np_nl_put(out, (uint16_t)(type | NLA_F_NET_BYTEORDER), &network, sizeof(network));
}

/* Puts 32 bits in network byte order, and says so in the type. */
size_t np_nl_put_be32(struct np_nl_out *out, uint16_t type, uint32_t value)
{
    const uint32_t network = htonl(value);

    return np_nl_put(out, (uint16_t)(type | NLA_F_NET_BYTEORDER), &network, sizeof(network));
}

/* Puts a string with its terminating zero. */
size_t np_nl_put_string(struct np_nl_out *out, uint16_t type, const char *value)
{
    return np_nl_put(out, type, value, strlen(value) + 1);
}

/* How many of `size` bytes of messages that we wrote make whole messages of at most `limit` bytes: at least the first one, and 0
 * only where these bytes are not messages. */
size_t np_nl_whole(const uint8_t *data, size_t size, size_t limit)
{
    size_t whole = 0;

    while (size - whole >= sizeof(struct nlmsghdr)) {
        uint32_t length = 0;

        memcpy(&length, data + whole, sizeof(length));
        if (length < sizeof(struct nlmsghdr) || length > size - whole || (whole > 0 && whole + length > limit))
            break;
        whole += length;
    }
    return whole;
}

/* How many messages there are in `size` bytes of whole ones that we wrote. */
size_t np_nl_count(const uint8_t *data, size_t size)
{
    size_t count = 0;

    for (size_t at = 0, whole = 0; (whole = np_nl_whole(data + at, size - at, 0)) > 0; at += whole)
        count++;
    return count;
}

/* Takes the next message. Returns 1, 0 at the end, or -EBADMSG for a length that cannot be. */
int np_nl_next_message(struct np_nl_in *in, struct np_nl_message *message)
{
    struct nlmsghdr header;
    size_t step = 0;

    if (in->left == 0)
        return 0;
    if (in->left < sizeof(header))
        return -EBADMSG;
    memcpy(&header, in->data, sizeof(header));
    if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > in->left)
        return -EBADMSG;
    message->type = header.nlmsg_type;
    message->flags = header.nlmsg_flags;
    message->seq = header.nlmsg_seq;
    message->body.data = in->data + sizeof(header);
    message->body.left = header.nlmsg_len - sizeof(header);
    step = aligned(header.nlmsg_len);
    if (step > in->left)
        step = in->left;
    in->data += step;
    in->left -= step;
    return 1;
}

/* The error number in front of the body of an NLMSG_ERROR or NLMSG_DONE: 0, -errno, or -EBADMSG for what is none. */
int np_nl_error(const struct np_nl_in *body)
{
    int32_t error = 0;

    if (body->left < sizeof(error))
        return -EBADMSG;
    memcpy(&error, body->data, sizeof(error));
    return error > 0 || error < -NP_ERROR_MAX ? -EBADMSG : error;
}

/* Whether a datagram begins with the answer to another request than the one numbered `seq`: one that was given up. */
int np_nl_is_left_over(const uint8_t *data, size_t size, uint32_t seq)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;

    return np_nl_next_message(&in, &message) > 0 && message.seq != seq;
}

/* Copies a string of at least one character, with its terminating zero, into `room` bytes. Returns 0 or -EBADMSG. */
int np_nl_get_string(const struct np_nl_attribute *attribute, char *value, size_t room)
{
    const size_t size = attribute->value.left;

    if (size < 2 || size > room || memchr(attribute->value.data, 0, size) != attribute->value.data + size - 1)
        return -EBADMSG;
    memcpy(value, attribute->value.data, size);
    return 0;
}
