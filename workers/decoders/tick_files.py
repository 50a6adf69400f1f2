"""Files of ticks that say in their name what they are of: Dukascopy's .bi5, TrueFX and HistData quotes, LOBSTER.

Used by `capture`, which reads them: here is how they are recognised, what their names say, and which container and
decoder they need. Opens no file.

    EURUSD/2019/01/04/09h_ticks.bi5              Dukascopy: instrument, year, month from 00, day, hour (UTC)
    EURUSD/2019/01/04/BID_candles_min_1.bi5      its candles of a minute
    AAPL_2012-06-21_34200000_57600000_message_10.csv, ..._orderbook_10.csv      LOBSTER: two files, line for line
    EURUSD-2020-01.csv, DAT_ASCII_EURUSD_T_202001.csv                           TrueFX, HistData
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from shm.errors import BadArgument
from workers.decoders.protocol import FRAME, Batch, Container, Decoder, FramingError, UnknownFormatError
from workers.errors import SettingsError

FORMATS: Final = ("bi5", "truefx", "lobster")
TITLES: Final = {
    "bi5": "Dukascopy .bi5",
    "truefx": "quotes as lines (TrueFX, HistData)",
    "lobster": "LOBSTER events and books",
}
LINE_MAX_BYTES: Final = 1 << 20
_MINUTE_CANDLES: Final = re.compile(r"(BID|ASK)_candles_min_1\.bi5$", re.IGNORECASE)
_TICKS: Final = re.compile(r"(\d\d)h_ticks\.bi5$", re.IGNORECASE)
_FOLDERS: Final = re.compile(r"([^/]+)/(\d{4})/(\d\d)/(\d\d)/[^/]+$")
_LOBSTER_NAME: Final = re.compile(r"^(.+?)_(\d{4}-\d\d-\d\d)_\d+_\d+_(message|orderbook)_\d+\.csv", re.IGNORECASE)
_LOBSTER_EVENT: Final = re.compile(rb"\d{1,5}(\.\d+)?,[1-7],\d+,\d+,-?\d+,-?1\r?\n")
_LOBSTER_BOOK: Final = re.compile(rb"(-?\d+,){3,}-?\d+\r?\n")
_QUOTE: Final = re.compile(
    rb"([A-Z0-9.]+/[A-Z0-9.]+,)?(\d{8} \d{9}|\d{8} \d\d:\d\d:\d\d[.,]|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[^,]*,)"
)
_QUOTE_HEADER: Final = re.compile(rb"[A-Za-z_ ]+,bid,ask\b", re.IGNORECASE)
_CURRENCIES: Final = frozenset(
    re.findall(
        "...",
        "AEDAUDBRLCADCHFCLPCNHCNYCZKDKKEURGBPHKDHUFIDRILSINRJPYKRWMXNMYRNOKNZDPHPPLNRONRUBSARSEKSGDTHBTRYTWDUSDXAGXAU"
        "XPDXPTZAR",
    )
)
# Dukascopy states prices of most pairs in units of 0.00001, of these and of everything that is no pair in 0.001.
_COARSE: Final = frozenset({"JPY", "RUB", "HUF", "XAU", "XAG", "XPD", "XPT"})
_PAIR_UNITS: Final = 100_000.0
_COARSE_UNITS: Final = 1000.0


def recognise(head: bytes, path: Path) -> str:
    """One of FORMATS if the file is of it, else "". UnknownFormatError for a file that can't be read alone."""
    if path.suffix.lower() == ".bi5":
        return "bi5"
    if _LOBSTER_EVENT.match(head):
        return "lobster"
    if _LOBSTER_BOOK.match(head) and "_orderbook_" in path.name:
        raise UnknownFormatError(
            f"the books of LOBSTER events: give {_partner(path, 'message').name}, which reads both"
        )
    return "truefx" if _QUOTE.match(head) or _QUOTE_HEADER.match(head) else ""


def orderbook_of(path: Path) -> Path:
    """The file with the books after the events of a LOBSTER message file."""
    return _partner(path, "orderbook")


def without_books(paths: Sequence[Path]) -> list[Path]:
    """The files but LOBSTER books whose events are among them: these are read along."""
    return [path for path in paths if "_orderbook_" not in path.name or _partner(path, "message") not in paths]


def _partner(path: Path, kind: str) -> Path:
    name = re.sub(r"_(message|orderbook)_", f"_{kind}_", path.name)
    if name == path.name and kind == "orderbook":
        raise UnknownFormatError("LOBSTER events in a file without `_message_` in its name: their books are not found")
    return path.with_name(name)


