import numpy as np

REJECT_REASONS: tuple[str, ...]

class Checker:
    def __init__(
        self,
        *,
        enabled: bool,
        reject_impossible: bool,
        late_after_ns: int,
        late_when_replayed: bool,
        deviations: float,
        floor_fraction: float,
        limit_fraction: float,
        spike_factor: float,
        warm_up: int,
        memory: int,
        tiers: np.ndarray | None = None,
    ) -> None: ...
    def check(self, records: np.ndarray, count: int) -> int: ...
    def forget(self) -> None: ...
    @property
    def rejected(self) -> tuple[int, ...]: ...
    @property
    def flagged(self) -> tuple[int, ...]: ...
    @property
    def last_rejected(self) -> tuple[str, bytes] | None: ...
