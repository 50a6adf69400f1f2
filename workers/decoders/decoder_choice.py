"""Which container cuts a capture's file into frames, and which decoder reads them, by format and first bytes.

    layout --- one format, one decoder: DBN, ITCH, FIX, ticks
           |-- pcap: the protocol of the first datagrams
           |-- lines: what the first messages say
           '-- jsonl: the header line's venue, or source of a feed of our own

Called by workers/decoders/capture.py once a file. Reads as far ahead as it takes to know, and no further; what was read
waits to be decoded. Never decodes. Decoders are imported when they are wanted: none pays for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from shm.layout import Flag, Source
from workers.decoders import tick_files
from workers.decoders.capture_input import CaptureInput
from workers.decoders.capture_options import checked
from workers.decoders.detection import HEAD_PORT, head_of, protocol_of
from workers.decoders.protocol import Batch, UnknownFormatError
from workers.errors import SettingsError

Intern = Callable[[str], int]

# Source of a feed that `tickengine capture` wrote as text -> module and class of its decoder.
CAPTURED: Final = {
    "fix": ("workers.sources.fix_replay", "FixReplay"),
    "websocket": ("workers.venues.venue_replay", "VenueReplay"),
    "yahoo": ("workers.sources.polled_replay", "yahoo_replay"),
    "alpha_vantage": ("workers.sources.polled_replay", "PolledReplay"),
    "fred": ("workers.sources.polled_replay", "PolledReplay"),
    "ibkr": ("workers.sources.ibkr_replay", "IbkrReplay"),
}
_PROBE_DATAGRAMS: Final = 4096


class DecoderChoice:
    """See the module.

    Attributes:
        decoder: the one chosen; the input has its container.
        protocol: of a packet capture: what its datagrams hold, one of PROTOCOLS.
        schema: of a DBZ: what its records are.
    """

    def __init__(self, given: CaptureInput, intern: Intern, options: Mapping[str, Any], feed_id: int) -> None:
        """Choose. `options` are checked ones.

        Raises SettingsError for an option that such a file can't have, UnknownFormatError for content without decoder,
        and FramingError if the file is damaged before its first datagram.
        """
        self.protocol = ""
        self.schema = ""
        self.decoder: Any
        self._input = given
        self._intern = intern
        self._options = options
        self._feed_id = feed_id
        self._book = bool(options.get("book", False))
        self._begin()

    def _stamp(self) -> dict[str, Any]:
        venue = self._options.get("venue")
        stamp = {"source": int(Source.REPLAY), "feed_id": self._feed_id, "flags": int(Flag.REPLAYED)}
        return stamp if venue is None else {**stamp, "venue": str(venue).encode()}

    def _begin(self) -> None:
        """Chooses container and decoder; for packet captures that takes a look at the first datagrams."""
        from workers.decoders import _containers

        given, stamp = self._input, self._stamp()
        if given.layout == "dbz":
            from workers.decoders._dbn import DbnDecoder, DbnReader
            from workers.decoders.dbz import DbzFile

            file = DbzFile(given.file.path)
            given.reopen(file)
            given.container = DbnReader(fragment=True)
            given.container.symbols.load(file.header)
            self.schema = file.header.schema
            self.decoder = DbnDecoder(self._intern, given.container.symbols, **stamp)
        elif given.layout in {"dbn", "dbn-fragment"}:
            from workers.decoders._dbn import DbnDecoder, DbnReader

            given.container = DbnReader(fragment=given.layout == "dbn-fragment")
            self.decoder = DbnDecoder(self._intern, given.container.symbols, **stamp)
        elif given.layout == "itch":
            from workers.decoders._itch import ItchDecoder

            given.container = _containers.LengthReader()
            self.decoder = ItchDecoder(
                self._intern, packets=False, session_date=self._options.get("date"), book=self._book, **stamp
            )
        elif given.layout == "pcap":
            given.container = _containers.PacketReader(int(self._options.get("port", 0)))
            self._begin_packets(stamp)
        elif given.layout == "lines":
            given.container = _containers.LineReader()
            self._begin_messages(given.head[:65536], stamp)
        elif given.layout == "fix":
            from workers.decoders._fix import FixDecoder, FixReader

            given.container = FixReader(log=True)
            self.decoder = FixDecoder(self._intern, **stamp)
        elif given.layout in tick_files.FORMATS:
            given.container, self.decoder = tick_files.open_decoder(
                given.layout, given.file.path, self._intern, self._options, stamp
            )
        else:
            from workers.decoders.jsonl import JsonlReader

            given.container = JsonlReader()
            self._begin_jsonl(stamp)

    def _begin_packets(self, stamp: dict[str, Any]) -> None:
        given = self._input
        self._take_packets()
        self._take_head()
        protocol = str(self._options.get("protocol", ""))
        ports: set[int] = set()
        seen = probed = 0
        while not protocol and seen < _PROBE_DATAGRAMS:
            if probed == len(given.waiting) and not self._take_packets():
                break
            batch, probed = given.waiting[probed][0], probed + 1
            for frame in batch.frames[: _PROBE_DATAGRAMS - seen]:
                first = int(frame["offset"])
                protocol = protocol_of(batch.buffer[first : first + int(frame["size"])])
                ports.add(int(frame["port"]))
                seen += 1
                if protocol:
                    break
        if protocol == "iex":
            from workers.decoders._iex import IexDecoder

            self.decoder = IexDecoder(self._intern, book=self._book, **stamp)
        elif protocol == "itch":
            from workers.decoders._itch import ItchDecoder

            self.decoder = ItchDecoder(self._intern, session_date=self._options.get("date"), book=self._book, **stamp)
        elif protocol == "mdp3":
            from workers.decoders._mdp3 import Mdp3Decoder

            if self._options.get("arbitrate"):
                raise SettingsError("option arbitrate = true: not for CME packets; option port names one line")
            orders = bool(self._options.get("orders", False))
            self.decoder = Mdp3Decoder(self._intern, book=self._book, orders=orders, **stamp)
        elif protocol == "pitch":
            from workers.decoders._pitch import PitchDecoder

            self.decoder = PitchDecoder(self._intern, session_date=self._options.get("date"), book=self._book, **stamp)
            if self._options.get("arbitrate"):
                raise SettingsError("option arbitrate = true: not for Cboe PITCH; its second copies are dropped anyway")
        elif given.failure is not None and not seen:
            raise given.failure
        else:
            where = f" to ports {sorted(ports)[:8]}" if ports else ""
            raise UnknownFormatError(
                f"packet capture: {seen} UDP datagrams{where}, "
                "none of IEX-TP, MoldUDP64/ITCH 5.0, Cboe PITCH or CME MDP 3.0"
            )
        self.protocol = protocol
        if self._options.get("arbitrate"):
            from workers.decoders.arbitrated import ArbitratedDecoder

            self.decoder = ArbitratedDecoder(self.decoder, protocol, float(self._options.get("gap_wait_ms", 10.0)))

    def _take_packets(self) -> bool:
        """One more piece of the file among what waits; False = there is none."""
        given = self._input
        if not given.look_ahead():
            return False
        given.failure = given.container.error
        return True

    def _take_head(self) -> None:
        """A packet capture of our own begins with a packet that says what it is of: decoded as that feed was, unless
        the options say otherwise."""
        given = self._input
        if not given.waiting or not len(given.waiting[0][0].frames):
            return
        batch, reached = given.waiting[0]
        frame = batch.frames[0]
        start = int(frame["offset"])
        captured = head_of(batch.buffer[start : start + int(frame["size"])]) if frame["port"] == HEAD_PORT else None
        if captured is None:
            return
        given.waiting[0] = Batch(batch.buffer, batch.frames[1:]), reached
        had = captured["options"]
        try:
            wait_ms = float(had.get("gap_wait_ms", 10.0))
            if had.get("rerequest"):
                wait_ms += float(had.get("rerequest_timeout_ms", 100.0)) * (1 + int(had.get("rerequest_retries", 3)))
        except (TypeError, ValueError):
            return  # somebody has changed it
        self._book = bool(self._options.get("book", had.get("book", True)))
        self._options = checked({"arbitrate": True, "gap_wait_ms": wait_ms, **self._options})

    def _begin_messages(self, sample: bytes, stamp: dict[str, Any]) -> None:
        if b'"sequence_num":' in sample and b'"channel":' in sample:
            from workers.decoders._coinbase import CoinbaseDecoder

            self.decoder = CoinbaseDecoder(self._intern, **stamp)
        elif b'"stream":"' in sample or b'"e":"' in sample or b'"lastUpdateId":' in sample:
            from workers.decoders._binance import BinanceDecoder

            self.decoder = BinanceDecoder(self._intern, symbol=self._options.get("symbol"), **stamp)
        elif b'"coin":"' in sample and b'"channel":' in sample:
            from workers.decoders.hyperliquid import HyperliquidDecoder

            self.decoder = HyperliquidDecoder(self._intern, **stamp)
        elif b'"chanId":' in sample:
            from workers.decoders.bitfinex import BitfinexDecoder

            self.decoder = BitfinexDecoder(self._intern, **stamp)
        else:
            raise UnknownFormatError(f"lines of JSON from a venue without a decoder: {sample[:80]!r}")

    def _begin_jsonl(self, stamp: dict[str, Any]) -> None:
        given, exchange = self._input, ""
        while not exchange and given.look_ahead():
            exchange = str(given.container.exchange).upper()
            if given.container.captured:
                self._begin_captured(given.container.captured)
                return
            if given.waiting[-1][0].frames.size:
                break
        if exchange.startswith("BINANCE"):
            from workers.decoders._binance import BinanceDecoder

            self.decoder = BinanceDecoder(self._intern, symbol=self._options.get("symbol"), **stamp)
        elif exchange.startswith("COINBASE"):
            from workers.decoders._coinbase import CoinbaseDecoder

            self.decoder = CoinbaseDecoder(self._intern, **stamp)
        elif exchange.startswith("BITFINEX"):
            from workers.decoders.bitfinex import BitfinexDecoder

            self.decoder = BitfinexDecoder(self._intern, **stamp)
        elif exchange.startswith("HYPERLIQUID"):
            from workers.decoders.hyperliquid import HyperliquidDecoder

            self.decoder = HyperliquidDecoder(self._intern, **stamp)
        elif exchange.startswith("BITSTAMP"):
            from workers.decoders.bitstamp import BitstampDecoder

            self.decoder = BitstampDecoder(self._intern, **stamp)
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
        self.decoder = getattr(import_module(module), name)(
            captured, self._intern, feed_id=self._feed_id, venue=self._options.get("venue")
        )
