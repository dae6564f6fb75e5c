/* A bounded netlink cursor. Writing: checked putters into a caller's buffer; an overflow sticks and is tested once, at the end.
 * Reading: messages and attributes of bytes that are not trusted; nothing is read outside them and nothing is assumed aligned.
 * Lengths are bytes. Headers are host byte order; payloads are the caller's business. Nothing here allocates or calls the system. */
#ifndef NP_NL_H
#define NP_NL_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* What is being written: `used` of `room` bytes at `data`. Once `overflow` is set nothing more is written. */
struct np_nl_out {
    uint8_t *data;
    size_t room;
    size_t used;
    int overflow;
};

/* What is still to be read: `left` bytes at `data`. */
struct np_nl_in {
    const uint8_t *data;
    size_t left;
};

struct np_nl_message {
    uint16_t type;
    uint16_t flags;
    uint32_t seq;
    struct np_nl_in body;
};

/* `type` is without the NLA_F_NESTED and NLA_F_NET_BYTEORDER bits. */
struct np_nl_attribute {
    uint16_t type;
    struct np_nl_in value;
};

/* The next `size` bytes to write into, or NULL (and the overflow sticks) where they do not fit. `size` must be a multiple of 4. */
static inline uint8_t *np_nl_reserve(struct np_nl_out *out, size_t size)
{
    uint8_t *place = NULL;

    if (out->overflow || size > out->room - out->used) {
        out->overflow = 1;
        return NULL;
    }
    place = out->data + out->used;
    out->used += size;
    return place;
}

/* Takes the next attribute. Returns 1, 0 at the end, or -EBADMSG for a length that cannot be. */
static inline int np_nl_next_attribute(struct np_nl_in *in, struct np_nl_attribute *attribute)
{
    struct nlattr header;
    size_t step = 0;

    if (in->left == 0)
        return 0;
    if (in->left < sizeof(header))
        return -EBADMSG;
    memcpy(&header, in->data, sizeof(header));
    if (header.nla_len < sizeof(header) || header.nla_len > in->left)
        return -EBADMSG;
    attribute->type = (uint16_t)(header.nla_type & ~(unsigned int)(NLA_F_NESTED | NLA_F_NET_BYTEORDER));
    attribute->value.data = in->data + sizeof(header);
    attribute->value.left = header.nla_len - sizeof(header);
    step = (header.nla_len + 3U) & ~(size_t)3U;
    if (step > in->left)
        step = in->left;
    in->data += step;
    in->left -= step;
    return 1;
}

/* Copies a value of exactly `size` bytes. Returns 0 or -EBADMSG. */
static inline int np_nl_get(const struct np_nl_attribute *attribute, void *value, size_t size)
{
    if (attribute->value.left != size)
        return -EBADMSG;
    memcpy(value, attribute->value.data, size);
    return 0;
}

/* Reads 16 bits of network byte order into host byte order. Returns 0 or -EBADMSG. */
static inline int np_nl_get_be16(const struct np_nl_attribute *attribute, uint16_t *value)
{
    uint16_t network = 0;
    const int result = np_nl_get(attribute, &network, sizeof(network));

    *value = ntohs(network);
    return result;
}

/* Reads 32 bits of network byte order into host byte order. Returns 0 or -EBADMSG. */
static inline int np_nl_get_be32(const struct np_nl_attribute *attribute, uint32_t *value)
{
    uint32_t network = 0;
    const int result = np_nl_get(attribute, &network, sizeof(network));

    *value = ntohl(network);
    return result;
}

size_t np_nl_begin(struct np_nl_out *out, uint16_t type, uint16_t flags, uint32_t seq);
void np_nl_end(struct np_nl_out *out, size_t start);
size_t np_nl_nest(struct np_nl_out *out, uint16_t type);
void np_nl_unnest(struct np_nl_out *out, size_t start);
size_t np_nl_put(struct np_nl_out *out, uint16_t type, const void *value, size_t size);
size_t np_nl_put_u8(struct np_nl_out *out, uint16_t type, uint8_t value);
size_t np_nl_put_be16(struct np_nl_out *out, uint16_t type, uint16_t value);
size_t np_nl_put_be32(struct np_nl_out *out, uint16_t type, uint32_t value);
size_t np_nl_put_string(struct np_nl_out *out, uint16_t type, const char *value);

size_t np_nl_whole(const uint8_t *data, size_t size, size_t limit);
size_t np_nl_count(const uint8_t *data, size_t size);
int np_nl_next_message(struct np_nl_in *in, struct np_nl_message *message);
int np_nl_error(const struct np_nl_in *body);
int np_nl_is_left_over(const uint8_t *data, size_t size, uint32_t seq);
int np_nl_get_string(const struct np_nl_attribute *attribute, char *value, size_t room);

#endif
