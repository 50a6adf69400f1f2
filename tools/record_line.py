"""Records as aligned lines for people: one line a record, columns that stay where they are.

Called by `tickengine tail` and `tickengine shm inspect`. Programs get JSON instead (shm/message.py). Pure but for what
it remembers: the widest symbol so far, and the date of the last record, which is printed when it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from shm.errors import BadArgument
from shm.instruments import InstrumentTable
from shm.layout import NO_INSTRUMENT, Flag, RecordType
from shm.message import data_fields, flag_names, iso_time, type_name
from tools.console import Paint

# Bits that nearly every record of such a feed has; they would drown the ones that say something.
_USUAL: Final = int(Flag.LAST_OF_BATCH | Flag.REPLAYED | Flag.SYNTHETIC | Flag.CONTINUES)
_MIN_SYMBOL_CHARS: Final = 8


class RecordLines:
    """Formats the records of one engine."""

    def __init__(self, symbols: InstrumentTable | Callable[[int], str] | None, paint: Paint) -> None:
        """`symbols`: the engine's table, or a function from instrument id to symbol, or None: ids are shown."""
        self._symbols = symbols
        self.paint = paint
        self._symbol_chars = _MIN_SYMBOL_CHARS
        self._date = ""

    def symbol(self, instrument_id: int) -> str:
        """Symbol of an instrument; "-" for none, "#7" for one that is not in the table."""
        if instrument_id == NO_INSTRUMENT:
            return "-"
        try:
            if isinstance(self._symbols, InstrumentTable):
                return self._symbols.symbol(instrument_id)
            if self._symbols is not None:
                return self._symbols(instrument_id)
        except BadArgument:
            pass
        return f"#{instrument_id}"

    def lines(self, records: np.ndarray, ring_id: int) -> Iterator[str]:
        """One line for each record of ring `ring_id` (shape (n,), dtype RECORD), and one for each new date."""
        for record in records:
            yield from self._record(record, ring_id)

    def _record(self, record: Any, ring_id: int) -> Iterator[str]:
        stamp = iso_time(int(record["ts_event"]))
        date, _, time = stamp.rstrip("Z").partition("T")
        if date != self._date:
            self._date = date
            yield self.paint(f"-- {date} UTC", "dim")
        kind = type_name(int(record["record_type"]))
        symbol = self.symbol(int(record["instrument_id"]))
        self._symbol_chars = max(self._symbol_chars, len(symbol))
        where = f"r{ring_id}:{int(record['sequence'])}"
        try:
            body = self._body(int(record["record_type"]), data_fields(record.tobytes()))
        except ValueError as error:
            body = self.paint(str(error), "red")
        flags = int(record["flags"]) & ~_USUAL
        marks = self.paint(" " + ",".join(flag_names(flags)), "yellow") if flags else ""
        yield (
            f"{self.paint(time, 'dim')}  {self.paint(f'{where:<13}', 'dim')} {kind:<6} "
            f"{self.paint(f'{symbol:<{self._symbol_chars}}', 'bold')}  {body}{marks}"
        )

    def _body(self, record_type: int, data: dict[str, Any]) -> str:
        if record_type in (RecordType.TICK, RecordType.TRADE):
            side = self._side(data["side"])
            trade_id = f"id {data['trade_id']}" if data["trade_id"] else ""
            price_size = f"{_number(data['price']):>13} {_number(data['size']):>11}"
            return f"{price_size}  {side} {data['exchange'] or '':<8} {trade_id}".rstrip()
        if record_type == RecordType.QUOTE:
            return (
                f"{_number(data['bid']):>13} {_number(data['bid_size']):>11} | "
                f"{_number(data['ask']):<13} {_number(data['ask_size']):<11}"
            ).rstrip()
        if record_type == RecordType.BAR:
            prices = " ".join(f"{name[0].upper()} {_number(data[name])}" for name in ("open", "high", "low", "close"))
            return f"{data['interval']:>4} s  {prices}  volume {_number(data['volume'])}  trades {data['trade_count']}"
        if record_type == RecordType.LEVEL2:
            side = self._side(data["side"])
            return (
                f"{_number(data['price']):>13} {_number(data['size']):>11}  {side} "
                f"{data['action'] or '-':<7} level {data['level']}"
            )
        if record_type == RecordType.NEWS:
            return str(data["headline"])
        reach = f" [{data['from']}, {data['to']})" if data["to"] else ""
        return f"{self.paint(data['code'], 'cyan')}{reach} {data['text'] or ''}"

    def _side(self, side: str | None) -> str:
        return self.paint(f"{side or '-':<4}", *({"buy": ("green",), "sell": ("red",)}.get(side or "", ())))


def _number(value: float | None) -> str:
    """The shortest text that gives the number back, whole numbers without their ".0"; "-" for an undefined one."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value!r}"
