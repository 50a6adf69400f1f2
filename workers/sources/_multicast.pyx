# cython: boundscheck=True, wraparound=False
"""Shell of the batch receiver (`multicast.h`): a socket's datagrams into an arbiter, without the GIL.

Also joins groups, which the platforms' `socket` modules can't do alike. Called by multicast_lines.py.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from workers._arbitration cimport Arbiter, arbiter_t

import os


cdef extern from "workers/sources/multicast.h" nogil:
    enum:
        MC_BATCH
        MC_PCAP_BYTES
        MC_HEADERS_BYTES

    ctypedef struct mc_tap "struct mc_tap":
        uint8_t *data
        size_t room
        size_t used
        uint32_t count
        uint32_t group
        uint16_t port

    ctypedef struct mc_socket "struct mc_socket":
        int fd
        unsigned line
        uint32_t overflow_seen
        uint64_t kernel_drops
        uint64_t truncated
        uint64_t unstamped
        mc_tap tap

    int mc_join(int fd, uint32_t group, uint32_t interface, uint32_t source)
    int mc_stamp(int fd)
    int mc_receive(mc_socket *s, arbiter_t *a, int64_t now_ns)
    int mc_discard(mc_socket *s)


def join(int fd, bytes group, bytes interface, bytes source):
    """Joins a group on the interface of that address, of all senders or, source-specific, of one; packed IPv4 addresses,
    `source` b"" = all. Only what is joined here reaches the socket. OSError."""
    if len(group) != 4 or len(interface) != 4 or len(source) not in (0, 4):
        raise ValueError("packed IPv4 addresses have 4 bytes")
    cdef uint32_t numbers[3]
    cdef bytes packed = group + interface + (source or bytes(4))
    memcpy(numbers, <const char *>packed, 12)
    cdef int problem = mc_join(fd, numbers[0], numbers[1], numbers[2])
    if problem:
        raise OSError(problem, os.strerror(problem))


def stamp(int fd):
    """Asks the kernel for the time of receipt of each datagram, and for what it had to throw away. OSError."""
    cdef int problem = mc_stamp(fd)
    if problem:
        raise OSError(problem, os.strerror(problem))


cdef class Receiver:
    """Receives from socket `fd` as line number `line` of an arbiter. The socket stays its owner's."""

    cdef mc_socket state

    def __init__(self, int fd, unsigned line):
        self.state.fd = fd
        self.state.line = line

    def __dealloc__(self):
        free(self.state.tap.data)

    def tap(self, bytes group not None, int port, size_t slot_bytes):
        """From now on `tapped` gives what was received, as packets to this address (packed) and port; datagrams have at
        most `slot_bytes`."""
        if len(group) != 4 or not 0 <= port <= 65535:
            raise ValueError("a packed IPv4 address and a port")
        if self.state.tap.data != NULL:
            raise ValueError("is tapped")
        cdef size_t room = MC_BATCH * (slot_bytes + MC_PCAP_BYTES + MC_HEADERS_BYTES)
        cdef uint8_t *data = <uint8_t *>malloc(room)
        if data == NULL:
            raise MemoryError(f"{room} bytes")
        cdef bytes number = port.to_bytes(2, "big")
        memcpy(&self.state.tap.group, <const char *>group, 4)
        memcpy(&self.state.tap.port, <const char *>number, 2)
        self.state.tap.room = room
        self.state.tap.data = data

    def tapped(self):
        """(records of a pcap file, how many) of what was received since; to be called after each `receive`."""
        cdef mc_tap *tap = &self.state.tap
        if not tap.count:
            return b"", 0
        cdef bytes records = (<const char *>tap.data)[: tap.used]
        count = tap.count
        tap.used = tap.count = 0
        return records, count

    def receive(self, Arbiter arbiter not None, int64_t now_ns):
        """Takes a batch of what is there, at most what slots are free; returns how many datagrams. OSError."""
        cdef int got
        with nogil:
            got = mc_receive(&self.state, &arbiter.state, now_ns)
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        return got

    def discard(self):
        """Throws away what is there; returns how many datagrams. OSError."""
        cdef int gone
        with nogil:
            gone = mc_discard(&self.state)
        if gone < 0:
            raise OSError(-gone, os.strerror(-gone))
        return gone

    @property
    def kernel_drops(self):
        """Datagrams that the kernel threw away because the socket's buffer was full, as far as it has said."""
        return self.state.kernel_drops

    @property
    def truncated(self):
        """Datagrams that were longer than a slot."""
        return self.state.truncated

    @property
    def unstamped(self):
        """Datagrams without the kernel's time of receipt."""
        return self.state.unstamped
