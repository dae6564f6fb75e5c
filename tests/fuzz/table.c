/* Table blobs from the kernel (np_xt).
 *
 * Invariant: whatever the bytes are, np_xt_split, _normalise, _link, _users and _carry read and write nothing outside them; they consume
 * all or refuse. What is split covers the blob, chain after chain, with its jumps in order and inside of it, and
 * link(split(x)) = x; carrying a table's counters to itself finds every chain the same; normalise(normalise(x)) = normalise(x). */
#include "fuzz.h"
#include "np_xt.h"

#include <linux/netfilter/x_tables.h>

enum { ROOM = 64 };

/* No chain matches none of the sets; one that matches an even or an odd one matches one of all. */
static void check_users(const struct np_xt_view *view, int family, uint8_t *users)
{
    uint8_t *sets = zeros(8192), *even = zeros(ROOM), *odd = zeros(ROOM);

    HOLDS(np_xt_users(view->blob, view->size, family, view->chains, view->chain_count, sets, users) == 0);
    for (uint32_t i = 0; i < view->chain_count; i++)
        HOLDS(!users[i]);
    memset(sets, 0x55, 8192);
    HOLDS(np_xt_users(view->blob, view->size, family, view->chains, view->chain_count, sets, even) == 0);
    memset(sets, 0xaa, 8192);
    HOLDS(np_xt_users(view->blob, view->size, family, view->chains, view->chain_count, sets, odd) == 0);
    memset(sets, 0xff, 8192);
    HOLDS(np_xt_users(view->blob, view->size, family, view->chains, view->chain_count, sets, users) == 0);
    for (uint32_t i = 0; i < view->chain_count; i++)
        HOLDS(users[i] == (even[i] | odd[i]));
    free(sets);
    free(even);
    free(odd);
}

static void check_split(const uint8_t *blob, size_t size, int family, const struct np_xt_table *table)
{
    struct np_xt_chain *chains = room(ROOM * sizeof(*chains));
    struct np_xt_jump *jumps = room(ROOM * sizeof(*jumps));
    struct np_xt_sizes sizes;
    uint32_t jump_count = 0, where = 0, at = 0;
    const int count = np_xt_split(blob, size, family, table, chains, ROOM, jumps, ROOM, &jump_count, &where);

    HOLDS(where <= size && np_xt_sizes(family, &sizes) == 0);
    if (count >= 0) {
        struct np_xt_table linked;
        uint8_t *copy = room(size), *carried = zeros((size_t)table->entries * sizeof(struct xt_counters));
        uint8_t *counters = zeros((size_t)table->entries * sizeof(struct xt_counters)), *same = zeros(ROOM);
        int32_t same_number[ROOM];
        const struct np_xt_view view = {blob,       chains,        jumps, (uint32_t)size, (uint32_t)count,
                                        jump_count, table->entries};

        for (int i = 0; i < count; i++) {
            HOLDS(chains[i].offset == at && chains[i].size <= size - at);
            at += chains[i].size;
            same_number[i] = i;
        }
        HOLDS(size - at == sizes.head);
        for (uint32_t i = 0; i < jump_count; i++)
            HOLDS(jumps[i].at + 8 <= size && (i == 0 || jumps[i].at > jumps[i - 1].at) && jumps[i].chain < count);
        memcpy(copy, blob, size);
        HOLDS(np_xt_link(copy, size, family, chains, (size_t)count, jumps, jump_count, &linked) == 0);
        HOLDS(memcmp(copy, blob, size) == 0);
        is_set(&linked, sizeof(linked));
        HOLDS(linked.entries == table->entries && linked.valid_hooks == table->valid_hooks);
        HOLDS(np_xt_carry(&view, &view, same_number, counters, carried, same) == count);
        check_users(&view, family, same);
        free(copy);
        free(carried);
        free(counters);
        free(same);
    }
    free(chains);
    free(jumps);
}

static void check_normalise(uint8_t *blob, size_t size, int family)
{
    uint8_t *counters = room(ROOM * sizeof(struct xt_counters)), *once = room(size);
    const int count = np_xt_normalise(blob, size, family, counters, ROOM);

    if (count >= 0) {
        memcpy(once, blob, size);
        HOLDS(count <= ROOM && np_xt_normalise(blob, size, family, NULL, ROOM) == count &&
              memcmp(once, blob, size) == 0);
    }
    free(counters);
    free(once);
}

/* Jumps, chains and places that no split made: nothing outside is touched all the same. */
static void check_link(struct input *in, int family)
{
    const size_t chain_count = take_byte(in) % 4, jump_count = take_byte(in) % 4;
    struct np_xt_chain *chains = take_block(in, chain_count * sizeof(*chains));
    struct np_xt_jump *jumps = take_block(in, jump_count * sizeof(*jumps)), *moved = room(2 * sizeof(*moved));
    int32_t *renumber = take_block(in, 4 * sizeof(*renumber));
    uint8_t *sets = zeros(8192), *users = zeros(4);
    struct np_xt_table table;
    const size_t size = in->left;
    uint8_t *blob = take_block(in, size);

    np_xt_users(blob, size, family, chains, chain_count, sets, users);
    np_xt_link(blob, size, family, chains, chain_count, jumps, jump_count, &table);
    HOLDS(np_xt_relocate(jumps, jump_count, 8, 4096, 0, renumber, 4, moved, 2) <= 2);
    free(chains);
    free(jumps);
    free(moved);
    free(renumber);
    free(sets);
    free(users);
    free(blob);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in);
    const int family = kind & 1 ? 6 : 4;

    if (kind & 2) {
        check_link(&in, family);
    } else {
        struct np_xt_table table;
        uint8_t *blob;
        size_t left;

        take(&in, &table, sizeof(table));
        /* As many entries as the kernel said there were: the room for their counters. */
        table.entries %= 4096;
        left = in.left;
        blob = take_block(&in, left);
        check_split(blob, left, family, &table);
        check_normalise(blob, left, family);
        free(blob);
    }
    return 0;
}
