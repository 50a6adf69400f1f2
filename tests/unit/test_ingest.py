"""The ingest worker as a real process: what it publishes, how it starts, stops, fails and goes on after a kill."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, concatenate
from shm.status import ProcessState
from tests.ingest_worker import DEADLINE_S, RING, Engine, finish, simulated, until
from workers.spec import (
    EXIT_BAD_SETTINGS,
    EXIT_CLEAN,
    EXIT_SHM,
    FeedSpec,
    IngestSettings,
    encode,
)


@pytest.fixture
def engine(engine_name: str) -> Iterator[Engine]:
    engine = Engine(engine_name)
    yield engine
    engine.close()


def codes(records: np.ndarray) -> list[int]:
    return [int(code) for code in records["code"][records["record_type"] == RecordType.STATUS]]


def test_publishes_what_the_feed_delivers_and_counts_it(engine: Engine) -> None:
    worker = engine.start(simulated(rate=5000))
    reader = engine.reader()
    records = engine.records(reader, 3000)
    worker.terminate()
    assert worker.wait(DEADLINE_S) == EXIT_CLEAN
    assert codes(records)[0] == StatusCode.FEED_UP
    market = records[records["record_type"] != RecordType.STATUS]
    assert np.array_equal(records["sequence"], np.arange(1, len(records) + 1))
    assert np.all(market["flags"] & Flag.SYNTHETIC)
    assert np.all(market["ts_publish"] >= market["ts_receive"])
    assert np.all(np.diff(market["source_sequence"].astype(np.int64)) == 1)
    assert engine.instruments.find("AAPL") is not None
    counters = engine.view().counters
    assert counters["feed.1.records"] + len(["up", "down"]) == counters["records_published"] == reader.published
    assert counters["feed.1.last_update_ns"] > 0
    assert counters["batches"] > 0
    assert engine.view().histograms["feed_latency"].count > 0


def test_several_feeds_share_a_ring_and_are_told_apart(engine: Engine) -> None:
    engine.start(simulated(1, rate=2000), simulated(9, rate=2000, seed=5))
    records = engine.records(engine.reader(), 2000)
    assert set(records["feed_id"]) == {1, 9}
    assert engine.counter("feed.9.records") > 0


def test_full_speed_fills_batches(engine: Engine) -> None:
    engine.start(simulated(rate="max"), batch_slots=1024)
    until(lambda: engine.counter("feed.1.records") > 100_000, "far more than a paced source gives at once")
    assert engine.counter("feed.1.records") % 1024 == 0


def test_start_delay_is_kept(engine: Engine) -> None:
    started_ns = time.time_ns()
    engine.start(simulated(rate=1000), start_delay_s=1.5)  # far longer than a start takes
    first = engine.records(engine.reader(), 1)
    assert first["ts_publish"][0] - started_ns > 1_500_000_000
    assert engine.state() == ProcessState.READY


def test_sigterm_ends_it_in_order(engine: Engine) -> None:
    worker = engine.start(simulated(rate=1000))
    reader = engine.reader()
    engine.records(reader, 10)
    worker.terminate()
    assert finish(worker)[0] == EXIT_CLEAN
    assert engine.view().state == ProcessState.STOPPED
    rest = engine.records(reader, 1)
    while reader.poll():
        rest = engine.records(reader, 1)
    assert rest["code"][-1] == StatusCode.FEED_DOWN
    assert rest["text"][-1] == b"stopped"


def test_sigint_is_left_to_the_control_process(engine: Engine) -> None:
    worker = engine.start(simulated(rate=1000))
    reader = engine.reader()
    engine.records(reader, 10)
    worker.send_signal(signal.SIGINT)
    engine.records(reader, 500)
    assert worker.poll() is None


def test_end_of_standard_input_means_the_control_process_is_gone(engine: Engine) -> None:
    worker = engine.start(simulated(rate=1000))
    engine.records(engine.reader(), 10)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(DEADLINE_S) == EXIT_CLEAN
    assert engine.view().state == ProcessState.STOPPED


def test_heart_beats_while_idle(engine: Engine) -> None:
    engine.start()
    until(lambda: engine.state() == ProcessState.READY, "ready")
    first = engine.view().heartbeat_ns
    second = until(lambda: engine.view().heartbeat_ns > first and engine.view().heartbeat_ns, "another beat")
    until(lambda: engine.view().heartbeat_ns > second, "and another")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", "ended before the settings|expected one line"),
        (b"{not json}\n", "settings"),
        (b'{"engine":"x","label":"ingest-0","ring_id":99}\n', "ring_id"),
        (b'{"engine":"x","label":"ingest-0","ring_id":2,"fedes":[]}\n', "fedes"),
        (b'{"engine":"x","label":"ingest-0","ring_id":2,"role":"cache"}\n', "workers.ingest"),
    ],
)
def test_bad_settings_end_it_with_a_message(engine: Engine, line: bytes, message: str) -> None:
    code, logged = finish(engine.start_with(line))
    assert code == EXIT_BAD_SETTINGS
    assert any(part in logged for part in message.split("|")), logged


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ((FeedSpec(feed_id=1, name="a", source="simulatd"),), "did you mean 'simulated'"),
        ((simulated(rte=5),), "did you mean 'rate'"),
        ((simulated(3), simulated(3)), "both have feed_id 3"),
    ],
)
def test_feeds_that_can_not_work_end_it_before_it_is_ready(
    engine: Engine, feeds: tuple[FeedSpec, ...], message: str
) -> None:
    code, logged = finish(engine.start(*feeds))
    assert code == EXIT_BAD_SETTINGS
    assert message in logged
    assert engine.view().state == ProcessState.FAILED


def test_an_engine_that_does_not_exist_is_said_to_be_missing(engine_name: str, engine: Engine) -> None:
    line = encode(IngestSettings(engine=f"{engine_name[:10]}-no", label="ingest-0", ring_id=RING))
    code, logged = finish(engine.start_with(line))
    assert code == EXIT_SHM
    assert "status block" in logged


def test_a_ring_with_a_living_writer_is_refused(engine: Engine) -> None:
    engine.start(simulated(rate=100))
    engine.records(engine.reader(), 1)
    line = encode(IngestSettings(engine=engine.name, label="ingest-1", ring_id=RING))
    code, logged = finish(engine.start_with(line))
    assert code == EXIT_SHM
    assert "has a writer already" in logged


def test_after_a_kill_the_next_one_goes_on_in_the_same_ring(engine: Engine) -> None:
    worker = engine.start(simulated(rate=20_000))
    reader = engine.reader()
    before = engine.records(reader, 1000)
    worker.kill()
    worker.wait(DEADLINE_S)
    engine.start(simulated(rate=20_000))
    records = concatenate([before, engine.records(reader, 6000)])
    assert np.array_equal(records["sequence"], np.arange(1, len(records) + 1))
    assert codes(records) == [StatusCode.FEED_UP, StatusCode.WRITER_RESTARTED, StatusCode.FEED_UP]
    # The simulation goes on with other numbers, and venue sequences that only rise.
    market = records[records["record_type"] != RecordType.STATUS]
    assert np.all(np.diff(market["source_sequence"].astype(np.int64)) > 0)


def test_a_feed_that_can_not_be_had_is_down_and_does_not_hurt_the_others(engine: Engine, tmp_path: Path) -> None:
    missing = FeedSpec(
        feed_id=2, name="missing", source="replay", options={"files": [str(tmp_path / "none.dbn")], "speed": "max"}
    )
    engine.start(missing, simulated(1, rate=1000))
    records = engine.records(engine.reader(), 1500)
    down = records[(records["record_type"] == RecordType.STATUS) & (records["feed_id"] == 2)]
    assert StatusCode.FEED_DOWN in down["code"]
    until(lambda: engine.counter("feed.2.errors") >= 2, "a second try")
    assert engine.counter("feed.2.down") == 1
    assert engine.counter("feed.1.down") == 0


def write_capture(path: Path, count: int, span_s: float, part: int = 0, parts: int = 1) -> str:
    """Of a Binance capture of `count` trades over `span_s` seconds every one in `parts`, with ids from 1."""
    with path.open("w") as file:
        for trade_id, number in enumerate(range(1 + part, count + 1, parts), start=1):
            at_ns = 1_723_161_254_000_000_000 + int(number * span_s * 1e9 / count)
            file.write(
                f'{at_ns} {{"stream":"btcusdt@trade","data":{{"e":"trade","E":{at_ns // 1_000_000},"s":"BTCUSDT",'
                f'"t":{trade_id},"p":"100.5","q":"2","T":{at_ns // 1_000_000},"m":true,"M":true}}}}\n'
            )
    return str(path)


@pytest.mark.parametrize(("speed", "parts"), [(1, 1), ("max", 1), ("max", 3)])
def test_a_replay_killed_again_and_again_delivers_every_record_once(
    engine: Engine, tmp_path: Path, speed: float | str, parts: int
) -> None:
    count = 60_000
    files = [write_capture(tmp_path / f"{part}.txt", count, 1.5, part, parts) for part in range(parts)]
    feed = FeedSpec(
        feed_id=3,
        name="capture",
        source="replay",
        options={"files": files, "speed": speed},
    )
    reader = engine.reader()
    kills = 0
    # Beside a simulated feed, so that positions in the capture and sequences of the ring differ.
    for share in (0.1, 0.3, 0.31, 0.7):
        worker = engine.start(feed, simulated(1, rate=500), batch_slots=256)
        until(lambda: engine.is_ready(worker.pid), "ready")  # noqa: B023  called in this turn only
        until(lambda: engine.counter("feed.3.position") > share * count, f"{share:.0%} of the replay")  # noqa: B023
        worker.kill()
        worker.wait(DEADLINE_S)
        kills += 1
    worker = engine.start(feed, simulated(1, rate=500))
    until(lambda: engine.is_ready(worker.pid), "ready")  # the one before may have come to the end before it was killed
    until(lambda: engine.counter("feed.3.ended"), "the end of the replay")
    records = engine.records(reader, reader.published)
    assert reader.lost == 0
    own = records[records["feed_id"] == 3]
    trades = own[own["record_type"] != RecordType.STATUS]
    assert np.array_equal(trades["trade_id"], np.repeat(np.arange(1, count // parts + 1), parts))
    assert np.all(np.diff(trades["ts_receive"]) == 25_000)
    assert codes(records).count(StatusCode.WRITER_RESTARTED) == kills
    ends = own[(own["record_type"] == RecordType.STATUS) & (own["code"] == StatusCode.END_OF_REPLAY)]
    assert [(end["text"], end["to_sequence"]) for end in ends] == [(f"{parts - 1}.txt".encode(), count)]


def test_a_finished_replay_is_said_to_have_ended(engine: Engine, tmp_path: Path) -> None:
    feed = FeedSpec(
        feed_id=3,
        name="capture",
        source="replay",
        options={"files": [write_capture(tmp_path / "trades.txt", 100, 0.1)], "speed": "max"},
    )
    worker = engine.start(feed)
    records = engine.records(engine.reader(), 103)
    assert codes(records) == [StatusCode.FEED_UP, StatusCode.END_OF_REPLAY, StatusCode.FEED_DOWN]
    assert records["text"][-1] == b"finished"
    until(lambda: engine.counter("feed.3.ended") == 1, "ended")
    assert engine.counter("feed.3.records") == 101
    assert engine.counter("bytes_received") > 100 * 100
    assert worker.poll() is None
