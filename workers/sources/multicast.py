"""A live feed over UDP multicast: lines A and B of one packet stream, arbitrated, asked for again, decoded.

    group, port --> kernel buffer --recvmmsg--> arbiter --frames in order--> decoder --> records
    (each line)     (rcvbuf)                    copies, holes                (as for captures)
    re-request server <--asked-- holes --answers--^

The ingest worker polls it (`workers.source.Source`). The packets go through the sans-I/O decoders that replay uses: a
capture of what a line brought replays to the same records, apart from source, flag REPLAYED and times of receipt.
`ts_receive` is the kernel's time of the copy that won.

Bounded throughout, losses counted: the kernel drops what finds the socket's buffer full (`kernel_drops`); `window`
packets wait behind holes, then the oldest hole is given up (`overflows`); a hole waits gap_wait_ms for the other line,
then for the re-request server (workers/arbitration.py), then it is a GAP record with the exact numbers.

A feed that begins in the middle of a session takes what comes from then on, or, with `join = "start"`, has the server
send everything from message 1 first (workers/sources/multicast_join.py): books are whole then.

A killed worker's successor knows from the status block what number was next: what was sent meanwhile is one hole, asked
for where there is a server and reported where there is none. Only a worker that is killed between publishing and its
next poll (which follows at once) may have its successor ask for, or report, what the last poll had published already.
"""

from __future__ import annotations

import logging
import selectors
import struct
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from shm.layout import Source
from shm.status import Counter
from workers._arbitration import MAX_LINES, PROTOCOLS, Arbiter
from workers.arbitration import MOLD_SESSION_BYTES, HolePolicy, Recovery
from workers.errors import SettingsError, SourceError
from workers.source import SourceContext, read_options
from workers.sources.multicast_join import Join, Run
from workers.sources.multicast_lines import (
    Line,
    LineOptions,
    LineSocket,
    check_host,
    check_lines,
    open_line,
    open_rerequest,
)
from workers.sources.selection import Selection
from workers.wire_log import WireLog

log = logging.getLogger("multicast")

BATCH: Final = 128  # datagrams of a line in one turn; MC_BATCH of multicast.h
MAX_WINDOW_BYTES: Final = 1 << 28
TURNS: Final = 64  # of one poll, however little they bring: the worker's heart goes on beating
IDLE_NS: Final = 100_000_000  # a look without a wake-up: counters, what the kernel may have forgotten to say
REPORT_EVERY_NS: Final = 250_000_000  # lines' counters
REREQUEST_RCVBUF_BYTES: Final = 1 << 20
_FRAMING: Final = {"mold-itch50": "mold", "iex-tops": "iex-tops", "iex-deep": "iex-deep"}
_TOTALS: Final = (
    *("lost", "held", "overflows", "sessions_over", "requests", "unanswered", "silent_lines"),
    *("joining", "joined", "put_off"),
)
_LEVELS: Final = ("held", "silent_lines", "joining")  # of the totals: what is now, not what has been so far
SILENT_NS: Final = 5_000_000_000  # a line without packets for so long while another has them
_LINE_COUNTERS: Final = ("packets", "duplicates", "late", "missing", "won", "refused", "last_ns")


class MulticastOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "multicast"."""

    protocol: Literal["mold-itch50", "iex-tops", "iex-deep"]
    lines: Annotated[tuple[LineOptions, ...], Meta(min_length=1, max_length=MAX_LINES)]
    rcvbuf: Annotated[int, Meta(ge=4096, le=1 << 30)] = 16 << 20  # bytes of each line's socket buffer
    window: Annotated[int, Meta(ge=1, le=1 << 16)] = 4096  # packets that may wait behind holes
    max_datagram: Annotated[int, Meta(ge=64, le=65536)] = 2048  # bytes; longer ones are refused and counted
    gap_wait_ms: Annotated[float, Meta(ge=0, le=60_000)] = 10.0  # for the other line
    rerequest: str = ""  # host:port of a MoldUDP64 re-request server
    rerequest_timeout_ms: Annotated[float, Meta(gt=0, le=60_000)] = 100.0  # for an answer
    rerequest_retries: Annotated[int, Meta(ge=0, le=100)] = 3  # after the first request
    rerequest_per_s: Annotated[float, Meta(gt=0, le=1e5)] = 100.0  # requests at most
    join: Literal["now", "start"] = "now"  # of a session that has begun: from now on, or from its first message
    book: bool = True  # make quotes from orders or price levels


class MulticastSource:
    """See `workers.source.Source`. Never finishes: the next day's session comes on the same lines."""

    def __init__(self, context: SourceContext) -> None:
        """Join the groups. SettingsError for what can't work, SourceError for what can't now."""
        spec = context.spec
        self._name = spec.name
        self._options = options = read_options(spec, MulticastOptions)
        lines = check_lines(spec.name, options.lines)
        server = check_host(spec.name, options.rerequest) if options.rerequest else None
        if server and options.protocol != "mold-itch50":
            raise SettingsError(f"feed {spec.name}: options.rerequest: {options.protocol} has no re-requests over UDP")
        if options.join == "start" and server is None:
            raise SettingsError(f'feed {spec.name}: options.join is "start": needs options.rerequest, a server to ask')
        if options.window * options.max_datagram > MAX_WINDOW_BYTES:
            raise SettingsError(
                f"feed {spec.name}: options.window times options.max_datagram is "
                f"{options.window * options.max_datagram:,} bytes; must be at most {MAX_WINDOW_BYTES:,}"
            )
        self._selection = Selection(context)
        self._wire = context.wire
        self.errors = 0
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self.orders = options.protocol == "mold-itch50"
        self._arbiter = Arbiter(
            _FRAMING[options.protocol],
            window=options.window,
            batch=BATCH * (len(lines) + (server is not None)),
            slot_bytes=options.max_datagram,
            from_start=options.join == "start",
        )
        self._join: Join | None = None
        self._runs: deque[Run] = deque()  # of the frames in hand, while a session is joined
        self._in_run = False  # the decoder has one of them
        policy = HolePolicy(
            gap_wait_ns=round(options.gap_wait_ms * 1e6),
            ask=server is not None,
            timeout_ns=round(options.rerequest_timeout_ms * 1e6),
            retries=options.rerequest_retries,
            per_second=options.rerequest_per_s,
        )
        self._recovery = Recovery(self._arbiter, policy)
        self._decoder = _decoder(options, context)
        self._report = _Report(context, len(lines), with_server=server is not None)
        self._selector = selectors.DefaultSelector()
        self.fd = self._selector.fileno()  # readable when one of the lines is
        self._sockets: list[LineSocket] = []
        self._server: LineSocket | None = None
        self._holes_due_ns: int | None = None
        self._done: tuple[bytes, int] = (b"", 0)  # all messages below it have been handed out
        try:
            for number, line in enumerate(lines):
                self._sockets.append(open_line(line, number, options.rcvbuf))
            if server is not None:
                self._server = open_rerequest(*server, MAX_LINES, REREQUEST_RCVBUF_BYTES)
                self._sockets.append(self._server)
            if self._wire is not None:
                self._tap(self._wire, lines)
            for opened in self._sockets:
                self._selector.register(opened.fd, selectors.EVENT_READ)
            key, expected = self._report.position()
            if options.join == "start":
                self._join = Join(key, expected)
            else:
                self._go_on_from(key, expected)
        except BaseException:
            self.close()
            raise

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`. SourceError: a socket failed."""
        key, expected = self._done
        self._report.remember(key, expected if self._join is None else self._join.position(key, expected))
        filled = turns = 0
        while filled < len(out) and turns < TURNS:
            got = self._decoder.decode(out[filled:])
            if got:
                filled += (
                    self._join.keep(out[filled : filled + got]) if self._in_run and self._join is not None else got
                )
                continue
            if self._join is not None and self._next_run(self._join):
                continue
            turns += 1
            self._arbiter.recycle()
            self._done = self._arbiter.position()
            joins = self._join is not None and self._join.is_needed(self._arbiter)
            busy = self._receive(now_ns)
            self._mind_holes(now_ns)
            frames = self._arbiter.frames
            if len(frames):
                if self._join is not None and (joins or self._join.is_needed(self._arbiter)):
                    self._runs.extend(self._join.runs(self._arbiter))
                else:
                    self._decoder.feed(self._arbiter, frames)
            elif not busy:
                break
        self.errors = self._decoder.errors + self._arbiter.refused
        self.gaps = self._decoder.gaps
        self.bytes_received = self._arbiter.bytes_received
        self._report.lines(self._arbiter, self._sockets, self._recovery, now_ns)
        self.next_due_ns = now_ns  # after records another poll at once: it remembers that they were published
        if not filled and turns < TURNS:
            self.next_due_ns = min(now_ns + IDLE_NS, self._holes_due_ns or now_ns + IDLE_NS)
        return len(self._selection.keep(out[:filled])) if filled else 0

    def _next_run(self, join: Join) -> bool:
        """Give the decoder the next of the frames in hand; False: there is none."""
        self._in_run = bool(self._runs)
        if self._in_run:
            run = self._runs.popleft()
            join.begin(run)
            self._decoder.feed(run.buffer, run.frames)
        return self._in_run

    def _receive(self, now_ns: int) -> bool:
        """A batch of each line, as far as there is room; False: nothing is there."""
        busy = False
        for line in self._sockets:
            try:
                got = line.receive(self._arbiter, now_ns)
                busy |= got > 0
                if got and self._wire is not None:
                    self._wire.packets(line.name, *line.tapped())
            except ConnectionError as error:  # the re-request server is not there; the hole's retries deal with it
                log.debug("feed %s: re-request server: %s", self._name, error)
            except OSError as error:
                raise SourceError(f"receiving: {error.strerror or error}") from None
        return busy

    def _tap(self, wire: WireLog, lines: tuple[Line, ...]) -> None:
        for line, opened in zip(lines, self._sockets, strict=False):
            opened.tap(self._options.max_datagram, line.group, line.port)
        if self._server is not None:
            self._server.tap(self._options.max_datagram)
        for opened in self._sockets:
            wire.packets(opened.name, b"", 0)

    def _mind_holes(self, now_ns: int) -> None:
        if not self._arbiter.held:
            self._holes_due_ns = None
            return
        requests, self._holes_due_ns = self._recovery.step(now_ns)
        for request in requests:
            assert self._server is not None
            try:
                self._server.send(request.encode())
            except OSError as error:  # counts as a request without an answer
                log.debug("feed %s: re-request server: %s", self._name, error)

    def skip(self, records: int) -> None:  # noqa: ARG002  the protocol's
        """Nothing here can be had again."""
        raise SourceError("a live feed can't be skipped through")

    def resume(self, now_ns: int) -> None:  # noqa: ARG002  the protocol's
        """What came during the pause is thrown away; the next packet's GAP record says what that was."""
        gone = sum(line.discard() for line in self._sockets)
        log.info("feed %s: goes on; %d datagrams of the pause were thrown away", self._name, gone)
        self._arbiter.rebase()

    def close(self) -> None:
        """Leave the groups. Safe to call twice."""
        self._selector.close()
        for line in self._sockets:
            line.close()
        self._sockets = []

    def _go_on_from(self, key: bytes, expected: int) -> None:
        """The worker before this one had everything below `expected`: a heartbeat says so to arbiter and decoder."""
        if not expected:
            return
        log.info("feed %s: goes on at message %d", self._name, expected)
        self._arbiter.offer(MAX_LINES, heartbeat(self._options.protocol, key, expected), 0, 0)
        self._decoder.feed(self._arbiter, self._arbiter.frames)


class _Report:
    """The feed's counters beside those that every feed has: lines, holes, where to go on. Names: multicast.FEED.…"""

    def __init__(self, context: SourceContext, lines: int, *, with_server: bool) -> None:
        self._prefix = f"multicast.{context.spec.feed_id}"
        self._counter = context.counter
        self._line_counters: dict[int, tuple[Counter, ...]] = {}
        self._next_ns = 0
        self._remembered = (b"", 0)
        self._silent: set[int] = set()
        self._joining = 0
        self._opened_ns = 0
        if self._counter is None:
            return
        named: Callable[[str], Counter] = self._counter
        names = {number: f"line{number}" for number in range(lines)}
        if with_server:
            names[MAX_LINES] = "rerequest"
        for number, name in names.items():
            self._line_counters[number] = tuple(named(f"{self._prefix}.{name}.{what}") for what in _LINE_COUNTERS)
        self._drops = tuple(named(f"{self._prefix}.{names[number]}.kernel_drops") for number in names)
        self._totals = tuple(named(f"{self._prefix}.{what}") for what in _TOTALS)
        self._place = tuple(named(f"{self._prefix}.{what}") for what in ("next", "session_high", "session_low"))
        # The counters go on where the source before this one left them.
        self._base = {number: [c.value for c in counters] for number, counters in self._line_counters.items()}
        self._base_drops = dict(zip(names, (c.value for c in self._drops), strict=True))
        self._base_totals = [c.value for c in self._totals]

    def position(self) -> tuple[bytes, int]:
        """What the source before this one had remembered; (b"", 0) if nothing."""
        if self._counter is None:
            return b"", 0
        expected, high, low = (counter.value for counter in self._place)
        return high.to_bytes(8, "big") + low.to_bytes(8, "big"), expected

    def remember(self, key: bytes, expected: int) -> None:
        """Everything below `expected` has been handed out and published."""
        if self._counter is None or not expected or (key, expected) == self._remembered:
            return
        self._remembered = (key, expected)
        self._place[0].set(0)  # no reader may pair one session's number with another's name
        self._place[1].set(int.from_bytes(key[:8], "big"))
        self._place[2].set(int.from_bytes(key[8:16], "big"))
        self._place[0].set(expected)

    def lines(self, arbiter: Arbiter, sockets: list[LineSocket], recovery: Recovery, now_ns: int) -> None:
        """Show what the lines have counted, now and then."""
        if self._counter is None or 0 <= self._next_ns - now_ns <= REPORT_EVERY_NS:
            return
        self._next_ns = now_ns + REPORT_EVERY_NS
        for (number, counters), line, drops in zip(self._line_counters.items(), sockets, self._drops, strict=True):
            counted = arbiter.line(number)
            for what, counter, base in zip(_LINE_COUNTERS, counters, self._base[number], strict=True):
                counter.set(counted[what] + (0 if what == "last_ns" else base))
            drops.set(line.kernel_drops + self._base_drops[number])
        totals = (
            arbiter.lost,
            arbiter.held,
            arbiter.overflows,
            arbiter.sessions_over,
            recovery.requests,
            recovery.unanswered,
            self._count_silent(arbiter, now_ns),
            self._count_joining(arbiter),
            arbiter.joined,
            arbiter.put_off,
        )
        for what, counter, total, base in zip(_TOTALS, self._totals, totals, self._base_totals, strict=True):
            counter.set(total + (0 if what in _LEVELS else base))

    def _count_joining(self, arbiter: Arbiter) -> int:
        joining = arbiter.joining
        if joining and not self._joining:
            log.info("%s: joins late: %d messages are asked for", self._prefix, joining)
        elif self._joining and not joining:
            log.info("%s: has joined; %d messages were asked for and came", self._prefix, arbiter.joined)
        self._joining = joining
        return joining

    def _count_silent(self, arbiter: Arbiter, now_ns: int) -> int:
        self._opened_ns = self._opened_ns or now_ns
        last_ns = {number: arbiter.line(number)["last_ns"] for number in self._line_counters if number != MAX_LINES}
        silent = silent_lines(last_ns, self._opened_ns)
        for number in sorted(silent ^ self._silent):
            state = "brings nothing, others do" if number in silent else "brings packets again"
            log.warning("%s: line %d %s", self._prefix, number, state)
        self._silent = silent
        return len(silent)


def silent_lines(last_ns: dict[int, int], opened_ns: int) -> set[int]:
    """The lines that bring nothing while another does: redundancy that is gone, which no gap tells.

    Args:
        last_ns: line -> time of receipt of its last packet, 0 = none yet.
        opened_ns: since when they are listened to.
    """
    newest_ns = max(last_ns.values())
    return {number for number, at_ns in last_ns.items() if max(at_ns, opened_ns) < newest_ns - SILENT_NS}


def heartbeat(protocol: str, key: bytes, expected: int) -> bytes:
    """A packet without messages that names the next number. `key` as in `Arbiter.position`."""
    if protocol == "mold-itch50":
        return key[:MOLD_SESSION_BYTES] + expected.to_bytes(8, "big") + bytes(2)
    message_protocol = PROTOCOLS[protocol]
    return struct.pack("<BxH8sHHQQQ", 1, message_protocol, key[:8], 0, 0, 0, expected, 0)


def _decoder(options: MulticastOptions, context: SourceContext) -> Any:
    """The decoder that replay uses for such packets; imported here: settings of other protocols need none of it."""
    if options.protocol == "mold-itch50":
        from workers.decoders._itch import ItchDecoder

        return ItchDecoder(context.intern, book=options.book, source=Source.MULTICAST, feed_id=context.spec.feed_id)
    from workers.decoders._iex import IexDecoder

    return IexDecoder(context.intern, book=options.book, source=Source.MULTICAST, feed_id=context.spec.feed_id)
