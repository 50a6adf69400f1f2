from typing import Any, Final

import numpy as np

KEYS: Final[int]

class Conflator:
    marks: np.ndarray[Any, np.dtype[np.uint8]]
    ranked: np.ndarray[Any, np.dtype[np.uint8]]
    records: np.ndarray
    def __init__(
        self, marks: np.ndarray[Any, np.dtype[np.uint8]], *, capacity: int = 16384, take_records: int = 64
    ) -> None: ...
    def hold(
        self,
        records: np.ndarray,
        index: np.ndarray[Any, np.dtype[np.uint32]],
        topic: np.ndarray[Any, np.dtype[np.uint32]],
        number: np.ndarray[Any, np.dtype[np.uint64]],
        count: int,
        ring: int,
        now_ns: int,
        shed: int = 0,
    ) -> None: ...
    def begin_pass(self) -> None: ...
    def take(self) -> list[tuple[int, int, int]]: ...
    def frame(self, index: int) -> memoryview: ...
    @property
    def waiting(self) -> int: ...
    @property
    def waiting_topics(self) -> int: ...
    @property
    def since_ns(self) -> int: ...
    @property
    def offered(self) -> tuple[int, int, int]: ...
    @property
    def conflated(self) -> tuple[int, int, int]: ...
    @property
    def shed(self) -> tuple[int, int, int]: ...
    @property
    def taken(self) -> tuple[int, int, int]: ...
