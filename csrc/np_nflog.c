#include "np_nflog.h"
#include "np_nl.h"
#include "np_sys.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_log.h>
#include <linux/netlink.h>
#include <string.h>

enum {
    /* What the kernel may hold for us until it is read. */
    NP_RECEIVE_BUFFER = 1 << 20,
    /* Packets of one datagram at most, and the bytes that the kernel gathers them in. */
    NP_GATHER = 100,
    NP_GATHER_BYTES = 1 << 16,
    NP_SEQ = 1,
};

_Static_assert(sizeof(struct np_nflog_packet) == 56 && offsetof(struct np_nflog_packet, time) == 32,
               "a packet has no padding");
_Static_assert(sizeof(struct nfulnl_msg_config_mode) == 6, "the copy mode is 6 bytes");
_Static_assert(sizeof(struct nfulnl_msg_packet_timestamp) == 16, "a time stamp is 16 bytes");

/* Begins a configuration message for a group. Returns where it starts. */
static size_t begin(struct np_nl_out *out, uint16_t group, int flags)
{
    const struct nfgenmsg generic = {.nfgen_family = NFPROTO_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(group)};
    const size_t start =
        np_nl_begin(out, (uint16_t)(NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG), (uint16_t)flags, NP_SEQ);
    uint8_t *place = np_nl_reserve(out, sizeof(generic));

    if (place)
        memcpy(place, &generic, sizeof(generic));
    return start;
}

/* Writes the two messages that take a group: bind it; then what of each packet is copied, and when the kernel hands over what it
 * gathered. Both are answered. */
static void put_configuration(struct np_nl_out *out, uint16_t group, uint32_t copy, uint32_t delay)
{
    const struct nfulnl_msg_config_cmd bind = {.command = NFULNL_CFG_CMD_BIND};
    const struct nfulnl_msg_config_mode mode = {.copy_range = htonl(copy), .copy_mode = NFULNL_COPY_PACKET};
    size_t start = begin(out, group, NLM_F_ACK);

    np_nl_put(out, NFULA_CFG_CMD, &bind, sizeof(bind));
    np_nl_end(out, start);
    start = begin(out, group, NLM_F_ACK);
    np_nl_put(out, NFULA_CFG_MODE, &mode, sizeof(mode));
    np_nl_put_be32(out, NFULA_CFG_TIMEOUT, delay);
    np_nl_put_be32(out, NFULA_CFG_QTHRESH, NP_GATHER);
    np_nl_put_be32(out, NFULA_CFG_NLBUFSIZ, NP_GATHER_BYTES);
    np_nl_put_be16(out, NFULA_CFG_FLAGS, NFULNL_CFG_F_SEQ);
    np_nl_end(out, start);
}

/* Counts the acknowledgements numbered `seq` in one datagram; packets that came meanwhile are passed over. Returns how many there are,
 * or the first -errno that the kernel answered, or -EBADMSG. */
int np_nflog_parse_answers(const uint8_t *data, size_t size, uint32_t seq)
{
    struct np_nl_in in = {data, size};
    struct np_nl_message message;
    int result = 0, count = 0;

    while ((result = np_nl_next_message(&in, &message)) > 0) {
        int error = 0;

        if (message.type != NLMSG_ERROR || message.seq != seq)
            continue;
        error = np_nl_error(&message.body);
        if (error < 0)
            return error;
        count++;
    }
    return result < 0 ? result : count;
}

/* Opens a socket in the calling thread's network namespace and takes the group for it: `copy` bytes of each packet, handed over after
 * `delay` hundredths of a second at most. `protocol` is NETLINK_NETFILTER. The caller has set `buffer` and `room`, and closes `fd`,
 * also where this fails. Returns 0 or -errno: -EPERM when the group is somebody else's, too. */
int np_nflog_open(struct np_nflog *log, int protocol, uint16_t group, uint32_t copy, uint32_t delay)
{
    struct np_nl_out out = {.data = log->buffer, .room = log->room};
    int result = 0, answers = 0;

    log->fd = np_sys_netlink_open(protocol, &log->calls);
    if (log->fd < 0)
        return log->fd;
    result = np_sys_netlink_rcvbuf(log->fd, NP_RECEIVE_BUFFER, &log->calls);
    put_configuration(&out, group, copy, delay);
    if (result >= 0)
        result = out.overflow ? -ENOBUFS : np_sys_send(log->fd, out.data, out.used, &log->calls);
    /* Netlink answers within the call: both acknowledgements are there. */
    while (result >= 0 && answers < 2) {
        result = np_sys_recv(log->fd, log->buffer, log->room, 0, &log->calls);
        if (result >= 0)
            result = np_nflog_parse_answers(log->buffer, (size_t)result, NP_SEQ);
        if (result > 0)
            answers += result;
    }
    return result == -EAGAIN ? -ENODATA : result < 0 ? result : 0;
}

/* Receives one datagram, without waiting, into the batch. Returns 0, -ENODATA when there is none, -ENOBUFS when the kernel threw some
 * away since the last call, or another -errno. */
int np_nflog_receive(struct np_nflog *log, struct np_nflog_batch *batch)
{
    const int result = np_sys_recv(log->fd, log->buffer, log->room, 0, &log->calls);

    batch->count = 0;
    if (result == -EAGAIN)
        return -ENODATA;
    return result < 0 ? result : np_nflog_parse(log->buffer, (size_t)result, batch);
}
