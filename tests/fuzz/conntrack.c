/* ctnetlink's dumps and answers (np_ct_parse), what we send it (np_ct), the kernel's list of entries (np_ct_text), and flows that are
 * judged (np_judge).
 *
 * Invariant: whatever a datagram holds, nothing is read outside it and no more flows are written than there is room for: it is consumed
 * or refused. Of what we send, every byte was set, and all of it are messages of whole attributes. An index of rules that np_judge_index takes judges every flow within its own arrays, and the verdict is one of three;
 * one that points elsewhere is refused. */
#include "fuzz.h"
#include "np_ct.h"
#include "np_judge.h"
#include "np_nl.h"

#include <errno.h>
#include <unistd.h>

enum { FLOWS = 4, SENT = 4096 };

static void check_dump(struct input *in)
{
    static const uint8_t ends4[] = {10, 0, 0, 1, 10, 0, 0, 2, 10, 0, 0, 9}, ends6[16] = {0xfd};
    struct np_ct_dump dump = {.room = FLOWS, .ends4 = ends4, .ends6 = ends6, .count4 = 3, .count6 = 1, .seq = 77};
    size_t size;
    uint8_t *datagram;

    dump.bits = take_byte(in);
    dump.counted = ~dump.bits;
    dump.flags = dump.bits & 1 ? NP_CT_EACH : 0;
    dump.flows = room(FLOWS * sizeof(*dump.flows));
    size = in->left;
    datagram = take_block(in, size);
    np_ct_parse_dump(datagram, size, &dump);
    HOLDS(dump.count <= dump.room && dump.count <= dump.seen && dump.marked <= dump.seen);
    HOLDS(dump.gone == 0 || dump.flags & NP_CT_EACH);
    is_set(dump.flows, dump.count * sizeof(*dump.flows));
    for (size_t i = 0; i < dump.count; i++)
        HOLDS(dump.flows[i].first.family == 4 || dump.flows[i].first.family == 6);
    free(dump.flows);
    free(datagram);
}

static void check_list(struct input *in)
{
    static const uint8_t ends4[] = {10, 0, 0, 1}, ends6[16] = {0xfd};
    struct np_ct_dump dump = {.room = FLOWS, .ends4 = ends4, .ends6 = ends6, .count4 = 1, .count6 = 1, .bits = 4};
    const size_t size = in->left;
    char *text = take_block(in, size);
    int code;

    dump.flows = room(FLOWS * sizeof(*dump.flows));
    code = np_ct_parse_list(text, size, &dump);
    HOLDS(code == 0 || code == -EBADMSG || (code == -ENOSPC && dump.count == FLOWS));
    HOLDS(dump.count <= dump.room && dump.count <= dump.seen);
    is_set(dump.flows, dump.count * sizeof(*dump.flows));
    for (size_t i = 0; i < dump.count; i++)
        HOLDS((dump.flows[i].first.family == 4 || dump.flows[i].first.family == 6) && dump.flows[i].mark == 0);
    free(dump.flows);
    free(text);
}

static void check_answers(struct input *in)
{
    struct np_ct_outcome outcome = {.first = 77, .count = 3};
    const size_t size = in->left;
    uint8_t *datagram = take_block(in, size);
    uint32_t entries = 0;
    const int code = np_ct_parse_answers(datagram, size, &outcome);

    HOLDS(code == 0 || code == -EBADMSG);
    HOLDS(outcome.failures == 0 || (outcome.code > 0 && outcome.failed < 3));
    HOLDS(np_ct_parse_entries(datagram, size, 77, &entries) <= 0);
    free(datagram);
}

