"""A FIX feed of a whole engine: its worker killed in the middle of things, its engine stopped and started again."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from shm.ring import RingReader
from tests.fix_server import Act, FixServer, Out, trades
from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow

STEP = 3000  # trades between two kills
KILLS = 3
LOST = 5  # of each step the last ones get their numbers and never reach the wire
INGEST_RING = 2


class Tape:
    """Trades that go on from one connection to the next, as far as they are let."""

    def __init__(self) -> None:
        self._trades = trades("EUR/USD", STEP * (KILLS + 1))
        self._at = self._limit = 0
        self._changed = threading.Condition()

    def let(self, limit: int) -> None:
        """Up to this one."""
        with self._changed:
            self._limit = limit
            self._changed.notify_all()

    def __iter__(self) -> Tape:
        return self

    def __next__(self) -> Out:
        with self._changed:
            self._changed.wait_for(lambda: self._at < self._limit)
            if self._at == len(self._trades):
                raise StopIteration
            out = self._trades[self._at]
            self._at += 1
            step, place = divmod(self._at - 1, STEP)
            return Out(out.kind, out.body, lost=step < KILLS and place >= STEP - LOST)


def configure(folder: Path, port: int) -> Path:
    path = folder / "engine.toml"
    path.write_text(
        '[[feeds]]\nname = "prime"\nsource = "fix"\nsymbols = ["EUR/USD"]\ndata_types = ["trade"]\n'
        f'options = {{ host = "127.0.0.1", port = {port}, sender = "CLIENT", target = "VENUE", login = "prime" }}\n'
    )
    return path


class Ring:
    """Everything that the ingest worker's ring has had, in order."""

    def __init__(self, engine: str) -> None:
        self._reader = RingReader.attach(engine, INGEST_RING, start="oldest", register=False)
        self._found = [empty(0)]

    def read(self) -> np.ndarray:
        out = empty(4096)
        while got := self._reader.read(out):
            assert self._reader.gap is None
            self._found.append(out[:got].copy())
        self._found = [concatenate(self._found)]
        return self._found[0]

    def trades(self) -> list[int]:
        records = self.read()
        found: list[int] = records["trade_id"][records["record_type"] == RecordType.TRADE].tolist()
        return found

    def close(self) -> None:
        self._reader.close()


