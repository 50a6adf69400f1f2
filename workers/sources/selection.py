"""Which of a decoder's records a feed wants: its `data_types` and `symbols`.

Used by sources whose packets bring more than that. Status records always stay, but trading status only of the feed's
`symbols`. Never changes a record; what is left out is not counted, since nobody asked for it.
"""

from __future__ import annotations

import numpy as np

from shm.layout import NO_INSTRUMENT, RECORD_SIZE_BYTES, TYPE_NAMES, RecordType, StatusCode
from workers.errors import SettingsError
from workers.source import SourceContext, nearest


class Selection:
    """The filter of one feed. SettingsError for a data type that does not exist."""

    def __init__(self, context: SourceContext) -> None:
        """Interns the feed's symbols."""
        spec = context.spec
        self._types: np.ndarray | None = None  # by record type
        self._ids: np.ndarray | None = None
        if spec.data_types:
            self._types = np.zeros(256, dtype=bool)
            self._types[RecordType.STATUS] = True
            for name in spec.data_types:
                if name not in TYPE_NAMES[1:]:
                    raise SettingsError(f"feed {spec.name}: no data type {name!r}{nearest(name, TYPE_NAMES[1:])}")
                self._types[TYPE_NAMES.index(name)] = True
        if spec.symbols:
            self._ids = np.array([context.intern(symbol) for symbol in spec.symbols], dtype=np.uint32)

    def keep(self, batch: np.ndarray) -> np.ndarray:
        """The records of `batch` (dtype RECORD) that are wanted, moved to its start."""
        if self._types is None and self._ids is None:
            return batch
        wanted = np.ones(len(batch), dtype=bool)
        if self._types is not None:
            wanted &= self._types[batch["record_type"]]
        if self._ids is not None:
            of_others = (batch["record_type"] != RecordType.STATUS) | (
                (batch["code"] == StatusCode.TRADING_STATUS) & (batch["instrument_id"] != NO_INSTRUMENT)
            )
            wanted &= np.isin(batch["instrument_id"], self._ids) | ~of_others
        count = int(np.count_nonzero(wanted))
        if count < len(batch):
            rows = batch.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)
            rows[:count] = rows[wanted]
        return batch[:count]
