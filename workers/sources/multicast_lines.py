"""The sockets of a multicast feed: lines that joined a group, and the one that asks for messages again.

Made by workers/sources/multicast.py. Opens, joins and closes; receiving is native (`_multicast.pyx`). A buffer smaller
than asked for is said once, with the setting to change. Never decodes, never decides about holes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from workers._arbitration import Arbiter
from workers.errors import SettingsError, SourceError
from workers.sources._multicast import Receiver, join, stamp

log = logging.getLogger("multicast")

_RCVBUF_SETTING: Final = {"linux": "net.core.rmem_max", "darwin": "kern.ipc.maxsockbuf"}
_SIOCGIFADDR: Final = 0x8915  # Linux: an interface's IPv4 address
_SO_RCVBUFFORCE: Final = 33  # Linux: beyond rmem_max, for who may administer the network


class LineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line: where a copy of the feed's packets is sent to."""

    group: str  # IPv4 multicast address
    port: Annotated[int, Meta(ge=1, le=65535)]
    interface: str = ""  # its name or IPv4 address; empty = where the default route leads
    source: str = ""  # only packets of this sender (source-specific multicast); empty = any sender's


@dataclass(frozen=True)
class Line:
    """A line whose settings make sense. Addresses are packed."""

    name: str  # for messages: group:port
    group: bytes
    port: int
    interface: str
    source: bytes


def check_lines(feed: str, lines: tuple[LineOptions, ...]) -> tuple[Line, ...]:
    """SettingsError names the line and the field that can't work."""
    found: list[Line] = []
    for number, options in enumerate(lines):
        where = f"feed {feed}: options.lines[{number}]"
        group = _address(f"{where}.group", options.group)
        if not group.is_multicast:
            raise SettingsError(f"{where}.group is {options.group!r}: must be a multicast address, 224.0.0.0 and up")
        source = b""
        if options.source:
            sender = _address(f"{where}.source", options.source)
            if sender.is_multicast or sender.is_unspecified:
                raise SettingsError(f"{where}.source is {options.source!r}: must be the address of a sender")
            source = sender.packed
        if len(options.interface) > 15:
            raise SettingsError(f"{where}.interface is {options.interface!r}: must be its name or IPv4 address")
        line = Line(f"{group}:{options.port}", group.packed, options.port, options.interface, source)
        if line in found:
            raise SettingsError(f"{where} is the same as options.lines[{found.index(line)}]")
        found.append(line)
    return tuple(found)


def check_host(feed: str, text: str) -> tuple[str, int]:
    """ "host:port" of a re-request server as a pair. SettingsError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise SettingsError(f"feed {feed}: options.rerequest is {text!r}: must be host:port")
    return host, int(port)


def _address(where: str, text: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise SettingsError(f"{where} is {text!r}: must be an IPv4 address") from None


def interface_address(name: str) -> bytes:
    """The packed IPv4 address of an interface given by name or address; "" = 0.0.0.0. SourceError: there is none."""
    if not name:
        return bytes(4)
    try:
        return ipaddress.IPv4Address(name).packed
    except ValueError:
        pass
    known = _interfaces(name)
    if name not in known:
        raise SourceError(f"no interface {name!r} with an IPv4 address here; there are {', '.join(sorted(known))}")
    return known[name]


def _interfaces(name: str) -> dict[str, bytes]:
    """Names and packed IPv4 addresses of this host's interfaces."""
    if sys.platform != "linux":
        import psutil

        return {
            interface: socket.inet_aton(entry.address)
            for interface, entries in psutil.net_if_addrs().items()
            for entry in entries
            if entry.family == socket.AF_INET
        }
    # A service may be kept from netlink, which psutil asks; an ioctl needs no more than the feed itself does.
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for interface in {name, *os.listdir("/sys/class/net")}:
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("16s24x", interface.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address, or is not there
            found[interface] = answer[20:24]
    return found


class LineSocket:
    """One socket as line `number` of an arbiter. `fd` is readable when something has come."""

    def __init__(self, sock: socket.socket, number: int, rcvbuf_bytes: int, name: str) -> None:
        """Takes the socket over; sizes its buffer and asks for times of receipt. OSError."""
        self._socket = sock
        sock.setblocking(False)
        self.rcvbuf_bytes = _size_buffer(sock, rcvbuf_bytes, name)
        self.fd = sock.fileno()
        stamp(self.fd)
        self._receiver = Receiver(self.fd, number)
        self.name = name

    def receive(self, arbiter: Arbiter, now_ns: int) -> int:
        """A batch of what is there; returns how many datagrams. OSError."""
        return self._receiver.receive(arbiter, now_ns)

    def tap(self, max_datagram: int, group: bytes = b"", port: int = 0) -> None:
        """From now on `tapped` has what `receive` took; it went to that group, or to the socket's own address."""
        if not group:
            address, port = self._socket.getsockname()
            group = socket.inet_aton(address)
        self._receiver.tap(group, port, max_datagram)

    def tapped(self) -> tuple[bytes, int]:
        """(records of a pcap file, how many) of what was received last; once after each `receive`."""
        return self._receiver.tapped()

    def discard(self) -> int:
        """Throw away what is there; returns how many datagrams."""
        return self._receiver.discard()

    def send(self, packet: bytes) -> None:
        """Send to whom the socket is connected. OSError."""
        self._socket.send(packet)

    @property
    def kernel_drops(self) -> int:
        """Datagrams lost to a full buffer, as far as the kernel has said: it does with the next that it takes."""
        return self._receiver.kernel_drops

    def close(self) -> None:
        """Leave the group. Safe to call twice."""
        self._socket.close()


def open_line(line: Line, number: int, rcvbuf_bytes: int) -> LineSocket:
    """Join the line's group. SourceError says which line and what failed."""
    address = interface_address(line.interface)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((socket.inet_ntoa(line.group), line.port))
        opened = LineSocket(sock, number, rcvbuf_bytes, line.name)
        join(opened.fd, line.group, address, line.source)
    except OSError as error:
        sock.close()
        at = f" on interface {line.interface}" if line.interface else ""
        raise SourceError(f"line {line.name}{at}: {error.strerror or error}") from None
    return opened


def open_rerequest(host: str, port: int, number: int, rcvbuf_bytes: int) -> LineSocket:
    """A socket that talks to a re-request server and hears nobody else. SourceError: its name is not known."""
    try:
        found: Any = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.connect(found[0][4])
            return LineSocket(sock, number, rcvbuf_bytes, f"rerequest {host}:{port}")
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise SourceError(f"rerequest {host}:{port}: {error.strerror or error}") from None


def _size_buffer(sock: socket.socket, wanted: int, name: str) -> int:
    """Ask for a receive buffer of that many bytes; returns what there is, and warns if that is less."""
    doubled = sys.platform == "linux"  # the kernel counts its own overhead in

    def size() -> int:
        got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return got // 2 if doubled else got

    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE) if doubled else (socket.SO_RCVBUF,):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, wanted)
        except OSError as error:
            log.debug("%s: receive buffer: %s", name, error)
        if size() >= wanted:
            return size()
    setting = _RCVBUF_SETTING.get(sys.platform, "the system's limit")
    log.warning("%s: receive buffer is %d bytes, not %d: raise %s to %d", name, size(), wanted, setting, wanted)
    return size()
