"""Writes down the wire of live sources: each feed's messages through a bounded queue into files, by one thread.

    source --WireLog--> CaptureLog --queue--> thread of Recording --> CaptureParts (workers/capture_files.py)
                        counts, bounds        JSON lines, packets by time

What finds the queue full (`queue_bytes`) is dropped, the newest first, and counted; so is what can't be written, as
when the disk is full. A dropped line in the file says where the hole is, so that a replay tells of it too. The feed is
never held up. Made by `tickengine capture` and by the ingest worker; lines are those of workers/decoders/jsonl.py.
"""

from __future__ import annotations

import base64
import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from workers.capture_files import MAX_HEAD_BYTES, PCAP_HEAD, CaptureParts, Kind, pcap_record
from workers.decoders.jsonl import LINE_MAX_BYTES
from workers.spec import CaptureSettings, FeedSpec
from workers.wire_log import Hidden, clean_options, clean_url

log = logging.getLogger("capture")

_ITEM_BYTES: Final = 200  # what an item of the queue takes beside its data
_NOTES_BYTES: Final = 1 << 20  # which notes may take beyond the bound: without them what follows can't be replayed
_WAKE_BYTES: Final = 1 << 20  # so much waiting does not wait for flush_s
_WRITE_BYTES: Final = 4 << 20  # of one write, before compression
_COMPLAIN_EVERY_NS: Final = 10_000_000_000
_PACKET: Final = struct.Struct("<IIII")  # seconds, ns, bytes kept, bytes it had


class Line(msgspec.Struct, omit_defaults=True):
    """One line of a `.jsonl` capture; what each `t` means is told in workers/decoders/README.md."""

    t: str
    conn: str = ""
    ts: float = 0.0  # seconds, for readers that know no `ns`
    ns: int = 0
    url: str = ""
    status: int = 0
    again: bool = False
    kept: bool = False  # a connect or note that is no new one: it stood when this part began, or behind what is torn
    redacted: bool = False
    why: str = ""
    messages: int = 0
    bytes: int = 0
    b64: str = ""  # instead of data, where that is not UTF-8
    data: str = ""


class _Standing(msgspec.Struct):
    """What is read of a note: see `WireLog.noted`."""

    of: str = ""
    over: bool = False


class Head(msgspec.Struct):
    """The first line of each part."""

    t: str
    format: int
    exchange: str
    recorded: float
    writer: str
    part: int
    feed: dict[str, object]


@dataclass
class Tally:
    """What one connection has done; `last_ns` is when it received last, 0 = never."""

    up: bool = False
    connects: int = 0
    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    last_ns: int = 0
    why: str = ""  # it is not up


@dataclass
class _Queue:
    """Items for the thread. The feed's thread puts and adds to `put_bytes`; the writing one takes, and adds to the
    other."""

    items: deque[tuple[Line, bytes] | tuple[None, bytes, int]] = field(default_factory=deque)
    put_bytes: int = 0
    taken_bytes: int = 0

    @property
    def waiting_bytes(self) -> int:
        return self.put_bytes - self.taken_bytes


