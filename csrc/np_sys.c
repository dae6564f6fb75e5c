#define _GNU_SOURCE
#include "np_sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <linux/netlink.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* A call interrupted this often in a row is given up with -EINTR: the caller may be asked to stop. */
enum { NP_MAX_EINTR = 64 };

/* Evaluates a call until it is not interrupted, counting each try; the value is >= 0 or -errno. */
#define NP_RETRY(result, calls, call)                                          \
    do {                                                                       \
        int np_tries = 0;                                                      \
        do {                                                                   \
            (*(calls))++;                                                      \
            (result) = (call);                                                 \
        } while ((result) < 0 && errno == EINTR && ++np_tries < NP_MAX_EINTR); \
        if ((result) < 0)                                                      \
            (result) = -errno;                                                 \
    } while (0)

/* A netlink socket of that protocol (NETLINK_NETFILTER ...), close-on-exec, with short error messages (NETLINK_CAP_ACK) where the kernel has
 * them. It is connected to the kernel, which gives it a number as bind does: other processes that send to that number are refused, where
 * a socket that is only bound would take their messages for the kernel's. Returns the descriptor or -errno. */
int np_sys_netlink_open(int protocol, uint64_t *calls)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    int on = 1, fd = -1, result = 0;

    NP_RETRY(fd, calls, socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
    if (fd < 0)
        return fd;
    NP_RETRY(result, calls, connect(fd, (struct sockaddr *)&address, sizeof(address)));
    if (result < 0)
        goto fail;
    NP_RETRY(result, calls, setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on)));
    if (result < 0 && result != -ENOPROTOOPT)
        goto fail;
    return fd;
fail:
    (*calls)++;
    close(fd);
    return result;
}

/* Makes room for larger sends: forced where the process may, else within the administrator's limit. */
int np_sys_netlink_sndbuf(int fd, int bytes, uint64_t *calls)
{
    int result = 0;

    NP_RETRY(result, calls, setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)));
    if (result < 0)
        NP_RETRY(result, calls, setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)));
    return result;
}

/* Makes room for more answers that wait to be received: forced where the process may, else within the administrator's limit. */
int np_sys_netlink_rcvbuf(int fd, int bytes, uint64_t *calls)
{
    int result = 0;

    NP_RETRY(result, calls, setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)));
    if (result < 0)
        NP_RETRY(result, calls, setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)));
    return result;
}

/* Sends one buffer to the kernel. Returns its size or -errno (-EMSGSIZE: retry with fewer messages). */
int np_sys_send(int fd, const uint8_t *data, size_t size, uint64_t *calls)
{
    ssize_t result = 0;

    NP_RETRY(result, calls, send(fd, data, size, 0));
    return (int)result;
}

/* Receives one datagram, waiting for it when `wait` is not 0. Returns its size, -EAGAIN when there is none,
 * -EMSGSIZE when it did not fit (it is lost then), or another -errno. */
int np_sys_recv(int fd, uint8_t *data, size_t size, int wait, uint64_t *calls)
{
    ssize_t result = 0;

    NP_RETRY(result, calls, recv(fd, data, size, MSG_TRUNC | (wait ? 0 : MSG_DONTWAIT)));
    if (result > 0 && (size_t)result > size)
        return -EMSGSIZE;
    return (int)result;
}

/* Receives the datagrams that are there, `most` of them at most (NP_DATAGRAMS are the most there can be), in one system call: each at the
 * next multiple of `each` bytes in `data`, its size in `sizes`. Returns how many, -EAGAIN when there is none, -EMSGSIZE when one did not
 * fit (all of them are lost then), or another -errno. */
int np_sys_recv_many(int fd, uint8_t *data, size_t each, int most, uint32_t *sizes, uint64_t *calls)
{
    struct mmsghdr messages[NP_DATAGRAMS];
    struct iovec places[NP_DATAGRAMS];
    int result = 0;

    if (most < 1 || most > NP_DATAGRAMS)
        return -EINVAL;
    for (int i = 0; i < most; i++) {
        places[i] = (struct iovec){.iov_base = data + (size_t)i * each, .iov_len = each};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &places[i], .msg_iovlen = 1}};
    }
    NP_RETRY(result, calls, recvmmsg(fd, messages, (unsigned int)most, MSG_TRUNC | MSG_DONTWAIT, NULL));
    for (int i = 0; i < result; i++) {
        if (messages[i].msg_len > each)
            return -EMSGSIZE;
        sizes[i] = messages[i].msg_len;
    }
    return result;
}

