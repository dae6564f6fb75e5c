/* Rules as MessagePack (np_pack, np_xt_encode, np_xt_match).
 *
 * Invariant: whatever the bytes are, nothing is read outside them and nothing written outside the room: they are encoded or refused, with
 * one of five errors and a field inside the input. What is encoded stands chain after chain, its open verdicts are standard targets of
 * its own, and the reader of tables finds in it as many entries as were counted (but for opaque extensions, whose form is their own). */
#define _GNU_SOURCE
#include "fuzz.h"
#include "np_xt_encode.h"

#include <errno.h>

enum { DATA = 8192, PLACES = 16 };

static const struct np_xt_set SETS[] = {{"NETPOL-a", 1}, {"NETPOL-b", 7}, {"somebody's", 65534}};

/* The verdict at `at` of a chain ends an entry whose target is a standard one. */
static int is_open_verdict(const uint8_t *chain, const struct np_xt_chain *place, const struct np_xt_sizes *sizes,
                           uint32_t at)
{
    for (uint32_t offset = 0; offset < place->size;) {
        uint16_t ends[2], target;

        HOLDS(place->size - offset >= sizes->entry);
        memcpy(ends, chain + offset + sizes->target_offset_at, sizeof(ends));
        HOLDS(ends[1] >= sizes->entry && ends[1] <= place->size - offset && ends[0] + 32U <= ends[1]);
        memcpy(&target, chain + offset + ends[0], sizeof(target));
        if (offset + ends[0] + 32U == at)
            return target == 40 && ends[0] + 40U == ends[1] && chain[offset + ends[0] + 2] == 0;
        offset += ends[1];
    }
    return 0;
}

/* The chain that holds this byte of the output. */
static const struct np_xt_chain *chain_at(const struct np_xt_encoding *out, uint32_t at)
{
    for (uint32_t i = 0; i < out->chain_count; i++)
        if (at >= out->chains[i].offset && at - out->chains[i].offset < out->chains[i].size)
            return &out->chains[i];
    HOLDS(0);
    return NULL;
}

/* The targets are names, each with its end, as many as there are jumps that go to a chain, in their order. */
static void check_targets(const struct np_xt_encoding *out)
{
    uint32_t size = 0, count = 0;

    for (uint32_t i = 0; i < out->jump_count; i++)
        if (out->jumps[i].chain >= 0) {
            const size_t length = strnlen(out->targets + size, out->target_size - size);

            HOLDS(out->jumps[i].chain == (int32_t)count++ && length && length < NP_XT_NAME);
            size += (uint32_t)length + 1;
        }
    HOLDS(count == out->target_count && size == out->target_size);
}

static void check_chains(const uint8_t *packed, size_t size, const struct np_xt_encoding *out)
{
    struct np_xt_sizes sizes;
    uint32_t at = 0, entries = 0;
    uint8_t *copy = room(out->data_size);
    int count;

    HOLDS(np_xt_sizes(out->family, &sizes) == 0);
    for (uint32_t i = 0; i < out->chain_count; i++) {
        HOLDS(out->chains[i].offset == at && out->chains[i].first == entries);
        HOLDS(out->chains[i].name[0] && memchr(out->chains[i].name, 0, 32));
        at += out->chains[i].size;
        entries += out->chains[i].entries;
    }
    HOLDS(at == out->data_size);
    for (uint32_t i = 0; i < out->jump_count; i++) {
        const struct np_xt_chain *chain = chain_at(out, out->jumps[i].at);

        HOLDS(i == 0 || out->jumps[i].at > out->jumps[i - 1].at);
        HOLDS(is_open_verdict(out->data + chain->offset, chain, &sizes, out->jumps[i].at - chain->offset));
        HOLDS(out->jumps[i].entry >= chain->offset && out->jumps[i].entry < out->jumps[i].at);
    }
    check_targets(out);
    memcpy(copy, out->data, out->data_size);
    count = np_xt_normalise(copy, out->data_size, out->family, NULL, SIZE_MAX);
    HOLDS(count == (int)entries || (count < 0 && memmem(packed, size, "Opaque", 6)));
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in);
    const size_t left = in.left, most = kind & 8 ? 700 : DATA;
    uint8_t *packed = take_block(&in, left);
    struct np_xt_encoding out = {.sets = SETS, .set_count = 3, .family = kind & 1 ? 6 : 4, .data_room = most};
    const uint32_t places = kind & 8 ? 2 : PLACES;
    int code;

    out.data = room(most);
    out.chains = room(places * sizeof(*out.chains));
    out.jumps = room(places * sizeof(*out.jumps));
    out.targets = room(places * (size_t)NP_XT_NAME);
    out.chain_room = out.jump_room = places;
    code = (kind & 6) == 2   ? np_xt_encode_match(packed, left, &out)
           : (kind & 6) == 4 ? np_xt_encode_target(packed, left, &out)
                             : np_xt_encode(packed, left, &out);
    HOLDS(code == 0 || code == -ENOBUFS || code == -ENOENT || code == -ERANGE || code == -EPROTO);
    HOLDS(out.data_size <= most && out.chain_count <= places && out.jump_count <= places);
    HOLDS(out.target_count <= places && out.target_size <= places * NP_XT_NAME);
    HOLDS(out.field <= left && out.field_size <= left - out.field);
    if (code == 0) {
        is_set(out.data, out.data_size);
        is_set(out.chains, out.chain_count * sizeof(*out.chains));
        is_set(out.jumps, out.jump_count * sizeof(*out.jumps));
        is_set(out.targets, out.target_size);
    }
    HOLDS(np_xt_count(packed, left) <= (int)left);
    if (code == 0 && (kind & 6) != 2 && (kind & 6) != 4)
        check_chains(packed, left, &out);
    free(out.data);
    free(out.chains);
    free(out.jumps);
    free(out.targets);
    free(packed);
    return 0;
}