class CaptureLog:
    """The `WireLog` of one feed. Its methods are for the feed's thread; counters may be read by any.

    Attributes:
        connections: name -> Tally.
        dropped, dropped_bytes: messages that are in no file.
        written: messages (and packets) that are.
    """

    def __init__(self, spec: FeedSpec, settings: CaptureSettings, wake: Callable[[], None]) -> None:
        """Nothing is opened before there is something to write."""
        self.name = spec.name
        self.connections: dict[str, Tally] = {}
        self.written = 0
        self._spec = spec
        self._settings = settings
        self._wake = wake
        self._hidden = Hidden()
        self._queue = _Queue()
        self._refused = 0  # by a full queue
        self._failed = 0  # could not be written
        self._hole = self._hole_bytes = 0  # refused since what was queued last: told with the next that finds room
        self._torn = self._torn_bytes = 0  # failed since what was written last: told with the next that is written
        self._open: dict[str, str] = {}  # connections that are up where the file has reached -> their URL
        self._standing: dict[str, dict[str, tuple[int, str]]] = {}  # and what was noted of them: time and text, by `of`
        self._parts: dict[Kind, CaptureParts] = {}
        self._next_complaint_ns = 0
        self._several = False  # packets of more than one connection

    # -- from the feed's thread

    def hide(self, secret: str) -> None:
        """See `WireLog`."""
        self._hidden.add(secret)

    def connected(self, connection: str, at_ns: int, *, url: str = "", again: bool = False) -> None:
        """See `WireLog`."""
        tally = self._tally(connection)
        tally.up, tally.why = True, ""
        tally.connects += 1
        self._put(Line("connect", connection, at_ns / 1e9, at_ns, clean_url(url), again=again), b"")

    def sent(self, connection: str, data: bytes, at_ns: int, *, secret: bool = False) -> None:
        """See `WireLog`."""
        self._tally(connection).sent += 1
        self._put(Line("send", connection, at_ns / 1e9, at_ns, redacted=secret), b"" if secret else data)

    def received(self, connection: str, data: bytes, at_ns: int) -> None:
        """See `WireLog`."""
        self._count(connection, 1, len(data), at_ns)
        self._put(Line("recv", connection, at_ns / 1e9, at_ns), data)

    def asked(self, connection: str, url: str, at_ns: int) -> None:
        """See `WireLog`."""
        self._tally(connection).sent += 1
        self._put(Line("ask", connection, at_ns / 1e9, at_ns, clean_url(url)), b"")

    def answered(self, connection: str, url: str, status: int, body: bytes, at_ns: int) -> None:
        """See `WireLog`."""
        if status:
            self._count(connection, 1, len(body), at_ns)
        self._put(Line("http", connection, at_ns / 1e9, at_ns, clean_url(url), status), body)

    def packets(self, connection: str, records: bytes, count: int) -> None:
        """See `WireLog`."""
        self._tally(connection).up = True
        self._several |= len(self.connections) > 1
        if not count:
            return
        seconds, nanoseconds, *_ = _PACKET.unpack_from(records)
        self._count(connection, count, len(records), seconds * 1_000_000_000 + nanoseconds)
        if self._room(len(records), count):
            self._queue.items.append((None, records, count))
            self._queued(len(records))

    def noted(self, connection: str, text: str, at_ns: int) -> None:
        """See `WireLog`."""
        self._put(Line("note", connection, at_ns / 1e9, at_ns), text.encode(), _NOTES_BYTES)

    def lost(self, connection: str, at_ns: int, why: str = "") -> None:
        """See `WireLog`."""
        tally = self._tally(connection)
        tally.up, tally.why = False, why
        self._put(Line("disconnect", connection, at_ns / 1e9, at_ns, why=why), b"")

    def _tally(self, connection: str) -> Tally:
        found = self.connections.get(connection)
        if found is None:
            found = self.connections[connection] = Tally()
        return found

    def _count(self, connection: str, messages: int, size: int, at_ns: int) -> None:
        tally = self._tally(connection)
        tally.received += messages
        tally.received_bytes += size
        tally.last_ns = at_ns

    def _put(self, line: Line, data: bytes, beyond: int = 0) -> None:
        if not self._room(len(data) + _ITEM_BYTES, 1, beyond):
            return
        if self._hole:
            hole, self._hole = (self._hole, self._hole_bytes), 0
            self._queue.items.append((_dropped(*hole, line.ns), b""))
            self._queue.put_bytes += _ITEM_BYTES
        self._queue.items.append((line, data))
        self._queued(len(data) + _ITEM_BYTES)

    def _room(self, size: int, messages: int, beyond: int = 0) -> bool:
        if self._queue.waiting_bytes + size <= self._settings.queue_bytes + beyond:
            return True
        self._refused += messages
        self._hole_bytes = size + (self._hole_bytes if self._hole else 0)
        self._hole += messages
        return False

    def _queued(self, size: int) -> None:
        waiting = self._queue.waiting_bytes
        self._queue.put_bytes += size
        if waiting < _WAKE_BYTES <= waiting + size:
            self._wake()

    # -- what has become of it, for anybody

    @property
    def dropped(self) -> int:
        """Messages that are in no file."""
        return self._refused + self._failed

    @property
    def waiting_bytes(self) -> int:
        """In the queue."""
        return self._queue.waiting_bytes

    @property
    def bytes_written(self) -> int:
        """On disk, compressed."""
        return sum(parts.bytes_written for parts in tuple(self._parts.values()))

    @property
    def paths(self) -> list[Path]:
        """The files so far."""
        return [path for parts in tuple(self._parts.values()) for path in parts.paths]

    # -- from the writing thread

    def write_some(self, now_ns: int) -> bool:
        """Take what waits, up to one write, to the files; True if there is more."""
        lines: list[bytes] = []
        packets: list[bytes] = []
        messages = packet_count = size = 0
        opened = dict(self._open)
        standing = {name: dict(notes) for name, notes in self._standing.items()}
        items, queue = self._queue.items, self._queue
        if self._torn:
            lines.append(self._encode(_dropped(self._torn, self._torn_bytes, now_ns), b""))
            lines += self._kept_notes()
        while items and size < _WRITE_BYTES:
            item = items.popleft()
            if item[0] is None:
                packets.append(item[1])
                packet_count += item[2]
                taken = len(item[1])
            else:
                line, data = item
                text = self._encode(line, data)
                if len(text) > LINE_MAX_BYTES:  # which no reader takes
                    self._failed += 1
                    text = self._encode(_dropped(1, len(data), line.ns), b"")
                lines.append(text)
                messages += 1
                taken = len(data) + _ITEM_BYTES
                if line.t == "connect":
                    opened[line.conn] = line.url
                    standing.pop(line.conn, None)
                elif line.t == "disconnect":
                    opened.pop(line.conn, None)
                    standing.pop(line.conn, None)
                elif line.t == "note":
                    _stand(standing.setdefault(line.conn, {}), line)
            queue.taken_bytes += taken
            size += taken
        if messages and self._write("jsonl", b"".join(lines), messages, now_ns):
            self._torn = self._torn_bytes = 0
        self._open, self._standing = opened, standing
        if packets:
            self._write("pcap", self._in_order(packets), packet_count, now_ns)
        return bool(items)

    def failed(self) -> None:
        """Something could not be written, for a reason that nobody thought of."""
        self._failed += 1

    def close(self, now_ns: int) -> None:
        """What was dropped at the very end is told, and the last parts are done with."""
        missing = self._hole + self._torn
        if missing and "jsonl" in self._parts:
            line = _dropped(missing, self._hole_bytes + self._torn_bytes, now_ns)
            self._write("jsonl", self._encode(line, b""), 0, now_ns)
        for parts in self._parts.values():
            try:
                parts.close()
            except OSError as error:
                log.error("capture of %s: %s", self.name, error)

    def _write(self, kind: Kind, data: bytes, messages: int, now_ns: int) -> bool:
        parts = self._parts.get(kind)
        if parts is None:
            head = self._head if kind == "jsonl" else self._pcap_head
            parts = self._parts[kind] = CaptureParts(self.name, kind, self._settings, head)
        try:
            parts.write(data, now_ns)
        except OSError as error:
            self._failed += messages
            if kind == "jsonl":
                self._torn += messages
                self._torn_bytes += len(data)
            if now_ns >= self._next_complaint_ns:
                self._next_complaint_ns = now_ns + _COMPLAIN_EVERY_NS
                log.error("capture of %s: %d messages dropped so far: %s", self.name, self.dropped, error)
            return False
        self.written += messages
        return True

    def _head(self, part: int) -> bytes:
        kept = [Line("connect", name, url=url, kept=True) for name, url in self._open.items()]
        lines = [self._hidden.clean(msgspec.json.encode(line)) + b"\n" for line in kept]
        return self._headline(part) + b"\n" + b"".join((*lines, *self._kept_notes()))

    def _kept_notes(self) -> list[bytes]:
        """Those that stand, again: those of before are not in this part, or could not be written."""
        return [
            self._encode(Line("note", name, at_ns / 1e9, at_ns, kept=True), text.encode())
            for name, notes in self._standing.items()
            for at_ns, text in notes.values()
        ]

    def _pcap_head(self, part: int) -> bytes:
        """After the file's own header a packet to port "discard" of this host, which says what the capture is of."""
        text = self._headline(part)
        return PCAP_HEAD + (pcap_record(text, time.time_ns()) if len(text) <= MAX_HEAD_BYTES else b"")

    def _headline(self, part: int) -> bytes:
        spec = self._spec
        options = clean_options(msgspec.to_builtins(spec.options))
        feed = {
            "name": spec.name,
            "source": spec.source,
            "symbols": list(spec.symbols),
            "data_types": list(spec.data_types),
            "options": options,
        }
        exchange = str(spec.options.get("venue", spec.source)).upper()
        return self._hidden.clean(
            msgspec.json.encode(Head("header", 2, exchange, time.time(), "tickengine", part, feed))
        )

    def _encode(self, line: Line, data: bytes) -> bytes:
        data = self._hidden.clean(data)
        try:
            line.data = data.decode()
        except UnicodeDecodeError:
            line.b64 = base64.b64encode(data).decode()
        if line.url or line.why:
            return self._hidden.clean(msgspec.json.encode(line)) + b"\n"
        return msgspec.json.encode(line) + b"\n"

    def _in_order(self, chunks: list[bytes]) -> bytes:
        """Packets of several lines by their times, as they came to this host."""
        data = b"".join(chunks)
        if not self._several:
            return data
        found: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            seconds, nanoseconds, kept, _ = _PACKET.unpack_from(data, at)
            end = at + _PACKET.size + kept
            found.append((seconds * 1_000_000_000 + nanoseconds, data[at:end]))
            at = end
        found.sort(key=_time)
        return b"".join(packet for _, packet in found)


