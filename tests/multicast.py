"""What tests of multicast feeds share: packets of numbered messages, captured datagrams, a sender on loopback."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from workers.decoders._containers import PacketReader
from workers.decoders.capture_file import CaptureFile

SESSION = b"TESTING001"


def mold(first: int, messages: list[bytes], session: bytes = SESSION) -> bytes:
    """A MoldUDP64 packet."""
    blocks = b"".join(struct.pack(">H", len(message)) + message for message in messages)
    return session + struct.pack(">QH", first, len(messages)) + blocks


def end_of_session(first: int, session: bytes = SESSION) -> bytes:
    """What a MoldUDP64 server sends when no more will come; `first` is the number that would be next."""
    return session + struct.pack(">QH", first, 0xFFFF)


def iex(first: int, messages: list[bytes], *, protocol: int = 0x8003, session: int = 7, channel: int = 1) -> bytes:
    """An IEX-TP segment."""
    payload = b"".join(struct.pack("<H", len(message)) + message for message in messages)
    head = struct.pack("<BxHIIHHQQQ", 1, protocol, channel, session, len(payload), len(messages), 0, first, 0)
    return head + payload


def datagrams(path: Path) -> list[bytes]:
    """The UDP payloads of a packet capture."""
    reader, file, found = PacketReader(0), CaptureFile(path), []
    while piece := file.read():
        batch = reader.feed(piece)
        for frame in batch.frames:
            start = int(frame["offset"])
            found.append(bytes(batch.buffer[start : start + int(frame["size"])]))
    file.close()
    return found


def sender() -> socket.socket:
    """A UDP socket whose multicast packets stay on loopback."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
    return sock


class RerequestServer(threading.Thread):
    """A MoldUDP64 re-request server for messages 1, 2, ...: answers with what fits a datagram, ignores every third."""

    def __init__(self, messages: list[bytes], per_packet: int = 7) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.requests: list[tuple[int, int]] = []
        self._messages, self._per_packet = messages, per_packet
        self.start()

    def run(self) -> None:
        while True:
            request, client = self.socket.recvfrom(2048)
            if request == b"end":
                self.socket.close()
                return
            session, first, count = struct.unpack(">10sQH", request)
            assert session == SESSION
            self.requests.append((first, count))
            if len(self.requests) % 3:
                found = self._messages[first - 1 : first - 1 + min(count, self._per_packet)]
                self.socket.sendto(mold(first, found), client)

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", self.socket.getsockname())
        self.join()