/* A UDP socket of AF_INET or AF_INET6, the handle for x_tables' socket options. */
int np_sys_inet_socket(int family, uint64_t *calls)
{
    int fd = -1;

    NP_RETRY(fd, calls, socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    return fd;
}

/* getsockopt; *size is the room on entry and the length on return. */
int np_sys_getsockopt(int fd, int level, int name, void *data, uint32_t *size, uint64_t *calls)
{
    socklen_t length = *size;
    int result = 0;

    NP_RETRY(result, calls, getsockopt(fd, level, name, data, &length));
    *size = length;
    return result;
}

/* setsockopt. */
int np_sys_setsockopt(int fd, int level, int name, const void *data, uint32_t size, uint64_t *calls)
{
    int result = 0;

    NP_RETRY(result, calls, setsockopt(fd, level, name, data, size));
    return result;
}

/* Opens (creating it) and locks a file as iptables does, for which it waits at most wait_ms milliseconds. It asks again and again, for a wait
 * in the kernel has no end; and often, for those who do wait there take the lock some microseconds after it was free.
 * Returns the descriptor that holds the lock until it is closed, -EAGAIN when someone else kept it, or another -errno. */
int np_sys_lock(const char *path, int wait_ms, uint64_t *calls)
{
    const struct timespec pause = {.tv_nsec = 200 * 1000L};
    struct timespec began, now;
    int fd = -1, result = 0;

    NP_RETRY(fd, calls, open(path, O_CREAT | O_CLOEXEC | O_RDONLY, 0600));
    if (fd < 0)
        return fd;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (;;) {
        NP_RETRY(result, calls, flock(fd, LOCK_EX | LOCK_NB));
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (result != -EWOULDBLOCK ||
            (now.tv_sec - began.tv_sec) * 1000LL + (now.tv_nsec - began.tv_nsec) / 1000000 >= wait_ms)
            break;
        (*calls)++;
        nanosleep(&pause, NULL);
    }
    if (result < 0) {
        (*calls)++;
        close(fd);
        return result;
    }
    return fd;
}

/* Closes a descriptor; not repeated on EINTR, since Linux has closed it by then. */
int np_sys_close(int fd, uint64_t *calls)
{
    (*calls)++;
    return close(fd) < 0 ? -errno : 0;
}

/* An inotify descriptor that does not block. Returns it or -errno. */
int np_sys_inotify_open(uint64_t *calls)
{
    int fd = -1;

    NP_RETRY(fd, calls, inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    return fd;
}

/* Watches a directory, or a file, for anything that changes what reading it gives. Returns >= 0 or -errno. */
int np_sys_inotify_watch(int fd, const char *path, uint64_t *calls)
{
    const uint32_t changes =
        IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MODIFY | IN_MOVE | IN_MOVE_SELF;
    int result = 0;

    NP_RETRY(result, calls, inotify_add_watch(fd, path, changes));
    return result;
}

/* unshare of the calling thread. */
int np_sys_unshare(int flags)
{
    return unshare(flags) < 0 ? -errno : 0;
}

/* setns of the calling thread into the namespace behind a descriptor. */
int np_sys_setns(int fd, int type)
{
    return setns(fd, type) < 0 ? -errno : 0;
}

/* Waits, some milliseconds, until whatever packet is on its way through this host's hooks now has gone its way: it goes from hook to hook
 * under the lock of RCU, and this call waits for a grace period. Returns 0, or -errno where the kernel has no such call, or does not wait
 * in it (nohz_full). */
int np_sys_grace_period(uint64_t *calls)
{
    long result = 0;

    NP_RETRY(result, calls, syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
    return (int)result;
}

/* The monotonic clock in nanoseconds, which is Python's time.monotonic_ns. */
int64_t np_sys_now(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleeps until the eventfd `fd`, which does not block, is rung, or np_sys_now() is `until`, whichever is first; one that is rung is silent
 * then. Returns 1 where it was rung, 0 where time is over, or -errno. */
int np_sys_await(int fd, int64_t until, uint64_t *calls)
{
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    uint64_t rings = 0;
    ssize_t taken = 0;
    int result = 0;

    for (int tries = 0; tries < NP_MAX_EINTR; tries++) {
        const int64_t left = until - np_sys_now();
        const struct timespec rest = {.tv_sec = left > 0 ? left / 1000000000 : 0,
                                      .tv_nsec = left > 0 ? left % 1000000000 : 0};

        (*calls)++;
        result = ppoll(&waiting, 1, &rest, NULL);
        if (result >= 0 || errno != EINTR)
            break;
    }
    if (result <= 0)
        return result < 0 ? -errno : 0;
    NP_RETRY(taken, calls, read(fd, &rings, sizeof(rings)));
    return taken == -EAGAIN ? 0 : taken < 0 ? (int)taken : 1;
}

/* All threads share one heap from now on, where the C library would give each its own. Returns 1, or 0 where it has no such setting. */
int np_sys_one_heap(void)
{
#ifdef __GLIBC__
    return mallopt(M_ARENA_MAX, 1);
#else
    return 0;
#endif
}
