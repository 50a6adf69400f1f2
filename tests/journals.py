"""Records and journals for tests: made with a fixed content, written, and read back as plain lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shm.layout import RecordType, empty
from workers.journal import Journal
from workers.journal_reader import JournalReader

STREAM = 1_700_000_000_000_000_000  # when the ring was made
NOW = 1_750_000_000_000_000_000
HOUR = 3_600_000_000_000


def trades(first: int, count: int, *, instruments: int = 7, event_ns: int = NOW) -> np.ndarray:
    """Trades number first .. first + count - 1, one each microsecond; the number is sequence, price and trade id."""
    numbers = np.arange(first, first + count)
    records = empty(count)
    records["sequence"] = numbers
    records["ts_event"] = records["ts_receive"] = event_ns + numbers * 1000
    records["ts_publish"] = records["ts_event"] + 500
    records["instrument_id"] = numbers % instruments
    records["record_type"] = RecordType.TRADE
    records["price"] = numbers
    records["size"] = 1
    records["trade_id"] = numbers
    records["venue"] = b"XTST"
    return records


def symbols(count: int = 7) -> list[str]:
    """Symbols of the instruments of `trades`; not in alphabetical order."""
    return [f"S{(number * 5) % count}" for number in range(count)]


def write(folder: Path, *batches: np.ndarray, ring: int = 2, stream: int = STREAM, now_ns: int = NOW) -> None:
    """A journal with one block for each batch."""
    journal = Journal(folder, fsync="none")
    journal.follow_symbols(symbols())
    journal.open_ring(ring, stream)
    for batch in batches:
        journal.append(ring, stream, 1, batch, now_ns)
    journal.close()


def sequences(folder: Path, **choice: int) -> list[int]:
    """Sequences of the records of a journal, in the order of reading."""
    return [int(s) for block in JournalReader(folder).blocks(**choice) for s in block.records["sequence"]]  # type: ignore[arg-type]
