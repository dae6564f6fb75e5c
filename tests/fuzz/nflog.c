/* NFLOG messages and the packets in them, which any pod may send (np_nflog_parse).
 *
 * Invariant: whatever a datagram or a packet holds, nothing is read outside it and no more packets are written than there is room for:
 * it is consumed or refused. A packet that was read is IPv4 or IPv6, and has ports or an ICMP type, not both. Of what is sent, every byte
 * was set. */
#include "fuzz.h"
#include "np_nflog.h"

#include <errno.h>
#include <linux/netlink.h>
#include <unistd.h>

enum { ROOM = 4, BUFFER = 65536 };

static void check_packet(const struct np_nflog_packet *packet)
{
    const int both = NP_NFLOG_PORTS | NP_NFLOG_ICMP;

    HOLDS(packet->family == 4 || packet->family == 6);
    HOLDS((packet->flags & both) != both);
    HOLDS(!(packet->flags & NP_NFLOG_FRAGMENT) || !(packet->flags & both));
}

int LLVMFuzzerInitialize(int *count, char ***arguments);

/* The messages that take a group, to a protocol that has no such thing: the kernel refuses them, and MemorySanitizer has looked at them. */
int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    struct np_nflog log = {.buffer = room(BUFFER), .room = BUFFER};

    (void)count;
    (void)arguments;
    HOLDS(np_nflog_open(&log, NETLINK_ROUTE, 1, 128, 10) == -EOPNOTSUPP);
    HOLDS(close(log.fd) == 0);
    free(log.buffer);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const uint8_t kind = take_byte(&in) % 3;
    const size_t left = in.left;
    uint8_t *block = take_block(&in, left);

    if (kind == 0) {
        struct np_nflog_batch batch = {
            .packets = room(ROOM * sizeof(*batch.packets)), .room = ROOM, .prefix = "netpol"};
        const int code = np_nflog_parse(block, left, &batch);

        HOLDS(code == 0 || code == -EBADMSG || code == -ENOSPC);
        HOLDS(batch.count <= ROOM);
        is_set(batch.packets, batch.count * sizeof(*batch.packets));
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
