/* ipset's answers, errors and dumps (np_ipset_parse, np_nl), and what we send (np_ipset).
 *
 * Invariant: whatever a datagram holds, nothing is read outside it and nothing written outside the caller's room: it is consumed or
 * refused. Names end inside their room; members are whole ones. Of what we write, every byte was set, and every message and attribute is
 * read back whole: read(write(x)) consumes all of it. */
#include "fuzz.h"
#include "np_ipset.h"
#include "np_nl.h"

#include <errno.h>

enum { HEADERS = 4, MEMBERS = 256, RECORDS = 2, BUFFER = 1 << 17, GUARD = 0x5a5a5a5a };

static void check_dump(struct input *in, int kind)
{
    static const uint8_t key[16] = "a key of 16 byte";
    const size_t size = in->left;
    uint8_t *datagram = take_block(in, size);
    struct np_ipset_dump dump = {.seq = 77, .prefix = "NETPOL-", .key = key, .only = kind == 2 ? NP_IPSET_NAMES : 0};

    dump.headers = kind == 1 ? NULL : room(HEADERS * sizeof(*dump.headers));
    dump.header_room = dump.headers ? HEADERS : 0;
    dump.members = kind == 0 ? room(MEMBERS) : NULL;
    dump.member_room = dump.members ? MEMBERS : 0;
    dump.records = kind == 1 ? room(RECORDS * sizeof(*dump.records)) : NULL;
    dump.record_room = dump.records ? RECORDS : 0;
    np_ipset_parse_dump(datagram, size, &dump);
    HOLDS(dump.header_count <= dump.header_room && dump.member_size <= dump.member_room &&
          dump.record_count <= dump.record_room);
    HOLDS(memchr(dump.set.name, 0, sizeof(dump.set.name)) && memchr(dump.set.type, 0, sizeof(dump.set.type)));
    is_set(dump.headers, dump.header_count * sizeof(*dump.headers));
    is_set(dump.members, dump.member_size);
    for (size_t i = 0; i < dump.header_count; i++)
        HOLDS(dump.headers[i].name[0] && memchr(dump.headers[i].name, 0, 32) && memchr(dump.headers[i].type, 0, 32));
    for (size_t i = 0; i < dump.record_count; i++)
        HOLDS(strncmp(dump.records[i].header.name, "NETPOL-", 7) == 0);
    free(dump.headers);
    free(dump.members);
    free(dump.records);
    free(datagram);
}

static void check_answers(struct input *in)
{
    const size_t size = in->left;
    uint8_t *datagram = take_block(in, size);
    uint32_t numbers[4] = {0, 0, 0, GUARD};
    struct np_ipset_outcome outcome = {.first = 77, .commands = 3, .numbers = numbers};
    const int code = np_ipset_parse_answers(datagram, size, &outcome);
    const int version = np_ipset_parse_version(datagram, size, 77);

    HOLDS(code == 0 || code == -EBADMSG);
    HOLDS(outcome.failures == 0 || (outcome.code > 0 && outcome.command < 3));
    HOLDS(version <= UINT8_MAX);
    for (int i = 0; i < 3; i++)
        HOLDS(numbers[i] <= UINT16_MAX + 1U);
    HOLDS(numbers[3] == GUARD);
    np_nl_is_left_over(datagram, size, 77);
    HOLDS(np_nl_whole(datagram, size, 64) <= size);
    free(datagram);
}

/* Reads attributes to their ends, nested ones of an ipset message (7: data, 8: the list) as well. */
static void read_whole(struct np_nl_in in, int depth)
{
    struct np_nl_attribute attribute;
    int result;

    while ((result = np_nl_next_attribute(&in, &attribute)) > 0)
        if (depth < 2 && (attribute.type == 7 || attribute.type == 8))
            read_whole(attribute.value, depth + 1);
    HOLDS(result == 0);
}

static void check_written(struct input *in)
{
    struct np_ipset ipset = {.buffer = room(BUFFER), .room = BUFFER, .limit = BUFFER, .fd = -1};
    const int kind = take_byte(in) % 4, family = take_byte(in) & 1 ? 6 : 4;
    const int width = np_ipset_width(kind, family), command = take_byte(in) & 1 ? NP_IPSET_ADD : NP_IPSET_DELETE;
    struct np_buckets buckets = {.count = 1U << take_byte(in) % 9, .initval = take_byte(in)};
    const int ordered = take_byte(in) & 1 && kind < 3;
    char *name = zeros(17);
    uint8_t *members, *scratch;
    size_t size;

    take(in, name, 16);
    size = in->left < 65536 ? in->left / (size_t)width * (size_t)width : 0;
    members = take_block(in, size);
    scratch = room(2 * size);
    HOLDS(np_ipset_create(&ipset, 1, name, "hash:ip", 4, family, 64, 65536, buckets.initval) == 0);
    HOLDS(np_ipset_create_bitmap(&ipset, 1, name, 0, (const uint8_t *)name, width) == 0);
    buckets.room = room((size / (size_t)width + buckets.count) * sizeof(uint32_t));
    HOLDS(np_ipset_members(&ipset, 2, command, name, kind, family, members, size,
                           kind == 0 && family == 4 ? scratch : NULL, ordered ? &buckets : NULL) <= 0);
    HOLDS(np_ipset_ask_number(&ipset, 1, name) == 0);
    HOLDS(np_ipset_swap(&ipset, 3, name, "other") == 0 && np_ipset_destroy(&ipset, 4, name) == 0);
    {
        struct np_nl_in read = {ipset.buffer, ipset.used};
        struct np_nl_message message;
        int result;

        is_set(ipset.buffer, ipset.used);
        while ((result = np_nl_next_message(&read, &message)) > 0) {
            message.body.data += 4;
            message.body.left -= 4;
            read_whole(message.body, 0);
        }
        HOLDS(result == 0);
    }
    free(ipset.buffer);
    free(name);
    free(members);
    free(scratch);
    free(buckets.room);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in) % 5;

    if (kind < 3)
        check_dump(&in, kind);
    else if (kind == 3)
        check_answers(&in);
    else
        check_written(&in);
    return 0;
}