def _dropped(messages: int, size: int, at_ns: int) -> Line:
    return Line("dropped", "", at_ns / 1e9, at_ns, messages=messages, bytes=size)


def _stand(notes: dict[str, tuple[int, str]], line: Line) -> None:
    """A note, as it was written, among those that stand."""
    try:
        found = msgspec.json.decode(line.data, type=_Standing)
    except msgspec.MsgspecError:
        return
    notes.pop(found.of, None)  # the newest is the last
    if found.of and not found.over:
        notes[found.of] = line.ns, line.data


def _time(packet: tuple[int, bytes]) -> int:
    return packet[0]


class Recording:
    """All captures of a process, and the thread that writes them. Close it, or what still waits is lost."""

    def __init__(self, settings: CaptureSettings) -> None:
        """Starts the thread. OSError: the folder can't be written to; SettingsError: zstd is wanted and not there."""
        folder = Path(settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        CaptureParts("", "jsonl", settings, lambda _: b"")
        self.settings = settings
        self.logs: list[CaptureLog] = []
        self._wake = threading.Event()
        self._closing = False
        self._ending: deque[CaptureLog] = deque()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def log_of(self, spec: FeedSpec) -> CaptureLog:
        """Where this feed's source tells of its wire; a feed that comes again has its log again."""
        for one in self.logs:
            if one._spec == spec:
                return one
        made = CaptureLog(spec, self.settings, self._wake.set)
        self.logs.append(made)
        return made

    def end(self, spec: FeedSpec) -> None:
        """This feed is over: what waits of it is written, and its files end."""
        for one in [one for one in self.logs if one._spec == spec]:
            self.logs.remove(one)  # should the feed come again, it gets a log of its own
            self._ending.append(one)
        self._wake.set()

    def close(self) -> None:
        """Write what waits, end the files. Safe to call twice."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            closing = self._closing  # seen before the queues: what was put before `close` is in them
            for one in tuple(self.logs):
                self._write(one, ended=closing)
            while self._ending:
                self._write(self._ending.popleft(), ended=True)
            if closing:
                return
            self._wake.wait(self.settings.flush_s)
            self._wake.clear()

    @staticmethod
    def _write(one: CaptureLog, *, ended: bool) -> None:
        try:
            while one.write_some(time.time_ns()):
                pass
            if ended:
                one.close(time.time_ns())
        except Exception:  # the thread's outer loop: one feed's fault is counted, and is not the end of the others
            one.failed()
            log.exception("capture of %s", one.name)
