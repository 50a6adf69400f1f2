# cython: boundscheck=True, wraparound=False
"""Containers in native code: packet captures, length-framed messages, and lines of `<ns> <JSON>`.

Each cuts what it is fed into whole frames and keeps the rest, so any cut of the input gives the same frames
(`workers.decoders.protocol.Container`). They allocate one buffer and one array of frames a call, and read no file.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr

import numpy as np

from workers.decoders.protocol import FRAME, Batch, FramingError


cdef extern from "workers/decoders/packets.h" nogil:
    enum:
        PACKETS_MORE
        PACKETS_ROOM
        PACKETS_BAD
        PACKETS_PCAPNG

    ctypedef struct tk_frame "struct tk_frame":
        uint64_t offset
        uint32_t size
        uint16_t port
        uint16_t reserved
        int64_t ts_receive

    ctypedef struct packets_state "struct packets":
        int form
        const char *problem
        uint64_t packets
        uint64_t not_udp
        uint64_t fragments
        uint64_t cut
        uint64_t damaged

    int packets_run(packets_state *state, const uint8_t *data, size_t size, tk_frame *out, size_t room, size_t *count,
                    size_t *consumed)
    uint16_t be16(const uint8_t *p)


cdef class Cutter:
    """What the containers share: the unfinished rest, the offset of its first byte, and the error that ended the stream."""

    cdef bytes _rest
    cdef uint64_t _offset
    cdef object _error

    def __init__(self):
        self._rest = b""

    @property
    def error(self):
        """FramingError once the framing is damaged; nothing after it is read."""
        return self._error

    def finish(self):
        """How many bytes of an unfinished frame are left over at the end of the stream."""
        return 0 if self._error is not None else len(self._rest)

    def counts(self):
        """What was passed over, by reason."""
        return {}

    cdef bytes take(self, data):
        return bytes(data) if not self._rest else self._rest + data

    cdef object keep(self, bytes buffer, size_t consumed, frames):
        self._rest = buffer[consumed:] if self._error is None else b""
        self._offset += consumed
        return Batch(buffer, frames)


EMPTY = np.zeros(0, FRAME)


cdef class PacketReader(Cutter):
    """pcap and pcapng -> UDP payloads with capture time. `port`: only datagrams to that UDP port; 0 = all."""

    cdef packets_state state
    cdef uint16_t port

    def __init__(self, port=0):
        super().__init__()
        self.port = port

    @property
    def layout(self):
        """"pcap" or "pcapng"."""
        return "pcapng" if self.state.form == PACKETS_PCAPNG else "pcap"

    def counts(self):
        """Packets seen, and those passed over by reason."""
        found = {"packets": self.state.packets, "not udp": self.state.not_udp, "ip fragments": self.state.fragments,
                 "cut by the capture": self.state.cut, "damaged headers": self.state.damaged}
        return {name: count for name, count in found.items() if count}

    def feed(self, data):
        """Frames of the packets that are whole now."""
        if self._error is not None:
            return Batch(b"", EMPTY)
        cdef bytes buffer = self.take(data)
        cdef const uint8_t[::1] view = buffer
        cdef size_t count = 0, consumed = 0, done = 0, written = 0
        cdef size_t size = view.shape[0]
        if size < 24:
            return self.keep(buffer, 0, EMPTY)
        frames = np.zeros(size // 28 + 1, FRAME)  # no packet record is shorter than a block of an empty packet
        cdef uint8_t[::1] raw = frames.view("u1")
        cdef tk_frame *out = <tk_frame *>&raw[0]
        cdef size_t room = len(frames), i
        cdef int stop
        with nogil:
            while True:
                stop = packets_run(&self.state, &view[0] + done, size - done, out + written, room - written, &count, &consumed)
                for i in range(written, written + count):
                    out[i].offset += done
                written += count
                done += consumed
                if stop != PACKETS_ROOM or room == written:
                    break
        if stop == PACKETS_BAD:
            self._error = FramingError(self.layout, self._offset + done, self.state.problem.decode())
        frames = frames[:written]
        if self.port:
            frames = frames[frames["port"] == self.port]
        return self.keep(buffer, done, frames)


cdef class LengthReader(Cutter):
    """2-byte big-endian length before each message (NASDAQ's ITCH files) -> one frame of all messages that are whole."""

    def feed(self, data):
        """One frame over the whole messages; none before the first is whole."""
        cdef bytes buffer = self.take(data)
        cdef const uint8_t[::1] view = buffer
        cdef size_t at = 0, size = view.shape[0], length
        with nogil:
            while at + 2 <= size:
                length = be16(&view[at])
                if at + 2 + length > size:
                    break
                at += 2 + length
        if not at:
            return self.keep(buffer, 0, EMPTY)
        frames = np.zeros(1, FRAME)
        frames["size"] = at
        return self.keep(buffer, at, frames)


cdef class LineReader(Cutter):
    """Lines of `<receive time, ns since the epoch> <text>` (hftbacktest's collector) -> one frame a line.

    A line without a time, or an empty one, is counted and passed over; a last line without its newline is not whole: feed
    one at the end of the input. A line of more than 64 MiB is damaged framing.
    """

    cdef uint64_t _untimed

    def counts(self):
        """Lines passed over."""
        return {"lines without a time": self._untimed} if self._untimed else {}

    def feed(self, data):
        """Frames of the lines that are whole now."""
        cdef bytes buffer = self.take(data)
        cdef const uint8_t[::1] view = buffer
        cdef size_t size = view.shape[0], at = 0, text, written = 0
        cdef const uint8_t *newline
        cdef int64_t ts
        if self._error is not None or not size:
            return self.keep(b"", 0, EMPTY)
        frames = np.zeros(buffer.count(b"\n"), FRAME)
        if not len(frames):
            if size > 1 << 26:
                self._error = FramingError("lines", self._offset, "a line of more than 64 MiB")
            return self.keep(buffer, 0, EMPTY)
        cdef uint8_t[::1] raw = frames.view("u1")
        cdef tk_frame *out = <tk_frame *>&raw[0]
        cdef const uint8_t *base = &view[0]
        cdef size_t end
        with nogil:
            while at < size:
                newline = <const uint8_t *>memchr(base + at, 10, size - at)
                if newline == NULL:
                    break
                end = newline - base
                text = at
                ts = 0
                while text < end and text - at < 19 and 48 <= base[text] <= 57:
                    ts = <int64_t>(<uint64_t>ts * 10 + base[text] - 48)
                    text += 1
                if text == at or text == end or base[text] != 32 or ts < 0:
                    self._untimed += 1
                else:
                    text += 1
                    if end > text and base[end - 1] == 13:
                        end -= 1
                    out[written].offset = text
                    out[written].size = <uint32_t>(end - text)
                    out[written].ts_receive = ts
                    written += 1
                at = newline - base + 1
        return self.keep(buffer, at, frames[:written])
