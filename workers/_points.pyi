from collections.abc import Callable
from typing import Any

import numpy as np

class Unusable(Exception): ...

def count_pieces(points: list[Any]) -> int: ...
def fill(
    points: list[Any],
    records: np.ndarray,
    ids: dict[str, int],
    intern: Callable[[str], int],
    sources: dict[str, int],
    feeds: dict[str, int],
    now_ns: int,
    rejected: list[tuple[int, str]],
) -> int: ...
