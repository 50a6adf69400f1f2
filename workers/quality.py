"""Quality: what is odd about a record is flagged, what is meaningless is rejected and counted.

Stands between decoder and ring: one `Quality` a feed, called by workers/ingest.py with each batch before it is
published; works in place, in one native pass (workers/_quality.pyx). It changes flags and priority and nothing else;
it never looks at a clock.

Flags, judged per instrument and kind (prints, quotes, book):

    OUT_OF_ORDER  ts_event or source_sequence is behind an earlier one. After 64 such records in a row the venue has
                  begun to count again: believed from there on.
    LATE          ts_receive - ts_event above `late_after_ms`. Not asked of replayed records unless so configured.
    CROSSED       bid above ask. A locked market (bid = ask) is legitimate and not flagged.
    OUTLIER       price, or middle of a quote, further from its running mean than `outlier_deviations` running mean
                  deviations and at least `outlier_floor_percent`; or than `outlier_percent` in any case. An outlier
                  moves the mean by no more than the limit, so that a new level is believed after some dozens of
                  records.
    VOLUME_SPIKE  size of a print above `volume_spike_factor` running mean sizes.
    INCOMPLETE    a price or size that should be there is NaN, or the price is 0; also impossible values (negative or
                  infinite sizes, infinite prices, a bar whose high is below its low) under policy "flag".

Snapshots, corrections and backfilled records (by their flags) speak of an earlier time by their nature: they are judged
neither out of order nor late. A negative price is not odd: spreads have them, and oil had. Rejected are: records of
an unknown type, prints whose price is NaN or infinite, and impossible values under policy "reject". END_OF_REPLAY in
the stream makes a feed begin anew.

Priority, the order in which to shed load: prints, news and status high, quotes normal, book and bars low; the last
three as `priorities` says for their symbol (workers/symbol_tiers.py).
"""

from __future__ import annotations

import numpy as np

from shm.layout import RECORD, Flag
from workers._quality import REJECT_REASONS, Checker
from workers.spec import QualitySettings
from workers.symbol_tiers import SymbolTiers

_JUDGED = (Flag.OUTLIER, Flag.VOLUME_SPIKE, Flag.OUT_OF_ORDER, Flag.LATE, Flag.CROSSED, Flag.INCOMPLETE)


class Quality:
    """The checks of one feed."""

    def __init__(self, settings: QualitySettings, tiers: SymbolTiers | None = None) -> None:
        """Thresholds as in `workers.spec.QualitySettings`; no state yet. `tiers`: of symbols that have their own."""
        self._checker = Checker(
            enabled=settings.enabled,
            reject_impossible=settings.policy == "reject",
            late_after_ns=round(settings.late_after_ms * 1e6),
            late_when_replayed=settings.late_when_replayed,
            deviations=settings.outlier_deviations,
            floor_fraction=settings.outlier_floor_percent / 100,
            limit_fraction=settings.outlier_percent / 100,
            spike_factor=settings.volume_spike_factor,
            warm_up=settings.warm_up_records,
            memory=settings.memory_records,
            tiers=tiers.of_instrument if tiers is not None else None,
        )
        self.check = self._checker.check  # (records, count) -> records left, at the start of the array, in order
        self.forget = self._checker.forget  # begin anew: the next record is compared with none before it

    @property
    def rejected(self) -> int:
        """Records rejected so far."""
        return sum(self._checker.rejected)

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """Records rejected so far, by reason, every reason listed."""
        return dict(zip(REJECT_REASONS, self._checker.rejected, strict=True))

    @property
    def flagged(self) -> dict[str, int]:
        """How often each flag was set here so far, by its lower-case name."""
        counts = self._checker.flagged
        return {str(flag.name).lower(): counts[flag.value.bit_length() - 1] for flag in _JUDGED}

    @property
    def last_rejected(self) -> tuple[str, np.ndarray] | None:
        """(reason, array of one record) of the newest rejection, None if there was none."""
        last = self._checker.last_rejected
        return None if last is None else (last[0], np.frombuffer(last[1], dtype=RECORD))
