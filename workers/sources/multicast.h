/* Datagrams of a UDP socket, in batches, straight into the slots of an arbiter (workers/arbitration.h).
 *
 * Linux: one recvmmsg a batch, never waiting. Elsewhere (macOS): recvmsg in a loop. The kernel's own time of receipt comes with
 * each datagram (SO_TIMESTAMPNS, or SO_TIMESTAMP in microseconds); a datagram without one gets the caller's time. On
 * Linux SO_RXQ_OVFL tells with each datagram how many the socket's full buffer has thrown away so far.
 * No Python. Opening, joining and closing are workers/sources/multicast_lines.py. */
#ifndef TK_SOURCES_MULTICAST_H
#define TK_SOURCES_MULTICAST_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#error "recvmmsg needs _GNU_SOURCE, defined before anything is included (Python.h does)"
#endif

/* TK_MC_PORTABLE takes the path of other platforms on Linux too, for the tests. */
#if defined(__linux__) && !defined(TK_MC_PORTABLE)
#define TK_MC_LINUX 1
#endif

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

#include "workers/arbitration.h"

enum { MC_BATCH = 128, MC_CONTROL_BYTES = 128 };

/* What arrives, once more, as records of a pcap file: 16 bytes of header (little-endian, ns), then IPv4, UDP and the
 * payload. Off while `data` is NULL; whoever owns it takes the records after each mc_receive. */
enum { MC_PCAP_BYTES = 16, MC_HEADERS_BYTES = 28 };

struct mc_tap {
    uint8_t *data;
    size_t room, used;         /* bytes; room is for MC_BATCH of the longest datagrams */
    uint32_t count;            /* packets in it */
    uint32_t group;            /* address and port that the packets went to, in network order */
    uint16_t port;
};

struct mc_socket {
    int fd;
    unsigned line;
    uint32_t overflow_seen;    /* the kernel's counter, which wraps */
    uint64_t kernel_drops;     /* datagrams thrown away by a full socket buffer */
    uint64_t truncated;        /* datagrams longer than a slot */
    uint64_t unstamped;        /* datagrams without the kernel's time */
    struct mc_tap tap;
};

static void mc_le32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

static void mc_be16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* One datagram as a packet. The IP header (RFC 791) is made up but for addresses; its checksum is right, that of UDP is 0,
 * which means that there is none (RFC 768). */
static void mc_tap_put(struct mc_tap *tap, const uint8_t *payload, uint32_t size, const struct sockaddr_in *from,
                       int64_t ts_ns) {
    uint32_t length = MC_HEADERS_BYTES + size;
    if (length > 65535 || tap->room - tap->used < MC_PCAP_BYTES + (size_t)length) return;
    uint8_t *p = tap->data + tap->used;
    mc_le32(p, (uint32_t)(ts_ns / 1000000000));
    mc_le32(p + 4, (uint32_t)(ts_ns % 1000000000));
    mc_le32(p + 8, length);
    mc_le32(p + 12, length);
    p += MC_PCAP_BYTES;
    memset(p, 0, MC_HEADERS_BYTES);
    p[0] = 0x45;
    mc_be16(p + 2, length);
    p[6] = 0x40;  /* don't fragment */
    p[8] = 1;     /* time to live */
    p[9] = 17;    /* UDP */
    memcpy(p + 12, &from->sin_addr.s_addr, 4);
    memcpy(p + 16, &tap->group, 4);
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2) sum += (uint32_t)p[i] << 8 | p[i + 1];
    sum = (sum & 0xFFFF) + (sum >> 16);
    mc_be16(p + 10, ~(sum + (sum >> 16)) & 0xFFFF);
    memcpy(p + 20, &from->sin_port, 2);
    memcpy(p + 22, &tap->port, 2);
    mc_be16(p + 24, 8 + size);
    memcpy(p + MC_HEADERS_BYTES, payload, size);
    tap->used += MC_PCAP_BYTES + length;
    tap->count++;
}

/* Addresses in network order; `source` 0 = every sender's. Returns 0 or errno. */
static int mc_join(int fd, uint32_t group, uint32_t interface, uint32_t source) {
#ifdef IP_MULTICAST_ALL  /* else a socket also gets what others on this host have joined */
    int off = 0;
    if (setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off)) return errno;
#endif
    if (source) {
        struct ip_mreq_source wanted;  /* the order of its fields differs between platforms */
        memset(&wanted, 0, sizeof wanted);
        wanted.imr_multiaddr.s_addr = group;
        wanted.imr_interface.s_addr = interface;
        wanted.imr_sourceaddr.s_addr = source;
        return setsockopt(fd, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &wanted, sizeof wanted) ? errno : 0;
    }
    struct ip_mreq wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.imr_multiaddr.s_addr = group;
    wanted.imr_interface.s_addr = interface;
    return setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &wanted, sizeof wanted) ? errno : 0;
}

