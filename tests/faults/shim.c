/* Fails chosen system calls of netpol's native module, and nobody else's. Loaded with LD_PRELOAD: so the module under test is the very
 * one that users run, and production carries no trace of this.
 *
 * Calls are counted while the shim is armed. Call number `at`, and the `times` - 1 after it, are made to fail as `how` says; the kernel
 * has then done nothing (or what `how` says), so that what it is left in is always a state that it can really be left in. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FAIL, CUT, EMPTY, INTERRUPTED, REFUSE };
enum { CALLS = 1 << 16, BUFFER = 1 << 21 };

static int armed, seen, hits, plan_at, plan_times, plan_error, plan_how, plan_message;
static char kinds[CALLS + 1];
static int messages[CALLS];
static uint8_t scratch[BUFFER];

/* The answer to a message that was refused, until it is received. */
static struct {
    struct nlmsghdr header;
    int error;
    struct nlmsghdr of;
} refusal;
static int refused = -1;

/* Calls `at` to `at` + `times` - 1 fail with `error`; `message` is the one of a send that the kernel refuses. */
void fault_arm(int at, int times, int error, int how, int message)
{
    plan_at = at, plan_times = times, plan_error = error, plan_how = how, plan_message = message;
    seen = hits = 0;
    refused = -1;
    armed = 1;
}

void fault_disarm(void)
{
    armed = 0;
    kinds[seen < CALLS ? seen : CALLS] = 0;
}

/* How many calls were made to fail. */
int fault_hits(void)
{
    return hits;
}

/* A letter for each call that was seen. */
const char *fault_kinds(void)
{
    return kinds;
}

/* How many messages call number `i` sent. */
int fault_messages(int i)
{
    return messages[i];
}

