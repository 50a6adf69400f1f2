"""The captures that replay benchmarks use: counted right, by us and by the peers that read the same bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from perf import captures, peers_decode
from perf.errors import PeerMissing, Skipped


@pytest.mark.usefixtures("samples")
def test_generated_order_flow_takes_every_order_off_the_book_again(tmp_path: Path) -> None:
    capture = captures.itch(tmp_path, copies=1)
    data = capture.path.read_bytes()
    live: dict[int, int] = {}  # order -> shares left
    offset = count = 0
    while offset < len(data):
        (length,) = struct.unpack_from(">H", data, offset)
        body = data[offset + 2 : offset + 2 + length]
        kind = body[:1]
        if kind in b"AEXDU":
            (order,) = struct.unpack_from(">Q", body, 11)
            if kind == b"A":
                assert order not in live
                (live[order],) = struct.unpack_from(">I", body, 20)
            else:
                assert order in live, f"message {count}, type {kind!r}"
            if kind in b"EX":
                live[order] -= struct.unpack_from(">I", body, 19)[0]
                assert live[order] >= 0
            if kind in b"DU" or live[order] == 0:
                del live[order]
            if kind == b"U":
                new, shares = struct.unpack_from(">QI", body, 19)
                live[new] = shares
        offset += 2 + length
        count += 1
    assert not live
    assert count == capture.messages


@pytest.mark.usefixtures("samples")
def test_peers_see_every_message_of_the_captures(tmp_path: Path) -> None:
    try:
        assert peers_decode.dbn_rate(captures.dbn(tmp_path, copies=2)) > 0
    except (PeerMissing, Skipped) as reason:
        pytest.skip(str(reason))
    assert peers_decode.itch_rate(captures.itch(tmp_path, copies=1)) > 0
    assert peers_decode.iex_rate(captures.iex(tmp_path, copies=2)) > 0
    assert peers_decode.binance_rate(captures.binance(tmp_path)) > 0
    assert peers_decode.bi5_rate(captures.bi5(tmp_path, copies=1)) > 0
    assert peers_decode.truefx_rate(captures.truefx(tmp_path, copies=2)) > 0
    assert peers_decode.lobster_rate(captures.lobster(tmp_path, copies=2)) > 0


def test_without_samples_a_replay_benchmark_is_skipped_and_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TICKENGINE_SAMPLES", str(tmp_path / "nowhere"))
    with pytest.raises(Skipped, match="nowhere"):
        captures.iex(tmp_path, copies=1)
