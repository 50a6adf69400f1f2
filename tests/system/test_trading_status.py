"""Halts of a captured day through the whole engine: on every way out, of the right symbol, none lost, none a gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zmq

from shm.layout import StatusCode
from tests.system.engine_process import EngineProcess, wait_for
from tests.system.test_cli import cli
from tests.system.test_replay_truth import Plain

pytestmark = pytest.mark.slow

TOLD = 7_803 + 7_801


class Messages:
    """A SUB socket of the JSON endpoint, for one topic."""

    def __init__(self, endpoint: str, topic: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(topic.encode())
        self._socket.connect(endpoint)
        self.payloads: list[dict[str, object]] = []

    def drain(self) -> None:
        """Take in all that has arrived."""
        while self._socket.poll(20):
            self.payloads.append(json.loads(self._socket.recv_multipart()[1])["payload"])

    def close(self) -> None:
        """Let go of the socket."""
        self._context.destroy(0)


def test_the_halts_of_a_capture_come_out_everywhere(engine_name: str, tmp_path: Path, samples: Path) -> None:
    options = ("--replay", str(samples / "iex/TOPS16.pcapng.gz"), "--speed", "max", "--start-delay", "2")
    data = str(tmp_path / "data")
    with EngineProcess(engine_name, tmp_path, *options, "--data-dir", data) as engine:
        plain = Plain(f"tcp://127.0.0.1:{engine.base + 1}")
        messages = Messages(f"tcp://127.0.0.1:{engine.base + 21}", "marketdata.feed.status")
        try:

            def finished() -> bool:
                assert engine.process.poll() is None, engine.output
                plain.drain()
                messages.drain()
                ended = any(one["data"]["code"] == "end_of_replay" for one in messages.payloads)  # type: ignore[index]
                return plain.ends() == 1 and ended

            wait_for("the end of the capture", finished)
            records = plain.of("marketdata.feed.status")
            halts = records[records["code"] == StatusCode.TRADING_STATUS]
            assert len(halts) == TOLD
            assert not (records["code"] == StatusCode.GAP).any()
            told = [one for one in messages.payloads if one["data"]["code"] == "trading_status"]  # type: ignore[index]
            assert len(told) == TOLD
            symbols = engine.json("/symbols")["symbols"]
            assert {one["symbol"] for one in told} == set(symbols)
            assert {one["data"]["state"] for one in told} == {"trading", "halted", "unknown"}  # type: ignore[index]

            rows = engine.json("/data/AAPL?limit=1000")["data"]
            states = [row["data"]["state"] for row in rows if row["data_type"] == "status"]
            assert states == ["unknown", "trading"]
            (feed,) = engine.json("/feeds")["feeds"]
            assert feed["error_count"] == 0
            assert engine.stop() == 0, engine.output
        finally:
            plain.close()
            messages.close()
    out = tmp_path / "halts.csv"
    words = ("--type", "status", "--format", "csv", "-o", str(out), "--name", engine_name, "--data-dir", data)
    exported = cli("export", "AAPL", *words)
    assert exported.returncode == 0, exported.stderr
    assert out.read_text().count('"trading: IEX T"') == 1


@pytest.mark.parametrize("way", [("--from", "oldest"), ("--zmq",)])
def test_tail_shows_the_halts_of_a_symbol(
    engine_name: str, tmp_path: Path, samples: Path, way: tuple[str, ...]
) -> None:
    sample = samples / "itch/bekele-first1000-start-of-day.itch"
    with EngineProcess(engine_name, tmp_path, "--replay", str(sample), "--speed", "max", "--loop") as engine:
        engine.wait_ready()
        shown = cli("tail", "status.AA", "--count", "2", "--json", "--name", engine_name, *way)
        assert shown.returncode == 0, shown.stderr
        lines = [json.loads(line) for line in shown.stdout.splitlines()]
        assert [(line["symbol"], line["data"]["state"]) for line in lines] == [("AA", "trading")] * 2
        assert engine.stop() == 0, engine.output
