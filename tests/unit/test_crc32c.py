"""CRC-32C: the published check values, and the instruction and the table saying the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from workers._crc32c import crc32c, crc32c_by_table


# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == crc32c_by_table(data) == expected


def test_both_ways_agree_and_can_be_taken_in_pieces() -> None:
    chance = random.Random(7)
    data = chance.randbytes(1000)
    for length in range(300):
        piece = data[length : 2 * length + 5]
        assert crc32c(piece) == crc32c_by_table(piece)
        assert crc32c(piece[3:], crc32c(piece[:3])) == crc32c(piece)


def test_arrays_are_taken_as_they_lie() -> None:
    numbers = np.arange(100, dtype=np.uint64)
    assert crc32c(numbers.view(np.uint8)) == crc32c(numbers.tobytes())
