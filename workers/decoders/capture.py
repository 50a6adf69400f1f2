"""A capture file as records: what replay and replay-info read.

    CaptureFile -> container -> decoder -> RECORD arrays
    (unpacks)      (frames)     (records)

The format is found by content and, where that does not say it, by name (`detection.py`); options help where neither can
tell. Original times are kept, records are flagged REPLAYED. Reads the file piece by piece; never paces, publishes or
reads a clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from importlib import import_module
from typing import Any, Final, Protocol

import numpy as np

from shm.layout import RECORD, Flag, Source
from workers.decoders import tick_files
from workers.decoders.capture_file import CaptureFile, PairedLines
from workers.decoders.detection import FORMATS, HEAD_PORT, PROTOCOLS, detect, head_of, protocol_of
from workers.decoders.protocol import Batch, Container, Counters, Decoder, FramingError, UnknownFormatError
from workers.decoders.single import single_messages
from workers.errors import SettingsError

Intern = Callable[[str], int]

# What may stand in `options`, for messages and for `tickengine config`.
OPTIONS: Final = {
    "format": f"one of {', '.join(FORMATS)}; default: found by content",
    "protocol": f"of the datagrams in a packet capture: one of {', '.join(PROTOCOLS)}; default: found by content",
    "port": "UDP port to read in a packet capture; default: all",
    "date": "day that times count from, YYYY-MM-DD; default: of ITCH and PITCH the capture's, else the file's name",
    "book": "true: quotes of the best prices, from ITCH and PITCH orders, IEX DEEP and CME price levels; "
    "default: false, or as the captured feed had it",
    "orders": "true: level2 of single orders, not of price levels, from CME packets; default: false",
    "arbitrate": "true: all packets of a capture are of one stream, in copies (lines A and B): the first wins; "
    "default: false, but true in captures of our own",
    "gap_wait_ms": "with arbitrate: how long a hole waits for another line's copy; default: 10, or as the feed had it",
    "symbol": "whose a Binance depth snapshot or a file of ticks is that does not say so; default: the file's name",
    "point": "Dukascopy: price of one unit; default: 0.00001, and 0.001 for JPY, RUB, HUF, metals and what is no pair",
    "venue": "venue code of the records; default: the format's own",
}
# Source of a feed that `tickengine capture` wrote as text -> module and class of its decoder.
CAPTURED: Final = {
    "fix": ("workers.sources.fix_replayed", "FixReplay"),
    "websocket": ("workers.venues.replayed", "VenueReplay"),
    "yahoo": ("workers.sources.polled_replay", "yahoo_replay"),
    "alpha_vantage": ("workers.sources.polled_replay", "PolledReplay"),
    "fred": ("workers.sources.polled_replay", "PolledReplay"),
    "ibkr": ("workers.sources.ibkr_replay", "IbkrReplay"),
}
_PROBE_DATAGRAMS: Final = 4096
_PROTOCOL_TITLES: Final = {
    "iex": "IEX TOPS/DEEP",
    "itch": "NASDAQ ITCH 5.0",
    "mdp3": "CME MDP 3.0",
    "pitch": "Cboe PITCH",
}


class Faults(Protocol):
    """Damages what a capture holds before it is decoded (workers/sources/faults.py)."""

    def apply(self, batch: Batch) -> Batch:
        """What becomes of the next frames, each of which is one message."""

    def finish(self) -> Batch:
        """What was still held back at the end of the file."""


class Capture:
    """One file being decoded. Not thread-safe."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        intern: Intern,
        options: Mapping[str, Any],
        feed_id: int,
        *,
        after: Capture | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._options = _checked(options)
        self._faults = faults
        self._book = bool(self._options.get("book", False))
        self._symbols: dict[str, int] = {}
        self._intern = _remembering(intern, self._symbols)
        self._feed_id = feed_id
        self._failure: FramingError | None = None
        self._truncated_bytes = 0
        self._ended = False
        self.done = False  # all records have been handed out
        self._finished = False  # the decoder knows that the input has ended
        self._taken = 0  # bytes of the input in the present call of `decode`
        self.file: CaptureFile | PairedLines = CaptureFile(path)
        try:
            self._head = self.file.read()
            self._layout = str(self._options.get("format") or detect(self._head, self.file.path))
            if self._layout == "lobster":
                self.file.close()
                self.file = PairedLines(path, tick_files.orderbook_of(self.file.path))
                self._head = self.file.read()
            self._container: Any
            self._decoder: Any
            self._waiting: list[tuple[Batch, float]] = []  # and how far into the file it reaches
            # Of the batch in hand: from where to where in the file, 0 to 1; its bytes; those decoded before it.
            self._span = (0.0, 0.0, 0, 0)
            self._begin()
            if after is not None and type(after._decoder) is type(self._decoder):
                self._decoder = after._decoder  # its books, numbering and counters go on
                self._truncated_bytes = after._truncated_bytes
        except BaseException:
            self.file.close()
            raise

    # ---- reading --------------------------------------------------------------------------------------------------

    def decode(self, out: np.ndarray, *, input_bytes: int = 0) -> int:
        """Fills `out` (dtype RECORD) from its front; returns the count, 0 = end of file.

        `input_bytes`: return when more of the unpacked input than that has been decoded, too, with whatever came of it;
        0 is the end then only if `done`. Raises FramingError once, after every record before the damage was handed
        out; from then on it returns 0.
        """
        if out.dtype != RECORD:
            raise SettingsError(f"out must have dtype RECORD, not {out.dtype}")
        filled = 0
        self._taken = 0
        while filled < len(out):
            got = self._decoder.decode(out[filled:] if filled else out)
            if got:
                filled += got
            elif input_bytes and self._taken >= input_bytes:
                break
            elif not self._advance():
                self.done = self._failure is None
                if self._failure is not None and not filled:
                    failure, self._failure = self._failure, None
                    raise failure
                break
        return filled

    def first_received_ns(self) -> int:
        """When the file's first message was received, ns; 0 = it does not say, or holds none. Only before `decode`."""
        while True:
            for batch, _ in self._waiting:
                if len(batch.frames):
                    return int(batch.frames["ts_receive"][0])
            piece = self._read() if self._container.error is None else b""
            if not piece:
                return 0
            self._waiting.append((self._container.feed(piece), self.file.progress))

    def _advance(self) -> bool:
        """Gives the decoder its next frames; False = there are no more."""
        while not self._ended:
            if self._waiting:
                batch, reached = self._waiting.pop(0)
            else:
                piece = self._read()
                batch = self._container.feed(piece) if piece else self._finish()
                if self._container.error is not None:
                    self._failure = self._container.error
                    self._ended = not len(batch.frames)
                reached = self.file.progress
            if self._faults is not None and len(batch.frames):
                record_bytes = getattr(self._container, "record_bytes", 0)
                batch = self._faults.apply(single_messages(batch, self._layout, record_bytes))
            if len(batch.frames):
                size = int(batch.frames["size"].sum())
                self._taken += size
                self._span = self._span[1], reached, size, self._decoder.counters.bytes
                self._decoder.feed(batch.buffer, batch.frames)
                return True
            self._ended = self._ended or self._failure is not None
        if self._faults is not None:
            batch = self._faults.finish()
            if len(batch.frames):
                self._decoder.feed(batch.buffer, batch.frames)
                return True
        if not self._finished and hasattr(self._decoder, "finish"):
            self._finished = True
            self._decoder.finish()
            return True
        return False

    def _read(self) -> bytes:
        if self._failure is not None:
            return b""
        if self._head:
            head, self._head = self._head, b""
            return head
        try:
            return self.file.read()
        except FramingError as failure:
            self._failure = failure
            return b""

    def _finish(self) -> Batch:
        """The input has ended: a last line may lack its newline; of a binary message nothing can be missing."""
        self._ended = True
        left = self._container.finish()
        if left and self._layout in {"lines", "jsonl", "truefx", "lobster"}:
            batch: Batch = self._container.feed(b"\n")
            self._ended = not len(batch.frames)
            return batch
        self._truncated_bytes += left
        return Batch(b"", np.zeros(0, np.uint8))

    # ---- what it is -----------------------------------------------------------------------------------------------

    def _stamp(self) -> dict[str, Any]:
        venue = self._options.get("venue")
        stamp = {"source": int(Source.REPLAY), "feed_id": self._feed_id, "flags": int(Flag.REPLAYED)}
        return stamp if venue is None else {**stamp, "venue": str(venue).encode()}

    def _begin(self) -> None:
        """Chooses container and decoder; for packet captures that takes a look at the first datagrams."""
        from workers.decoders import _containers

        stamp = self._stamp()
        if self._layout == "dbz":
            from workers.decoders._dbn import DbnDecoder, DbnReader
            from workers.decoders.dbz import DbzFile

            path = self.file.path
            self.file.close()
            self.file = DbzFile(path)
            self._head = self.file.read()
            self._container = DbnReader(fragment=True)
            self._container.symbols.load(self.file.header)
            self._schema = self.file.header.schema
            self._decoder = DbnDecoder(self._intern, self._container.symbols, **stamp)
        elif self._layout in {"dbn", "dbn-fragment"}:
            from workers.decoders._dbn import DbnDecoder, DbnReader

            self._container = DbnReader(fragment=self._layout == "dbn-fragment")
            self._decoder = DbnDecoder(self._intern, self._container.symbols, **stamp)
        elif self._layout == "itch":
            from workers.decoders._itch import ItchDecoder

            self._container = _containers.LengthReader()
            self._decoder = ItchDecoder(
                self._intern, packets=False, session_date=self._options.get("date"), book=self._book, **stamp
            )
        elif self._layout == "pcap":
            self._container = _containers.PacketReader(int(self._options.get("port", 0)))
            self._begin_packets(stamp)
        elif self._layout == "lines":
            self._container = _containers.LineReader()
            self._begin_messages(self._head[:65536], stamp)
        elif self._layout == "fix":
            from workers.decoders._fix import FixDecoder, FixReader

            self._container = FixReader(log=True)
            self._decoder = FixDecoder(self._intern, **stamp)
        elif self._layout in tick_files.FORMATS:
            self._container, self._decoder = tick_files.open_decoder(
                self._layout, self.file.path, self._intern, self._options, stamp
            )
        else:
            from workers.decoders.jsonl import JsonlReader

            self._container = JsonlReader()
            self._begin_jsonl(stamp)

    def _begin_packets(self, stamp: dict[str, Any]) -> None:
        self._take_packets()
        self._take_head()
        protocol = str(self._options.get("protocol", ""))
        ports: set[int] = set()
        seen = probed = 0
        while not protocol and seen < _PROBE_DATAGRAMS:
            if probed == len(self._waiting) and not self._take_packets():
                break
            batch, probed = self._waiting[probed][0], probed + 1
            for frame in batch.frames[: _PROBE_DATAGRAMS - seen]:
                first = int(frame["offset"])
                protocol = protocol_of(batch.buffer[first : first + int(frame["size"])])
                ports.add(int(frame["port"]))
                seen += 1
                if protocol:
                    break
        if protocol == "iex":
            from workers.decoders._iex import IexDecoder

            self._decoder = IexDecoder(self._intern, book=self._book, **stamp)
        elif protocol == "itch":
            from workers.decoders._itch import ItchDecoder

            self._decoder = ItchDecoder(self._intern, session_date=self._options.get("date"), book=self._book, **stamp)
        elif protocol == "mdp3":
            from workers.decoders._mdp3 import Mdp3Decoder

            if self._options.get("arbitrate"):
                raise SettingsError("option arbitrate = true: not for CME packets; option port names one line")
            orders = bool(self._options.get("orders", False))
            self._decoder = Mdp3Decoder(self._intern, book=self._book, orders=orders, **stamp)
        elif protocol == "pitch":
            from workers.decoders._pitch import PitchDecoder

            self._decoder = PitchDecoder(self._intern, session_date=self._options.get("date"), book=self._book, **stamp)
            if self._options.get("arbitrate"):
                raise SettingsError("option arbitrate = true: not for Cboe PITCH; its second copies are dropped anyway")
        elif self._failure is not None and not seen:
            raise self._failure
        else:
            where = f" to ports {sorted(ports)[:8]}" if ports else ""
            raise UnknownFormatError(
                f"packet capture: {seen} UDP datagrams{where}, "
                "none of IEX-TP, MoldUDP64/ITCH 5.0, Cboe PITCH or CME MDP 3.0"
            )
        self._protocol = protocol
        if self._options.get("arbitrate"):
            from workers.decoders.arbitrated import ArbitratedDecoder

            self._decoder = ArbitratedDecoder(self._decoder, protocol, float(self._options.get("gap_wait_ms", 10.0)))

    def _take_packets(self) -> bool:
        """One more piece of the file among what waits; False = there is none."""
        if self._failure is not None:
            return False
        piece = self._read()
        if not piece:
            return False
        self._waiting.append((self._container.feed(piece), self.file.progress))
        self._failure = self._container.error
        return True

    def _take_head(self) -> None:
        """A packet capture of our own begins with a packet that says what it is of: decoded as that feed was, unless
        the options say otherwise."""
        if not self._waiting or not len(self._waiting[0][0].frames):
            return
        batch, reached = self._waiting[0]
        frame = batch.frames[0]
        start = int(frame["offset"])
        captured = head_of(batch.buffer[start : start + int(frame["size"])]) if frame["port"] == HEAD_PORT else None
        if captured is None:
            return
        self._waiting[0] = Batch(batch.buffer, batch.frames[1:]), reached
        had = captured["options"]
        try:
            wait_ms = float(had.get("gap_wait_ms", 10.0))
            if had.get("rerequest"):
                wait_ms += float(had.get("rerequest_timeout_ms", 100.0)) * (1 + int(had.get("rerequest_retries", 3)))
        except (TypeError, ValueError):
            return  # somebody has changed it
        self._book = bool(self._options.get("book", had.get("book", True)))
        self._options = _checked({"arbitrate": True, "gap_wait_ms": wait_ms, **self._options})

    def _begin_messages(self, sample: bytes, stamp: dict[str, Any]) -> None:
        if b'"sequence_num":' in sample and b'"channel":' in sample:
            from workers.decoders._coinbase import CoinbaseDecoder

            self._decoder = CoinbaseDecoder(self._intern, **stamp)
        elif b'"stream":"' in sample or b'"e":"' in sample or b'"lastUpdateId":' in sample:
            from workers.decoders._binance import BinanceDecoder

            self._decoder = BinanceDecoder(self._intern, symbol=self._options.get("symbol"), **stamp)
        elif b'"coin":"' in sample and b'"channel":' in sample:
            from workers.decoders.hyperliquid import HyperliquidDecoder

            self._decoder = HyperliquidDecoder(self._intern, **stamp)
        elif b'"chanId":' in sample:
            from workers.decoders.bitfinex import BitfinexDecoder

            self._decoder = BitfinexDecoder(self._intern, **stamp)
        else:
            raise UnknownFormatError(f"lines of JSON from a venue without a decoder: {sample[:80]!r}")

    def _begin_jsonl(self, stamp: dict[str, Any]) -> None:
        exchange = ""
        while not exchange:
            piece = self._read()
            if not piece:
                break
            self._waiting.append((self._container.feed(piece), self.file.progress))
            exchange = str(self._container.exchange).upper()
            if self._container.captured:
                self._begin_captured(self._container.captured)
                return
            if self._waiting[-1][0].frames.size:
                break
        if exchange.startswith("BINANCE"):
            from workers.decoders._binance import BinanceDecoder

            self._decoder = BinanceDecoder(self._intern, symbol=self._options.get("symbol"), **stamp)
        elif exchange.startswith("COINBASE"):
            from workers.decoders._coinbase import CoinbaseDecoder

            self._decoder = CoinbaseDecoder(self._intern, **stamp)
        elif exchange.startswith("BITFINEX"):
            from workers.decoders.bitfinex import BitfinexDecoder

            self._decoder = BitfinexDecoder(self._intern, **stamp)
        elif exchange.startswith("HYPERLIQUID"):
            from workers.decoders.hyperliquid import HyperliquidDecoder

            self._decoder = HyperliquidDecoder(self._intern, **stamp)
        elif exchange.startswith("BITSTAMP"):
            from workers.decoders.bitstamp import BitstampDecoder

            self._decoder = BitstampDecoder(self._intern, **stamp)
        else:
            raise UnknownFormatError(
                f"WebSocket capture of {exchange or 'an exchange without a name'}: no decoder for it"
            )

    def _begin_captured(self, captured: Mapping[str, Any]) -> None:
        """A capture of our own: decoded by what its feed was decoded by."""
        source = captured.get("source")
        if source not in CAPTURED:
            known = ", ".join(sorted(CAPTURED))
            raise UnknownFormatError(f"capture of a feed from source {source!r}: no decoder for it; there is {known}")
        module, name = CAPTURED[source]
        self._decoder = getattr(import_module(module), name)(
            captured, self._intern, feed_id=self._feed_id, venue=self._options.get("venue")
        )
        if self._faults is not None and not getattr(self._decoder, "DAMAGEABLE", True):
            name = self.file.path.name
            raise SettingsError(f"faults: {name} is of a polled feed, whose answers come whole or not at all")

    @property
    def container(self) -> Container:
        """What cuts the file into frames."""
        container: Container = self._container
        return container

    @property
    def decoder(self) -> Decoder:
        """What turns the frames into records."""
        decoder: Decoder = self._decoder
        return decoder

    @property
    def format(self) -> str:
        """For people: what the file holds, in what, and how it is packed."""
        if self._layout == "pcap":
            text = f"{_PROTOCOL_TITLES[self._protocol]} in {self._container.layout}"
        elif self._layout == "dbz":
            text = f"Databento DBZ {self._schema}"
        elif self._layout in {"dbn", "dbn-fragment"}:
            version = f" v{self._container.version}" if self._container.version else ""
            text = f"Databento DBN{version} {self._container.schema or 'fragment'}".rstrip()
        elif self._layout == "itch":
            text = "NASDAQ ITCH 5.0, length-framed"
        elif self._layout == "fix":
            text = "FIX messages"
        elif self._layout in tick_files.FORMATS:
            text = tick_files.TITLES[self._layout]
        else:
            venue = getattr(self._decoder, "venue", "").title() or type(self._decoder).__name__.removesuffix("Decoder")
            wire = getattr(self._decoder, "WIRE", "WebSocket messages")
            text = f"{venue} {wire}, {'timed lines' if self._layout == 'lines' else 'jsonl capture'}"
        return f"{text} ({self.file.compression})" if self.file.compression else text

    @property
    def progress(self) -> float:
        """How much of the file has been decoded, 0 to 1."""
        if self._ended:
            return self.file.progress
        begin, end, frame_bytes, before = self._span
        share = (self._decoder.counters.bytes - before) / frame_bytes if frame_bytes else 0.0
        return begin + (end - begin) * min(1.0, share)

    @property
    def counters(self) -> Counters:
        """Snapshot of what was decoded so far."""
        counters: Counters = self._decoder.counters
        if self._truncated_bytes:
            counters.malformed["truncated"] = counters.malformed.get("truncated", 0) + 1
        return counters

    @property
    def symbols(self) -> dict[str, int]:
        """Symbols met so far and their instrument ids."""
        return dict(self._symbols)

    def describe(self) -> dict[str, Any]:
        """What was decoded so far, in plain types for replay-info; decode to the end first for the whole file."""
        counters = self.counters
        return {
            "path": str(self.file.path),
            "format": self.format,
            "size_bytes": self.file.size_bytes,
            "progress": self.progress,
            "frames": counters.frames,
            "messages": counters.messages,
            "records": counters.records,
            "first": _iso(counters.first_ns),
            "last": _iso(counters.last_ns),
            "first_ns": counters.first_ns,
            "last_ns": counters.last_ns,
            "symbols": sorted(self._symbols),
            "gaps": counters.gaps,
            "missing": counters.missing,
            "gap_ranges": [tuple(gap) for gap in counters.gap_ranges],
            "duplicates": counters.duplicates,
            "heartbeats": counters.heartbeats,
            "malformed": counters.malformed,
            "truncated_bytes": self._truncated_bytes,
            "passed_over": self._container.counts(),
        }

    def close(self) -> None:
        """Closes the file; the counters stay. May be called more than once."""
        self._ended = True
        self.file.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_capture(
    path: str | os.PathLike[str],
    *,
    intern: Intern,
    options: Mapping[str, Any] | None = None,
    feed_id: int = 0,
    after: Capture | None = None,
    faults: Faults | None = None,
) -> Capture:
    """Opens a capture file; `intern(symbol) -> instrument id`; `options`: see OPTIONS.

    `after`: the capture that this one is the next part of (workers.capture_files.follows): its decoder goes on, and
    so do its counters. `faults`: what is done to the messages before they are decoded.

    Raises OSError, SettingsError for an option that cannot be, UnknownFormatError for content without a decoder, and
    FramingError if the file is damaged before its first message.
    """
    return Capture(path, intern, options or {}, feed_id, after=after, faults=faults)


