"""Faults on purpose: the same for the same seed however the input is cut, counted, and found by decoders as gaps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import NO_INSTRUMENT, RecordType, StatusCode, empty
from shm.status import Counter
from tests.multicast import mold
from tests.replayed_trades import NOW_NS, SECOND_NS, drain, make, market, trades
from tests.unit.test_multicast_source import add
from tests.venue_server import received
from workers.decoders._coinbase import CoinbaseDecoder
from workers.decoders._itch import ItchDecoder
from workers.decoders.capture import open_capture
from workers.decoders.protocol import NOTE, Batch, many_frames
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources.faults import FaultCounts, FaultInjector, FaultOptions, parse_faults
from workers.spec import FeedSpec

ALL = FaultOptions(seed=5, drop=0.1, duplicate=0.1, delay=0.1, reorder=0.1, corrupt=0.1, delay_ms=3)


def messages(count: int, size: int = 8) -> list[bytes]:
    return [number.to_bytes(size, "big") for number in range(count)]


def shown(batch: Batch) -> list[tuple[bytes, int, int]]:
    return [
        (bytes(batch.buffer[int(f["offset"]) : int(f["offset"] + f["size"])]), int(f["port"]), int(f["ts_receive"]))
        for f in batch.frames
    ]


def injected(options: FaultOptions, sent: list[bytes], cut: int = 10**9, stream: int = 0) -> tuple[list[Any], Any]:
    """All that comes of messages 1 ms apart, given in batches of `cut`."""
    injector = FaultInjector(options, stream)
    found = []
    for start in range(0, len(sent), cut):
        part = sent[start : start + cut]
        found += shown(injector.apply(many_frames(part, [(start + k + 1) * 10**6 for k in range(len(part))])))
    return found + shown(injector.finish()), injector.counts


def test_the_same_seed_gives_the_same_faults_however_the_input_is_cut() -> None:
    whole, counts = injected(ALL, messages(2000))
    for cut in (1, 7, 256):
        assert injected(ALL, messages(2000), cut) == (whole, counts)
    assert injected(ALL, messages(2000), stream=1)[0] != whole
    assert injected(FaultOptions(**{**ALL_FIELDS, "seed": 6}), messages(2000))[0] != whole
    for count in (counts.dropped, counts.duplicated, counts.delayed, counts.reordered, counts.corrupted):
        assert 100 < count < 300
    assert len(whole) == 2000 - counts.dropped + counts.duplicated


ALL_FIELDS = {name: getattr(ALL, name) for name in FaultOptions.__struct_fields__}


def test_without_shares_everything_passes_as_it_is() -> None:
    sent = messages(100)
    found, counts = injected(FaultOptions(), sent)
    assert [data for data, _, _ in found] == sent
    assert counts == FaultCounts(messages=100)
    assert str(counts) == "none of 100 messages"


def test_each_fault_does_what_it_is_called() -> None:
    sent = messages(1000)
    numbers = {data: number for number, data in enumerate(sent)}

    def order(**shares: float) -> tuple[list[int], Any]:
        found, counts = injected(FaultOptions(**shares), sent)
        return [numbers[data] for data, _, _ in found], counts

    got, counts = order(drop=0.2)
    assert got == sorted(got)
    assert len(got) == 1000 - counts.dropped
    got, counts = order(duplicate=0.2)
    assert [n for n in range(1000) for _ in range(got.count(n))] == got
    assert len(got) == 1000 + counts.duplicated
    got, counts = order(reorder=0.2)
    assert sorted(got) == list(range(1000))
    assert sum(1 for a, b in itertools.pairwise(got) if b == a - 1) == counts.reordered
    found, counts = injected(FaultOptions(delay=0.2, delay_ms=10), sent)
    times = [at for _, _, at in found]
    assert times == sorted(times)
    late = [(numbers[data], at) for data, _, at in found if at != (numbers[data] + 1) * 10**6]
    assert all(at == (number + 1) * 10**6 + 10**7 for number, at in late)
    assert len(late) == counts.delayed > 100
    found, counts = injected(FaultOptions(corrupt=0.2), sent)
    changed = [(data, original) for (data, _, _), original in zip(found, sent, strict=True) if data != original]
    assert all(len(data) == len(original) for data, original in changed)
    assert 0.8 * counts.corrupted < len(changed) <= counts.corrupted  # two flips of one byte may cancel each other


def test_notes_of_a_capture_are_left_alone_and_in_place() -> None:
    batch = many_frames([b"note", b"a", b"note", b"b"], [1, 2, 3, 4])
    batch.frames["reserved"] = [NOTE, 0, NOTE, 0]
    injector = FaultInjector(FaultOptions(drop=1.0))
    kept = injector.apply(batch)
    assert [data for data, _, _ in shown(kept)] == [b"note", b"note"]
    assert kept.frames["reserved"].tolist() == [NOTE, NOTE]
    assert injector.counts.messages == injector.counts.dropped == 2
    swapping = FaultInjector(FaultOptions(reorder=1.0))
    assert [data for data, _, _ in shown(swapping.apply(batch))] == [b"note", b"a", b"note"]
    assert [data for data, _, _ in shown(swapping.finish())] == [b"b"]


def names() -> Callable[[str], int]:
    known: dict[str, int] = {}
    return lambda name: known.setdefault(name, len(known))


def gaps_of(decoder: Any, batch: Batch) -> list[tuple[int, int]]:
    """Holes in the numbering of the connection or session."""
    decoder.feed(*batch)
    out, found = empty(64), []
    while count := decoder.decode(out):
        for row in out[:count]:
            gap = row["record_type"] == RecordType.STATUS and row["code"] == StatusCode.GAP
            if gap and row["instrument_id"] == NO_INSTRUMENT:
                found.append((int(row["from_sequence"]), int(row["to_sequence"])))
    return found


def ranges(missing: list[int]) -> list[tuple[int, int]]:
    """Runs of numbers as [first, last)."""
    found: list[tuple[int, int]] = []
    for number in missing:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def test_dropped_packets_are_gaps_exactly_where_they_were() -> None:
    packets = [mold(1 + 2 * number, [add(2 * number + 1), add(2 * number + 2)]) for number in range(500)]
    kept, counts = injected(FaultOptions(seed=9, drop=0.05), packets)
    left = {int.from_bytes(data[10:18], "big") for data, _, _ in kept}
    gone = [n + k for n in range(1, 1001, 2) if n not in left for k in (0, 1)]
    # What is dropped before the first or after the last that is left, no numbering can tell.
    inside = [number for number in gone if min(left) < number < max(left)]
    batch = many_frames([data for data, _, _ in kept], [1] * len(kept))
    assert gaps_of(ItchDecoder(names()), batch) == ranges(inside)
    assert counts.dropped * 2 == len(gone) > 20


def test_dropped_messages_of_coinbase_are_gaps_exactly_where_they_were(samples: Path) -> None:
    sent = received(samples / "websocket/COINBASE.jsonl.zst")
    kept, counts = injected(FaultOptions(seed=2, drop=0.05), sent)
    left = {json.loads(data)["sequence_num"] for data, _, _ in kept}
    inside = [number for number in range(min(left), max(left)) if number not in left]
    batch = many_frames([data for data, _, _ in kept], [1] * len(kept))
    assert gaps_of(CoinbaseDecoder(names()), batch) == ranges(inside)
    assert counts.dropped > 20


def test_dropped_changes_of_binance_books_are_gaps_exactly_where_they_were(tmp_path: Path) -> None:
    lines = [
        b'%d {"stream":"x@depth","data":{"e":"depthUpdate","E":1,"s":"X","U":%d,"u":%d,"b":[["1","2"]],"a":[]}}\n'
        % (10**18 + n, 10 * n + 1, 10 * n + 10)
        for n in range(400)
    ]
    path = tmp_path / "depth.txt"
    path.write_bytes(b"".join(lines))
    source = make(str(path), speed="max", faults="drop=0.05,seed=4")
    records = drain(source)
    left = set(market(records)["source_sequence"].tolist())
    missing = [n for n in range(min(left), max(left), 10) if n not in left]
    gaps = records[(records["record_type"] == RecordType.STATUS) & (records["code"] == StatusCode.GAP)]
    expected = [(first - 9, last - 9) for first, last in _steps(missing)]
    assert list(zip(gaps["from_sequence"].tolist(), gaps["to_sequence"].tolist(), strict=True)) == expected
    assert source.gaps == len(expected) > 5


def _steps(missing: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in missing:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 10)
        else:
            found.append((number, number + 10))
    return found


@pytest.mark.parametrize("after", [0, 1, 57, 400])
def test_a_successor_meets_the_same_faults(tmp_path: Path, after: int) -> None:
    files = [trades(tmp_path, f"{k}.txt", [k + step * 0.001 for step in range(300)], 1000 * k + 1) for k in range(2)]
    faults = {"seed": 3, "drop": 0.1, "duplicate": 0.1, "delay": 0.1, "reorder": 0.1, "corrupt": 0.1}
    whole = drain(make(*files, speed="max", faults=faults))
    again = make(*files, speed="max", faults=faults)
    again.skip(after)
    assert drain(again).tobytes() == whole[after:].tobytes()
    assert drain(make(*files, speed="max", faults={**faults, "seed": 4})).tobytes() != whole.tobytes()


def test_a_replay_counts_its_faults_where_all_can_see(tmp_path: Path) -> None:
    path = trades(tmp_path, "a.txt", [step * 0.001 for step in range(1000)])
    counters: dict[str, Any] = {}

    class Kept:
        value = 0

        def set(self, value: int) -> None:
            self.value = value

    def counter(name: str) -> Counter:
        kept: Any = counters.setdefault(name, Kept())
        return kept  # type: ignore[no-any-return]

    options = {"files": [path], "speed": "max", "faults": {"drop": 0.5}}
    spec = FeedSpec(feed_id=4, name="rep", source="replay", options=options)
    source = open_source(SourceContext(spec, names(), counter=counter))
    records = 0
    while source.next_due_ns is not None:
        records += source.poll(empty(64), NOW_NS)
    values = {name: kept.value for name, kept in counters.items()}
    assert values["faults.4.messages"] == 1000
    assert 400 < values["faults.4.dropped"] < 600
    assert values["faults.4.corrupted"] == 0
    gaps = source.gaps
    assert records == 1000 - values["faults.4.dropped"] + gaps + 1  # trade ids count by one: each hole is told


def test_delayed_messages_are_due_later(tmp_path: Path) -> None:
    path = trades(tmp_path, "a.txt", [0.0, 1.0, 2.0])
    source = make(path, faults={"delay": 1.0, "delay_ms": 1500})
    first = source.poll(empty(10), NOW_NS)
    assert (first, source.next_due_ns) == (1, NOW_NS + SECOND_NS)
    assert source.poll(out := empty(10), NOW_NS + SECOND_NS) == 1
    assert (out["ts_receive"][0] - out["ts_event"][0]) == 1_500_000_000


def test_records_of_dbn_and_length_framed_files_are_messages_too(samples: Path, tmp_path: Path) -> None:

    path = next((samples / "dbn/es-futures").glob("*trades*"))
    injector = FaultInjector(FaultOptions(drop=0.5))
    with open_capture(path, intern=names(), faults=injector) as capture:
        count = capture.decode(empty(500))
    assert injector.counts.messages == 120
    assert count == 120 - injector.counts.dropped < 90
    framed = tmp_path / "itch"
    framed.write_bytes(b"".join(len(add(n)).to_bytes(2, "big") + add(n) for n in range(1, 201)))
    injector = FaultInjector(FaultOptions(duplicate=1.0))
    with open_capture(framed, intern=names(), faults=injector) as capture:
        count = capture.decode(empty(500))
    assert (injector.counts.messages, injector.counts.duplicated) == (200, 200)
    assert count + sum(capture.counters.malformed.values()) + capture.counters.duplicates == 400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("drop=2", "faults: Expected `float` <= 1.0 - at `$.drop`"),
        ("dorp=0.1", "faults: 'dorp=0.1': expected NAME=VALUE, with a name of seed, drop"),
        ("drop", "faults: 'drop': expected NAME=VALUE"),
        ("seed=x", "faults: 'seed=x': 'x' is no number"),
        ({"drop": -1}, "options of source 'replay'"),
        ({"dropp": 1}, "dropp"),
    ],
)
def test_faults_that_can_not_be_are_refused_by_name(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        make(trades(tmp_path, "a.txt", [0.0]), faults=given)
    assert words in str(error.value)
    assert parse_faults(" drop=0.01, seed=3 ") == FaultOptions(seed=3, drop=0.01)
