"""Every decoder takes what faults make of its input: counted, never raised, and the same each time.

Inputs are captures of real feeds where they are at hand, and packets and lines made here in any case. Damage is heavy:
up to every message. What a decoder made of it must be the same again, whatever the size of the caller's array.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm.layout import concatenate, empty
from tests.multicast import iex, mold
from tests.property.test_live_decoders import GOOD
from tests.unit.test_decode_venues import iex_trade
from tests.unit.test_multicast_source import add
from workers.capture_files import PCAP_HEAD, pcap_record
from workers.capture_log import Recording
from workers.decoders.capture import open_capture
from workers.decoders.protocol import FramingError
from workers.sources.faults import FaultInjector, FaultOptions
from workers.spec import CaptureSettings, FeedSpec

SAMPLES = (
    "websocket/COINBASE.jsonl.zst",
    "websocket/BINANCE.jsonl.zst",
    "websocket/BITSTAMP.jsonl.zst",
    "dbn/es-futures/*trades*",
    "dbn/es-futures/*mbp-1*",
    "dbn/es-futures/*ohlcv*",
    "dbn/dbn-official/*mbo*.dbn",
    "dbn/dbn-official/*mbp-10*.dbn",
    "itch/*",
    "ticks/truefx/*",
    "ticks/dukascopy/**/*h_ticks.bi5",
    "ticks/lobster/*message*",
    "pcap/Nasdaq/**/*.pcap",
    "pcap/Iex/**/*.pcap",
)
MOST_MESSAGES = 1200  # of a file, for one example
SHARES = st.sampled_from([0.0, 0.02, 0.3, 1.0])
FAULTS = st.builds(
    FaultOptions,
    seed=st.integers(0, 2**62),
    drop=st.sampled_from([0.0, 0.02, 0.3]),
    duplicate=SHARES,
    delay=SHARES,
    delay_ms=st.sampled_from([0.0, 1.0, 5000.0]),
    reorder=SHARES,
    corrupt=SHARES,
)
SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def decoded(path: Path, faults: FaultOptions, slots: int) -> tuple[bytes, FaultInjector, int]:
    """Records of the first messages of a file; refusals."""
    names: dict[str, int] = {}
    injector = FaultInjector(faults)
    found = [empty(0)]
    intern: Callable[[str], int] = lambda name: names.setdefault(name, len(names))  # noqa: E731
    with open_capture(path, intern=intern, faults=injector) as capture:
        try:
            while injector.counts.messages < MOST_MESSAGES and (count := capture.decode(out := empty(slots))):
                found.append(out[:count])
        except FramingError:
            pass
        refused = sum(capture.counters.malformed.values())
    return concatenate(found).tobytes(), injector, refused


def check(path: Path, faults: FaultOptions) -> None:
    one, injector, _ = decoded(path, faults, 256)
    two, again, _ = decoded(path, faults, 61)
    assert injector.counts.messages > 0
    shortest = min(len(one), len(two))
    assert one[:shortest] == two[:shortest]
    if injector.counts.messages < MOST_MESSAGES and again.counts.messages < MOST_MESSAGES:
        assert (len(one), injector.counts) == (len(two), again.counts)


@pytest.mark.parametrize("pattern", SAMPLES)
@SETTINGS
@given(faults=FAULTS)
def test_decoders_survive_faults_in_real_captures(samples: Path, pattern: str, faults: FaultOptions) -> None:
    paths = sorted(path for path in samples.glob(pattern) if path.is_file())
    assert paths, f"no sample {pattern}"
    check(paths[faults.seed % len(paths)], faults)


@pytest.mark.parametrize("kind", ["mold", "iex", "itch", "mold of our own", "iex of our own"])
@SETTINGS
@given(faults=FAULTS)
def test_binary_decoders_survive_faults(tmp_path: Path, kind: str, faults: FaultOptions) -> None:
    path = tmp_path / kind
    if kind == "itch":
        path.write_bytes(b"".join(len(add(n)).to_bytes(2, "big") + add(n) for n in range(1, 300)))
    else:
        payloads = (
            [mold(2 * n + 1, [add(2 * n + 1), add(2 * n + 2)]) for n in range(200)]
            if kind.startswith("mold")
            else [iex(2 * n + 1, [iex_trade(n), iex_trade(n + 1)]) for n in range(200)]
        )
        path.write_bytes(pcap(payloads, head=kind.endswith("own")))
    check(path, faults)


@pytest.mark.parametrize("venue", sorted(GOOD))
@SETTINGS
@given(faults=FAULTS)
def test_captures_of_venues_survive_faults(
    tmp_path_factory: pytest.TempPathFactory, venue: str, faults: FaultOptions
) -> None:
    from tests.unit.test_venues import DESCRIBED

    options = {**DESCRIBED, "url": "ws://x"} if venue == "generic" else {"venue": venue}
    recording = Recording(CaptureSettings(folder=str(tmp_path_factory.mktemp("wire")), compress="none", flush_s=60))
    spec = FeedSpec(feed_id=1, name="f", source="websocket", symbols=("X",), data_types=("trade",), options=options)
    log = recording.log_of(spec)
    log.connected("0", 1)
    for number in range(1, 100):
        log.received("0", GOOD[venue].replace(b"%d", str(number).encode()), number * 10**6)
    log.lost("0", 10**9, "over")
    recording.close()
    check(log.paths[0], faults)


def pcap(payloads: list[bytes], *, head: bool) -> bytes:
    """A capture of UDP datagrams, 1 ms apart, raw IP; `head`: with the packet that makes it one of our own."""
    parts = [PCAP_HEAD]
    if head:
        parts.append(pcap_record(b'{"t":"header","feed":{"options":{"gap_wait_ms":3}}}', 1))
    for number, payload in enumerate(payloads):
        udp = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload
        packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 1, 17, 0, bytes(4), bytes(4)) + udp
        parts.append(struct.pack("<IIII", 1_700_000_000, number * 10**6, len(packet), len(packet)) + packet)
    return b"".join(parts)