def describe_capture(path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Decodes a whole file and describes it, with the framing error that ended it early, if any, under "error"."""
    numbers: dict[str, int] = {}
    out = np.empty(8192, RECORD)
    with open_capture(path, intern=lambda symbol: numbers.setdefault(symbol, len(numbers)), options=options) as capture:
        error = ""
        try:
            while capture.decode(out):
                pass
        except FramingError as problem:
            error = str(problem)
        return {**capture.describe(), "error": error}


def _remembering(intern: Intern, symbols: dict[str, int]) -> Intern:
    """`intern` that keeps what it was asked for. Not a method: a decoder that held its capture would be a cycle."""

    def remember(symbol: str) -> int:
        number = symbols[symbol] = intern(symbol)
        return number

    return remember


def _iso(time_ns: int) -> str:
    if not time_ns:
        return ""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _is_positive(value: Any) -> bool:
    try:
        return 0.0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in options.items() if value is not None}
    for key, value in found.items():
        if key not in OPTIONS:
            raise SettingsError(f"no option {key!r} for a capture; there are: {', '.join(OPTIONS)}")
        if key == "format" and value not in FORMATS:
            raise SettingsError(f"option format = {value!r}: {OPTIONS[key]}")
        if key == "protocol" and value not in PROTOCOLS:
            raise SettingsError(f"option protocol = {value!r}: {OPTIONS[key]}")
        if key == "port" and not (str(value).isdecimal() and 0 <= int(value) <= 65535):
            raise SettingsError(f"option port = {value!r}: a UDP port, 0 = all")
        if key == "point" and not _is_positive(value):
            raise SettingsError(f"option point = {value!r}: a number greater than 0")
        if key in ("book", "arbitrate", "orders") and not isinstance(value, bool):
            raise SettingsError(f"option {key} = {value!r}: true or false")
        if key == "gap_wait_ms" and not (isinstance(value, int | float) and 0 <= value <= 1e7):
            raise SettingsError(f"option gap_wait_ms = {value!r}: milliseconds, 0 to 10000000")
        if key == "venue" and not (isinstance(value, str) and value.isascii() and len(value) <= 8):
            raise SettingsError(f"option venue = {value!r}: at most 8 ASCII characters")
    if isinstance(found.get("date"), str):
        try:
            found["date"] = date.fromisoformat(found["date"])
        except ValueError:
            raise SettingsError(f"option date = {found['date']!r}: {OPTIONS['date']}") from None
    return found
