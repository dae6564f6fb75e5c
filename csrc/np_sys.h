/* The only system calls of netpol: sockets, socket options, the lock file, namespaces, sleep.
 * Every function returns >= 0 or -errno. Each counts its system calls into *calls, so that "in how many system calls" is a fact. */
#ifndef NP_SYS_H
#define NP_SYS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_DATAGRAMS 128

int np_sys_netlink_open(int protocol, uint64_t *calls);
int np_sys_netlink_sndbuf(int fd, int bytes, uint64_t *calls);
int np_sys_netlink_rcvbuf(int fd, int bytes, uint64_t *calls);
int np_sys_send(int fd, const uint8_t *data, size_t size, uint64_t *calls);
int np_sys_recv(int fd, uint8_t *data, size_t size, int wait, uint64_t *calls);
int np_sys_recv_many(int fd, uint8_t *data, size_t each, int most, uint32_t *sizes, uint64_t *calls);
int np_sys_inet_socket(int family, uint64_t *calls);
int np_sys_getsockopt(int fd, int level, int name, void *data, uint32_t *size, uint64_t *calls);
int np_sys_setsockopt(int fd, int level, int name, const void *data, uint32_t size, uint64_t *calls);
int np_sys_lock(const char *path, int wait_ms, uint64_t *calls);
int np_sys_close(int fd, uint64_t *calls);
int np_sys_inotify_open(uint64_t *calls);
int np_sys_inotify_watch(int fd, const char *path, uint64_t *calls);
int np_sys_unshare(int flags);
int np_sys_setns(int fd, int type);
int np_sys_grace_period(uint64_t *calls);
int64_t np_sys_now(void);
int np_sys_await(int fd, int64_t until, uint64_t *calls);
int np_sys_one_heap(void);
/* cdef: end */

#endif