static void check_judge(struct input *in)
{
    struct np_judge judge = {0};
    struct np_judge_set set = {0};
    struct np_ct_flow *flows;
    uint8_t verdicts[FLOWS];
    int indexed;

    set.is_net = take_byte(in) & 1;
    set.has_port = take_byte(in) & 1;
    set.width = take_byte(in);
    set.record = take_byte(in);
    set.count = take_byte(in) % 8;
    set.slot_count = take_byte(in) % 32;
    set.slots = zeros(set.slot_count * sizeof(*set.slots));
    set.members = take_block(in, set.count * set.record);
    judge.set_count = 1;
    judge.sets = &set;
    judge.rule_count = take_byte(in) % 4;
    judge.class_count = take_byte(in) % 4;
    judge.end_count = take_byte(in) % 4;
    judge.range_count = take_byte(in) % 3;
    judge.port_count = take_byte(in) % 8;
    judge.families = take_byte(in);
    judge.slot_count = take_byte(in) % 32;
    judge.slots = zeros(judge.slot_count * sizeof(*judge.slots));
    judge.rules = take_block(in, judge.rule_count * sizeof(*judge.rules));
    judge.classes = take_block(in, judge.class_count * sizeof(*judge.classes));
    judge.ends = take_block(in, judge.end_count * sizeof(*judge.ends));
    judge.ranges = take_block(in, judge.range_count * sizeof(*judge.ranges));
    judge.ports = take_block(in, judge.port_count * sizeof(*judge.ports));
    flows = take_block(in, FLOWS * sizeof(*flows));
    indexed = np_judge_index_set(&set) == 0 && np_judge_index(&judge) == 0;
    if (indexed) {
        const size_t kept = np_judge_sort(&judge, flows, FLOWS, 1, verdicts);

        HOLDS(kept <= FLOWS);
        for (size_t i = 0; i < kept; i++)
            HOLDS(verdicts[i] <= NP_JUDGE_ASK);
    }
    free(set.slots);
    free((void *)set.members);
    free(judge.slots);
    free((void *)judge.rules);
    free((void *)judge.classes);
    free((void *)judge.ends);
    free((void *)judge.ranges);
    free((void *)judge.ports);
    free(flows);
}

/* Reads what waits at `fd`: messages to their ends, with their attributes behind a header of 4 bytes, except in one for nobody.
 * Returns how many there were. */
static uint32_t read_sent(int fd)
{
    uint8_t *datagram = room(SENT);
    const ssize_t size = recv(fd, datagram, SENT, MSG_DONTWAIT);
    struct np_nl_in in = {datagram, size < 0 ? 0 : (size_t)size};
    struct np_nl_message message;
    uint32_t count = 0;
    int result;

    while ((result = np_nl_next_message(&in, &message)) > 0) {
        struct np_nl_attribute attribute;
        struct np_nl_in body = message.body;

        count++;
        if (message.type == NLMSG_NOOP)
            continue;
        HOLDS(body.left >= 4);
        body.data += 4;
        body.left -= 4;
        while ((result = np_nl_next_attribute(&body, &attribute)) > 0)
            continue;
        HOLDS(result == 0);
    }
    HOLDS(result == 0);
    free(datagram);
    return count;
}

/* MemorySanitizer looks at what is sent when it is. */
static void check_sent(struct input *in)
{
    struct np_ct_outcome outcome = {.first = 77, .count = FLOWS};
    struct np_ct_dump dump = {.seq = 77, .flags = NP_CT_EACH};
    struct np_ct ct = {.buffer = room(SENT), .room = SENT};
    struct np_ct_flow *flows = zeros(FLOWS * sizeof(*flows));
    const int which = take_byte(in) % 4, family = take_byte(in) & 1 && which != 1 && which != 2 ? 6 : 4;
    uint8_t address[4];
    int ends[2];

    take(in, address, sizeof(address));
    for (int i = 0; i < FLOWS; i++) {
        take(in, &flows[i], sizeof(*flows));
        flows[i].first.family = flows[i].first.family & 1 ? 6 : 4;
    }
    connected(ends);
    ct.fd = ends[0];
    HOLDS(np_ct_list(&ct, 77, family, which, address, 1) == 0 && read_sent(ends[1]) == 1);
    HOLDS(np_ct_get(&ct, flows, FLOWS, &dump) == -ENODATA && read_sent(ends[1]) == FLOWS);
    HOLDS(np_ct_update(&ct, flows, 1, 1, &outcome) == -ENODATA && read_sent(ends[1]) == FLOWS + 1);
    HOLDS(close(ends[0]) == 0 && close(ends[1]) == 0);
    free(ct.buffer);
    free(flows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in) % 5;

    if (kind == 0)
        check_dump(&in);
    else if (kind == 1)
        check_answers(&in);
    else if (kind == 3)
        check_sent(&in);
    else if (kind == 4)
        check_list(&in);
    else
        check_judge(&in);
    return 0;
}