def open_decoder(
    layout: str, path: Path, intern: Callable[[str], int], options: Mapping[str, Any], stamp: Mapping[str, Any]
) -> tuple[Container, Decoder]:
    """What reads a file of that format; SettingsError if neither its name nor the options say what it is of."""
    try:
        return _open_decoder(layout, path, intern, options, stamp)
    except BadArgument as error:
        raise SettingsError(f"{path.name}: {error}; name option symbol") from None


def _open_decoder(
    layout: str, path: Path, intern: Callable[[str], int], options: Mapping[str, Any], stamp: Mapping[str, Any]
) -> tuple[Container, Decoder]:
    from workers.decoders._tick_files import Bi5Decoder, LobsterDecoder, TrueFxDecoder

    if layout == "bi5":
        candles = _MINUTE_CANDLES.search(path.name) is not None
        symbol, begin_ns = _dukascopy_name(path, options, candles)
        units = 1 / float(options["point"]) if "point" in options else _units(symbol)
        return RunReader(24 if candles else 20), Bi5Decoder(
            intern, symbol, begin_ns, units=round(units, 6), candles=candles, **stamp
        )
    if layout == "truefx":
        return RunReader(), TrueFxDecoder(intern, str(options.get("symbol") or _pair_in(path)), **stamp)
    named = _LOBSTER_NAME.match(path.name)
    symbol = options.get("symbol") or (named[1] if named else "")
    try:
        day = options.get("date") or (date.fromisoformat(named[2]) if named else None)
    except ValueError:
        day = None
    if not symbol or day is None:
        raise SettingsError(f"{path.name}: LOBSTER events of an unknown day; name options symbol and date")
    from workers.decoders._itch import midnight_ns

    return RunReader(), LobsterDecoder(intern, str(symbol), midnight_ns(day), **stamp)


def _dukascopy_name(path: Path, options: Mapping[str, Any], candles: bool) -> tuple[str, int]:
    """The instrument, and when the hour or day of the file begins, ns. Months count from 0 in folders."""
    folders = _FOLDERS.search(path.absolute().as_posix())
    ticks = _TICKS.search(path.name)
    symbol = options.get("symbol") or (folders[1] if folders else "")
    day = options.get("date")
    try:
        if day is None and folders:
            day = date(int(folders[2]), int(folders[3]) + 1, int(folders[4]))
        if not symbol or day is None or not (ticks or candles):
            raise ValueError
        begin = datetime(day.year, day.month, day.day, 0 if candles or ticks is None else int(ticks[1]), tzinfo=UTC)
    except ValueError:
        raise SettingsError(
            f"{path.name}: a .bi5 does not say what it is of; it is read from SYMBOL/YYYY/MM/DD/HHh_ticks.bi5 (months "
            f"from 00) or BID_candles_min_1.bi5, or from options symbol and date"
        ) from None
    return str(symbol), int(begin.timestamp()) * 1_000_000_000


def _units(symbol: str) -> float:
    """How many of Dukascopy's price units make 1."""
    pair = {symbol[:3], symbol[3:]}
    return _PAIR_UNITS if len(symbol) == 6 and pair <= _CURRENCIES and not pair & _COARSE else _COARSE_UNITS


def _pair_in(path: Path) -> str:
    """The currency pair in a file's name; its stem where there is none."""
    stem: str = path.name.split(".")[0]
    for word in re.findall(r"[A-Za-z]+", stem):
        pair = str(word).upper()
        if len(pair) == 6 and {pair[:3], pair[3:]} <= _CURRENCIES:
            return pair
    return stem


class RunReader:
    """A stream of records of one size, or of lines -> one frame over all that are whole (a `Container`)."""

    def __init__(self, record_bytes: int = 0) -> None:
        """0 = lines."""
        self.record_bytes = record_bytes
        self._rest = b""
        self._offset = 0
        self._error: FramingError | None = None

    @property
    def error(self) -> FramingError | None:
        """FramingError once a line is longer than any."""
        return self._error

    def counts(self) -> dict[str, int]:
        """Nothing is passed over."""
        return {}

    def finish(self) -> int:
        """Bytes of an unfinished record or line; of a line, feed a newline to have it read."""
        return 0 if self._error is not None else len(self._rest)

    def feed(self, data: bytes) -> Batch:
        """One frame; none before the first record is whole."""
        frames = np.zeros(0, FRAME)
        if self._error is not None:
            return Batch(b"", frames)
        buffer = self._rest + data if self._rest else data
        end = len(buffer) - len(buffer) % self.record_bytes if self.record_bytes else buffer.rfind(b"\n") + 1
        self._rest = buffer[end:]
        self._offset += end
        if not self.record_bytes and len(self._rest) > LINE_MAX_BYTES:
            self._error = FramingError("lines", self._offset, f"a line of more than {LINE_MAX_BYTES >> 20} MiB")
        if end:
            frames = np.zeros(1, FRAME)
            frames["size"] = end
        return Batch(buffer, frames)
