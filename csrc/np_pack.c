#include "np_pack.h"

#include <errno.h>

/* The first byte of each of the other forms. */
enum {
    NP_FALSE = 0xc2,
    NP_TRUE = 0xc3,
    NP_BIN8 = 0xc4,
    NP_BIN32 = 0xc6,
    NP_UINT8 = 0xcc,
    NP_UINT64 = 0xcf,
    NP_INT8 = 0xd0,
    NP_INT64 = 0xd3,
    NP_STR8 = 0xd9,
    NP_STR32 = 0xdb,
    NP_ARRAY16 = 0xdc,
    NP_ARRAY32 = 0xdd,
    NP_MAP16 = 0xde,
    NP_MAP32 = 0xdf,
    NP_NEGATIVE = 0xe0
};

/* Makes this the reader's error, unless it has one. Nothing is left to read then. */
void np_pack_fail(struct np_pack *pack, int error)
{
    if (!pack->error)
        pack->error = error;
    pack->at = pack->end;
}

/* The next byte, which stays; -1 at the end. */
static int np_peek(const struct np_pack *pack)
{
    return pack->at < pack->end ? *pack->at : -1;
}

/* A number of 1, 2, 4 or 8 bytes, big-endian, behind the byte at `at`; both are consumed. */
static uint64_t np_number(struct np_pack *pack, unsigned size)
{
    uint64_t value = 0;

    if ((size_t)(pack->end - pack->at) < 1 + (size_t)size) {
        np_pack_fail(pack, -EPROTO);
        return 0;
    }
    for (unsigned i = 1; i <= size; i++)
        value = value << 8 | pack->at[i];
    pack->at += 1 + size;
    return value;
}

/* The number of members of a map or an array, in one of the two wide forms. */
static uint32_t np_members(struct np_pack *pack, int wide16, int wide32)
{
    int first = np_peek(pack);

    if (first == wide16 || first == wide32)
        return (uint32_t)np_number(pack, first == wide16 ? 2 : 4);
    np_pack_fail(pack, -EPROTO);
    return 0;
}

/* np_pack_map, of the wide forms. */
uint32_t np_pack_wide_map(struct np_pack *pack)
{
    return np_members(pack, NP_MAP16, NP_MAP32);
}

/* np_pack_array, of the wide forms. */
uint32_t np_pack_wide_array(struct np_pack *pack)
{
    return np_members(pack, NP_ARRAY16, NP_ARRAY32);
}

/* np_pack_int, of whatever form. */
int64_t np_pack_wide_int(struct np_pack *pack, int64_t low, int64_t high)
{
    int first = np_peek(pack);
    int64_t value = 0;

    if (first >= 0 && (first < NP_FIXMAP || first >= NP_NEGATIVE)) {
        pack->at++;
        value = (int8_t)first;
    } else if (first >= NP_UINT8 && first <= NP_UINT64) {
        uint64_t wide = np_number(pack, 1U << (first - NP_UINT8));

        if (wide > INT64_MAX) {
            np_pack_fail(pack, -ERANGE);
            return 0;
        }
        value = (int64_t)wide;
    } else if (first >= NP_INT8 && first <= NP_INT64) {
        unsigned size = 1U << (first - NP_INT8);
        uint64_t raw = np_number(pack, size);

        /* Sign extension by hand: from the top bit of the width. */
        value = (int64_t)(size < 8 && raw >> (8 * size - 1) ? raw | ~UINT64_C(0) << 8 * size : raw);
    } else {
        np_pack_fail(pack, -EPROTO);
        return 0;
    }
    if (pack->error || value < low || value > high) {
        np_pack_fail(pack, -ERANGE);
        return 0;
    }
    return value;
}

/* A boolean: 0 or 1. */
int np_pack_bool(struct np_pack *pack)
{
    int first = np_peek(pack);

    if (first != NP_FALSE && first != NP_TRUE) {
        np_pack_fail(pack, -EPROTO);
        return 0;
    }
    pack->at++;
    return first == NP_TRUE;
}

/* np_pack_text, of whatever form. */
struct np_pack_text np_pack_wide_text(struct np_pack *pack)
{
    int first = np_peek(pack);
    struct np_pack_text text = {0};

    if (first >= NP_FIXSTR && first < NP_NIL) {
        pack->at++;
        text.size = (uint32_t)first & 31;
    } else if (first >= NP_STR8 && first <= NP_STR32) {
        text.size = (uint32_t)np_number(pack, 1U << (first - NP_STR8));
    } else if (first >= NP_BIN8 && first <= NP_BIN32) {
        text.size = (uint32_t)np_number(pack, 1U << (first - NP_BIN8));
    } else {
        np_pack_fail(pack, -EPROTO);
    }
    if (text.size > (size_t)(pack->end - pack->at)) {
        np_pack_fail(pack, -EPROTO);
        text.size = 0;
    }
    text.at = pack->at;
    pack->at += text.size;
    return text;
}