static int mc_stamp(int fd) {
    int on = 1;
#ifdef TK_MC_LINUX
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on)) return errno;
#else
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on)) return errno;
#endif
#ifdef TK_MC_LINUX
    if (setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on)) return errno;
#endif
    return 0;
}

/* Time and overflow counter of one datagram. */
static int64_t mc_control(struct mc_socket *s, struct msghdr *header, int64_t now_ns) {
    int64_t ts_ns = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
#ifdef TK_MC_LINUX
        if (c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            ts_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
        }
#else
        if (c->cmsg_type == SCM_TIMESTAMP) {
            struct timeval t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            ts_ns = (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_usec * 1000;
        }
#endif
#ifdef TK_MC_LINUX
        if (c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t seen;
            memcpy(&seen, CMSG_DATA(c), sizeof seen);
            s->kernel_drops += (uint32_t)(seen - s->overflow_seen);
            s->overflow_seen = seen;
        }
#endif
    }
    if (!ts_ns) { s->unstamped++; ts_ns = now_ns; }
    return ts_ns;
}

static inline void mc_take(struct mc_socket *s, struct arbiter *a, uint32_t slot, uint32_t size, struct msghdr *header,
                           int64_t now_ns) {
    int64_t ts_ns = mc_control(s, header, now_ns);
    if (header->msg_flags & MSG_TRUNC) {
        s->truncated++;
        a->line[s->line].refused++;
        arb_drop(a, slot);
        return;
    }
    if (s->tap.data) mc_tap_put(&s->tap, arb_slot(a, slot), size, header->msg_name, ts_ns);
    arb_offer(a, s->line, slot, size, ts_ns, now_ns);
}

/* Receives what is there, at most MC_BATCH and what slots are free. Returns how many datagrams, or -errno. */
static int mc_receive(struct mc_socket *s, struct arbiter *a, int64_t now_ns) {
    unsigned room = a->free_count < MC_BATCH ? a->free_count : MC_BATCH;
    if (!room) return 0;
    struct iovec part[MC_BATCH];
    uint32_t slot[MC_BATCH];
    struct sockaddr_in from[MC_BATCH];
    _Alignas(struct cmsghdr) char control[MC_BATCH][MC_CONTROL_BYTES];
#ifdef TK_MC_LINUX
    struct mmsghdr message[MC_BATCH];
    memset(message, 0, room * sizeof *message);
    for (unsigned i = 0; i < room; i++) {
        slot[i] = a->free_slot[a->free_count - 1 - i];
        part[i] = (struct iovec){arb_slot(a, slot[i]), a->slot_bytes};
        message[i].msg_hdr.msg_iov = &part[i];
        message[i].msg_hdr.msg_iovlen = 1;
        message[i].msg_hdr.msg_name = &from[i];
        message[i].msg_hdr.msg_namelen = sizeof from[i];
        message[i].msg_hdr.msg_control = control[i];
        message[i].msg_hdr.msg_controllen = MC_CONTROL_BYTES;
    }
    int got = recvmmsg(s->fd, message, room, MSG_DONTWAIT, NULL);
    if (got < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -errno;
    a->free_count -= (unsigned)got;
    for (int i = 0; i < got; i++) mc_take(s, a, slot[i], message[i].msg_len, &message[i].msg_hdr, now_ns);
    return got;
#else
    int got = 0;
    for (unsigned i = 0; i < room; i++) {
        struct msghdr header = {0};
        slot[i] = a->free_slot[a->free_count - 1];
        part[i] = (struct iovec){arb_slot(a, slot[i]), a->slot_bytes};
        header.msg_iov = &part[i];
        header.msg_iovlen = 1;
        header.msg_name = &from[i];
        header.msg_namelen = sizeof from[i];
        header.msg_control = control[i];
        header.msg_controllen = MC_CONTROL_BYTES;
        ssize_t size = recvmsg(s->fd, &header, MSG_DONTWAIT);
        if (size < 0) {
            if (got || errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) break;
            return -errno;
        }
        a->free_count--;
        mc_take(s, a, slot[i], (uint32_t)size, &header, now_ns);
        got++;
    }
    return got;
#endif
}

/* Throws away what is there. Returns how many datagrams, or -errno. */
static int mc_discard(struct mc_socket *s) {
    char byte;
    int gone = 0;
    while (gone < 1 << 20 && recv(s->fd, &byte, 1, MSG_DONTWAIT) >= 0) gone++;
    return errno == EAGAIN || errno == EWOULDBLOCK || gone == 1 << 20 ? gone : -errno;
}

#endif