def test_a_killed_worker_asks_for_what_it_missed_and_nothing_is_doubled(engine_name: str, tmp_path: Path) -> None:
    tape = Tape()
    env = {"TICKENGINE_FIX_PRIME_USERNAME": "u", "TICKENGINE_FIX_PRIME_PASSWORD": "p"}
    with (
        FixServer([Act(tape)]) as venue,  # type: ignore[arg-type]
        EngineProcess(engine_name, tmp_path, "--config", str(configure(tmp_path, venue.port)), env=env) as engine,
    ):
        engine.wait_ready()
        ring = Ring(engine_name)
        for kill in range(1, KILLS + 1):
            pid = wait_for("the worker", lambda: engine.pids().get("ingest-0"))
            tape.let(STEP * kill)
            wait_for("some trades", lambda kill=kill: len(ring.trades()) > STEP * kill - STEP // 2)
            os.kill(pid, signal.SIGKILL)
            wait_for("another connection", lambda kill=kill: venue.connections > kill)
        tape.let(STEP * (KILLS + 1))
        wait_for("every trade", lambda: len(ring.trades()) >= STEP * (KILLS + 1))
        tape.let(STEP * (KILLS + 1) + 1)  # who waits for more ends
        assert ring.trades() == list(range(1, STEP * (KILLS + 1) + 1))
        records = ring.read()
        told = records[records["record_type"] == RecordType.STATUS]
        gaps = told[(told["code"] == StatusCode.GAP) & (told["to_sequence"] > 0)]
        lost = [number for gap in gaps for number in range(gap["from_sequence"], gap["to_sequence"])]
        assert {venue.sent[number].kind for number in lost} <= {"A"}  # nobody can know that it was only a logon
        asked = [message for connection in range(venue.connections) for message in venue.asked("2", connection)]
        assert asked
        assert (records["flags"] & np.uint16(Flag.BACKFILLED)).any()
        assert venue.too_low == []
        numbers = [int(venue.asked("A", connection)[0].get(34)) for connection in range(venue.connections)]
        assert numbers == sorted(set(numbers))
        ring.close()

        feed = wait_for("live", lambda: (one := engine.json("/feeds/prime"))["state"] == "active" and one)
        assert feed["data_source"] == "fix"
        before = venue.next_in
        assert engine.stop() == 0
        wait_for("the logout", lambda: venue.asked("5"))
        assert venue.next_in > before

        connections = venue.connections
        config = str(tmp_path / "engine.toml")
        with EngineProcess(engine_name, tmp_path, "--config", config, base=engine.base, env=env) as again:
            again.wait_ready()
            wait_for("a connection of the next engine", lambda: venue.connections > connections)
            wait_for("its subscription", lambda: venue.asked("V"))
            assert venue.too_low == []
            assert int(venue.asked("A")[0].get(34)) > numbers[-1]
            assert again.stop() == 0


def test_a_log_of_fix_messages_is_replayed(engine_name: str, tmp_path: Path, samples: Path) -> None:
    raw = samples / "fix/valid-soh.fix"
    log = tmp_path / "messages.log"
    messages = [b"8=FIX" + part.rstrip(b"\n") for part in raw.read_bytes().split(b"8=FIX")[1:]]
    log.write_bytes(b"".join(b"2023-09-13 14:15:48.%03d <- %s\n" % pair for pair in enumerate(messages)))
    with EngineProcess(engine_name, tmp_path, "--replay", str(raw), str(log), "--speed", "max") as engine:
        engine.wait_ready()
        ring = Ring(engine_name)

        def ended() -> bool:
            told = ring.read()
            told = told[told["record_type"] == RecordType.STATUS]
            return bool((told["code"] == StatusCode.FEED_DOWN).any())

        wait_for("the end of both files", ended)
        records = ring.read()
        market = records[records["record_type"] != RecordType.STATUS]
        assert len(market) == 2 * 184
        assert (market["flags"] & np.uint16(Flag.REPLAYED) != 0).all()
        times = market["ts_receive"][market["ts_receive"] != 0]  # of the log; the other one has none
        assert len(times) == 184
        assert set(times.tolist()) <= {1_694_614_548 * 10**9 + ms * 10**6 for ms in range(11)}
        ring.close()


def test_a_fix_feed_is_added_over_http_and_a_wrong_one_is_told_why(engine_name: str, tmp_path: Path) -> None:
    with (
        FixServer([Act(trades("EUR/USD", 20))]) as venue,
        EngineProcess(engine_name, tmp_path, "--simulate") as engine,
    ):
        engine.wait_ready()
        options = {"host": "127.0.0.1", "port": venue.port, "sender": "CLIENT", "target": "VENUE"}
        wanted = {"symbol": "EUR/USD", "data_source": "fix", "data_types": ["trade"], "options": options}
        status, answer = engine.send("POST", "/feeds", {**wanted, "options": {**options, "login": "nobody"}})
        assert status == 422
        assert "TICKENGINE_FIX_NOBODY_PASSWORD" in str(answer)
        status, answer = engine.send("POST", "/feeds", wanted)
        assert (status, answer["feed_id"]) == (201, "feed_eur_usd_001")
        wait_for("trades", lambda: engine.json("/feeds/feed_eur_usd_001")["message_count"] >= 20)
        status, answer = engine.send("POST", "/feeds", {**wanted, "data_types": ["quote"]})
        assert status == 201
        second = answer["feed_id"]
        reason = wait_for("why it is down", lambda: engine.json(f"/feeds/{second}")["error_count"])
        assert reason
        wait_for("the reason", lambda: "another feed has this FIX session open" in engine.output)
