#include "np_xt_put.h"

#include <linux/netfilter/x_tables.h>
#include <string.h>

_Static_assert(sizeof(struct np_xt_set) == 34, "as the caller packs it");
_Static_assert(NP_XT_NAME == XT_EXTENSION_MAXNAMELEN, "names of chains");

/* Copies a text of at most `most` bytes, without a NUL in it, to where there are that many zeros and one more; else -ERANGE. */
void np_xt_copy_text(struct np_pack *pack, void *to, size_t most)
{
    struct np_pack_text text = np_pack_text(pack);

    if (text.size > most || memchr(text.at, 0, text.size))
        np_pack_fail(pack, -ERANGE);
    else
        memcpy(to, text.at, text.size);
}

/* Enters the map of a value of several classes: the name of its class, and how many fields follow. */
struct np_pack_text np_xt_kind(struct np_pack *pack, uint32_t *fields)
{
    struct np_pack_text kind = {.at = pack->end};
    uint32_t count = np_pack_map(pack);

    *fields = count ? count - 1 : 0;
    if (!count || !np_pack_key(pack) || !np_pack_is(pack, "kind"))
        np_pack_fail(pack, -EPROTO);
    else
        kind = np_pack_text(pack);
    return kind;
}

/* A match or target that is kept as its bytes. */
void np_xt_read_opaque(struct np_pack *pack, uint32_t fields, struct np_xt_payload *opaque)
{
    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "name"))
            np_xt_copy_text(pack, opaque->name, XT_EXTENSION_MAXNAMELEN - 1);
        else if (np_pack_is(pack, "revision"))
            opaque->revision = (uint8_t)np_pack_int(pack, 0, UINT8_MAX);
        else if (np_pack_is(pack, "data"))
            opaque->data = np_pack_text(pack);
        else
            np_pack_fail(pack, -EPROTO);
}

/* Writes a match or target: header and data, filled up to the kernel's alignment. `name` has at most 28 characters. */
void np_xt_put(struct np_pack *pack, struct np_xt_encoding *out, const char *name, uint8_t revision, const void *data,
               size_t size)
{
    const size_t head = sizeof(struct xt_entry_match), whole = head + XT_ALIGN(size);
    uint16_t length = (uint16_t)whole;
    uint8_t *at;

    if (whole > UINT16_MAX) {
        np_pack_fail(pack, -ERANGE);
        return;
    }
    at = np_xt_reserve(pack, out, whole);
    if (!at)
        return;
    /* In place: a header that is put together elsewhere is read back before it is all there, which stalls. */
    memset(at, 0, head);
    memcpy(at + offsetof(struct xt_entry_match, u.user.match_size), &length, sizeof(length));
    memcpy(at + offsetof(struct xt_entry_match, u.user.name), name, strlen(name) + 1);
    at[offsetof(struct xt_entry_match, u.user.revision)] = revision;
    memcpy(at + head, data, size);
    memset(at + head + size, 0, whole - head - size);
}
