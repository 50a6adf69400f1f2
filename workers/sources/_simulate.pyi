from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

class Market:
    def __init__(
        self,
        *,
        seed: int,
        feed_id: int,
        ids: NDArray[np.uint32],
        symbols: Sequence[bytes],
        base_ticks: NDArray[np.float64],
        ticks_per_unit: NDArray[np.float64],
        sectors: NDArray[np.uint32],
        weights: NDArray[np.float64],
        betas: NDArray[np.float64],
        kinds: Mapping[int, float],
        templates: Sequence[bytes],
        news_every: int,
        burst_factor: float,
        sequence_base: int,
    ) -> None: ...
    @property
    def made(self) -> int: ...
    @property
    def next_due_ns(self) -> int | None: ...
    def reset_session(self) -> None: ...
    def set_session_flags(self, flags: int) -> None: ...
    def open_window(self, start_ns: int, length_ns: int, count: int) -> None: ...
    def postpone(self, by_ns: int) -> None: ...
    def fill_until(self, out: np.ndarray, offset: int, now_ns: int) -> int: ...
    def fill(self, out: np.ndarray, from_ns: int, now_ns: int) -> int: ...
