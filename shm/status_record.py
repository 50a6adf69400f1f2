"""The status record: how gaps, switches, alerts and the like are told to those who read a ring.

Made by a ring's writer, by feeds and by the control process, once an event and never on a hot path.
"""

from __future__ import annotations

import numpy as np

from shm import _ring
from shm.layout import NO_INSTRUMENT, RECORD, Flag, Priority, RecordType, Source, StatusCode


def status_record(
    code: StatusCode,
    *,
    from_sequence: int = 0,
    to_sequence: int = 0,
    text: str = "",
    instrument_id: int = NO_INSTRUMENT,
    feed_id: int = 0,
    source: Source = Source.INTERNAL,
    ts_event: int | None = None,
) -> bytes:
    """One status record, ready to publish. `text` is cut to 40 bytes at a character's end; times are now by default."""
    record = np.zeros(1, dtype=RECORD)
    now = _ring.now_ns()
    record["ts_event"] = now if ts_event is None else ts_event
    record["ts_receive"] = now
    record["instrument_id"] = instrument_id
    record["record_type"] = RecordType.STATUS
    record["source"] = source
    record["flags"] = Flag.LAST_OF_BATCH
    record["feed_id"] = feed_id
    record["priority"] = Priority.HIGH
    record["code"] = code
    record["from_sequence"] = from_sequence
    record["to_sequence"] = to_sequence
    record["text"] = text.encode()[:40].decode(errors="ignore").encode()
    return record.tobytes()
