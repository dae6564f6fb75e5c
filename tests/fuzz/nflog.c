/* NFLOG messages and the packets in them, which any pod may send (np_nflog_parse).
 *
 * Invariant: whatever a datagram or a packet holds, nothing is read outside it and no more packets are written than there is room for:
 * it is consumed or refused. A packet that was read is IPv4 or IPv6, and has ports or an ICMP type, not both. */
#include "fuzz.h"
#include "np_nflog.h"

#include <errno.h>

enum { ROOM = 4 };

static void check_packet(const struct np_nflog_packet *packet)
{
    const int both = NP_NFLOG_PORTS | NP_NFLOG_ICMP;

    HOLDS(packet->family == 4 || packet->family == 6);
    HOLDS((packet->flags & both) != both);
    HOLDS(!(packet->flags & NP_NFLOG_FRAGMENT) || !(packet->flags & both));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in) % 3;
    const size_t left = in.left;
    uint8_t *block = take_block(&in, left);

    if (kind == 0) {
        struct np_nflog_batch batch = {
            .packets = zeros(ROOM * sizeof(*batch.packets)), .room = ROOM, .prefix = "netpol"};
        const int code = np_nflog_parse(block, left, &batch);

        HOLDS(code == 0 || code == -EBADMSG || code == -ENOSPC);
        HOLDS(batch.count <= ROOM);
        for (size_t i = 0; i < batch.count; i++)
            check_packet(&batch.packets[i]);
        free(batch.packets);
    } else if (kind == 1) {
        struct np_nflog_packet packet = {.family = 0};

        if (np_nflog_packet(block, left, &packet) == 0)
            check_packet(&packet);
    } else {
        HOLDS(np_nflog_parse_answers(block, left, 1) <= (int)(left / 16));
    }
    free(block);
    return 0;
}