/* Counts a call of the native module. Returns whether it is to fail. */
static int is_hit(const void *caller, char kind)
{
    Dl_info info;

    if (!armed || !dladdr(caller, &info) || !strstr(info.dli_fname, "_native"))
        return 0;
    if (seen < CALLS) {
        kinds[seen] = kind;
        messages[seen] = 0;
    }
    seen++;
    if (seen - 1 < plan_at || seen - 1 >= plan_at + plan_times)
        return 0;
    if ((plan_how == REFUSE && kind != 'w') || (plan_how != FAIL && plan_how != REFUSE && kind != 'r'))
        return 0;
    hits++;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HIT(kind)  is_hit(__builtin_return_address(0), kind)

static int failed(void)
{
    errno = plan_error;
    return -1;
}

int socket(int domain, int type, int protocol)
{
    return HIT('k') ? failed() : REAL(socket)(domain, type, protocol);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    return HIT('b') ? failed() : REAL(connect)(fd, address, size);
}

int getsockopt(int fd, int level, int name, void *restrict data, socklen_t *restrict size)
{
    return HIT('g') ? failed() : REAL(getsockopt)(fd, level, name, data, size);
}

int setsockopt(int fd, int level, int name, const void *data, socklen_t size)
{
    return HIT('s') ? failed() : REAL(setsockopt)(fd, level, name, data, size);
}

int flock(int fd, int operation)
{
    return HIT('l') ? failed() : REAL(flock)(fd, operation);
}

int nanosleep(const struct timespec *span, struct timespec *left)
{
    /* Nobody waits for a lock that is only said to be taken. */
    return HIT('n') ? 0 : REAL(nanosleep)(span, left);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    mode_t mode = 0;

    va_start(rest, flags);
    if (flags & (O_CREAT | O_TMPFILE))
        mode = (mode_t)va_arg(rest, int);
    va_end(rest);
    return HIT('o') ? failed() : REAL(open)(path, flags, mode);
}

int close(int fd)
{
    /* Linux has closed it, whatever it returns. */
    const int hit = HIT('c');
    const int result = REAL(close)(fd);

    return hit ? failed() : result;
}

/* The message number `number` of a buffer, or NULL; and how many there are. */
static const struct nlmsghdr *message_of(const uint8_t *data, size_t size, int number, int *count)
{
    const struct nlmsghdr *found = NULL;
    size_t at = 0;

    for (*count = 0; size - at >= sizeof(struct nlmsghdr); (*count)++) {
        const struct nlmsghdr *message = (const struct nlmsghdr *)(data + at);

        if (message->nlmsg_len < sizeof(*message) || message->nlmsg_len > size - at)
            break;
        if (*count == number)
            found = message;
        at += NLMSG_ALIGN(message->nlmsg_len);
    }
    return found;
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    const int hit = HIT('w'), number = seen - 1;
    const struct nlmsghdr *message;
    size_t before;
    int count;

    message = message_of(data, size, plan_message, &count);
    if (armed && number >= 0 && number < CALLS && kinds[number] == 'w')
        messages[number] = count;
    if (!hit)
        return REAL(send)(fd, data, size, flags);
    if (plan_how != REFUSE || !message || size > sizeof(scratch))
        return failed();
    /* All but that message; the kernel's answer to it will be our own. */
    before = (size_t)((const uint8_t *)message - (const uint8_t *)data);
    memcpy(scratch, data, before);
    memcpy(scratch + before, (const uint8_t *)message + message->nlmsg_len, size - before - message->nlmsg_len);
    memcpy(&refusal.of, message, sizeof(refusal.of));
    refusal.header = (struct nlmsghdr){sizeof(refusal), NLMSG_ERROR, 0x100, message->nlmsg_seq, 0};
    refusal.error = -plan_error;
    refused = fd;
    if (size > message->nlmsg_len && REAL(send)(fd, scratch, size - message->nlmsg_len, flags) < 0)
        return -1;
    return (ssize_t)size;
}

/* The answer to the message that was refused, when it is time for it. Returns its size, or 0. */
static size_t refuse(int fd, void *data, size_t size)
{
    if (!armed || fd != refused || size < sizeof(refusal))
        return 0;
    memcpy(data, &refusal, sizeof(refusal));
    refused = -1;
    return sizeof(refusal);
}

/* What is left of a datagram that is hit. */
static size_t spoiled(uint8_t *data, size_t size)
{
    if (plan_how == CUT)
        return size / 2;
    if (plan_how == EMPTY)
        return 0;
    for (size_t at = 0; size - at >= sizeof(struct nlmsghdr);) {
        struct nlmsghdr *message = (struct nlmsghdr *)(data + at);

        message->nlmsg_flags |= NLM_F_DUMP_INTR;
        if (message->nlmsg_len < sizeof(*message) || NLMSG_ALIGN(message->nlmsg_len) > size - at)
            break;
        at += NLMSG_ALIGN(message->nlmsg_len);
    }
    return size;
}

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    const int hit = HIT('r');
    ssize_t result = (ssize_t)refuse(fd, data, size);

    if (result > 0)
        return result;
    if (hit && plan_how == FAIL && plan_error != ENOBUFS)
        return failed();
    result = REAL(recv)(fd, data, size, flags);
    if (!hit || result < 0)
        return result;
    /* A queue that overflowed has lost an answer. */
    return plan_how == FAIL ? failed() : (ssize_t)spoiled(data, (size_t)result);
}

int recvmmsg(int fd, struct mmsghdr *vector, unsigned int length, int flags, struct timespec *limit)
{
    const int hit = HIT('r');
    const struct iovec *place = vector[0].msg_hdr.msg_iov;
    int result = 0;

    vector[0].msg_len = (unsigned int)refuse(fd, place->iov_base, place->iov_len);
    if (vector[0].msg_len > 0)
        return 1;
    if (hit && plan_how == FAIL && plan_error != ENOBUFS)
        return failed();
    result = REAL(recvmmsg)(fd, vector, length, flags, limit);
    if (!hit || result <= 0)
        return result;
    if (plan_how == FAIL)
        return failed();
    /* The last of them, so that those before it are taken. */
    place = vector[result - 1].msg_hdr.msg_iov;
    vector[result - 1].msg_len = (unsigned int)spoiled(place->iov_base, vector[result - 1].msg_len);
    return result;
}
