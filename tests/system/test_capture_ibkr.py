"""IBKR feeds captured as people do it, by `tickengine capture` and by a running engine, from a local TWS."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from shm.layout import RecordType, Source, concatenate, empty
from shm.ring import RingReader
from tests.system.engine_process import DEADLINE_S, EngineProcess, wait_for
from tests.system.test_cli import cli, start
from tests.tws_server import BARS, BY_TICK, MKT_DATA, Act, Asked, TwsServer, contract_row, packed
from tests.unit.test_websocket_source import of
from workers.decoders.capture import open_capture
from workers.decoders.protocol import FramingError

pytestmark = pytest.mark.slow

CONTRACTS = {"AAPL": [contract_row("AAPL", 265598)], "MSFT": [contract_row("MSFT", 272093)]}
NOW_S = 1_700_000_000


def market(asked: Asked) -> Iterable[bytes]:
    """Fifty messages for each request."""
    for number in range(50):
        if asked.kind == BY_TICK:
            yield packed(99, asked.number, 1, NOW_S + number, 100.0 + number, 1, 0, "NASDAQ", "T")
        elif asked.kind == MKT_DATA:
            yield packed(1, 6, asked.number, 1, 100.0 + number, 1, 0) + packed(
                1, 6, asked.number, 2, 101.0 + number, 1, 0
            )
        elif asked.kind == BARS:
            yield packed(50, 3, asked.number, NOW_S + 5 * number, 1, 2, 0.5, 1.5, 100, 1.25, 7)


def config(folder: Path, port: int, more: str = "") -> str:
    path = folder / "engine.toml"
    path.write_text(
        '[[feeds]]\nname = "ib"\nsource = "ibkr"\nsymbols = ["AAPL", "MSFT"]\ndata_types = ["trade", "quote", "bar"]\n'
        f'options = {{ port = {port}, session = "always", tick_by_tick_lines = 1 }}\n{more}'
    )
    return str(path)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("ib-*.jsonl.zst"))


def records_of(paths: list[Path]) -> np.ndarray:
    """What the files hold so far, while they are written too."""
    found, numbers = [empty(0)], dict[str, int]()
    for path in paths:
        with open_capture(path, intern=lambda name: numbers.setdefault(name, len(numbers)), feed_id=1) as capture:
            try:
                while count := capture.decode(out := empty(512)):
                    found.append(out[:count].copy())
            except FramingError:
                pass
    return concatenate(found)


def kinds_of(records: np.ndarray) -> dict[RecordType, int]:
    kinds, counts = np.unique(records["record_type"], return_counts=True)
    return {RecordType(kind): int(count) for kind, count in zip(kinds, counts, strict=True)}


def test_a_feed_is_captured_and_its_file_replays(engine_name: str, tmp_path: Path) -> None:
    out = tmp_path / "wire"
    with TwsServer([Act(market)], CONTRACTS) as tws:
        process = start("capture", "--config", config(tmp_path, tws.port), "--out", str(out))
        wait_for("the bars and prints", lambda: parts(out) and len(records_of(parts(out))) >= 200)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert "0 dropped" in said
    (path,) = parts(out)
    found = kinds_of(records_of([path]))
    assert found.pop(RecordType.QUOTE) >= 50
    assert found == {RecordType.TRADE: 50, RecordType.BAR: 100}
    info = json.loads(cli("replay-info", "--json", str(path)).stdout)[0]
    assert info["symbols"] == ["AAPL", "MSFT"]
    assert not info["malformed"]
    for faults in ((), ("--faults", "drop=0.1,duplicate=0.1,corrupt=0.1,seed=3")):
        options = ("--replay", str(path), "--speed", "max", "--exit-when-done", *faults)
        with EngineProcess(engine_name, tmp_path, *options) as engine:
            assert engine.process.wait(timeout=DEADLINE_S) == 0
            assert not faults or "faults on purpose:" in engine.output


def test_a_capture_that_is_killed_replays_as_far_as_it_was_written(tmp_path: Path) -> None:
    out = tmp_path / "wire"
    with TwsServer([Act(market)], CONTRACTS) as tws:
        process = start("capture", "--config", config(tmp_path, tws.port), "--out", str(out))
        wait_for("the bars and prints", lambda: parts(out) and len(records_of(parts(out))) >= 200)
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    assert len(records_of(parts(out))) >= 200


def test_an_engine_publishes_what_its_capture_replays_to(engine_name: str, tmp_path: Path) -> None:
    with TwsServer([Act(market)], CONTRACTS) as tws:
        path = config(tmp_path, tws.port, '[capture]\nfeeds = ["*"]\n')
        with EngineProcess(engine_name, tmp_path, "--config", path) as engine:
            engine.wait_ready()

            def live() -> np.ndarray:
                out = empty(1 << 14)
                with RingReader.attach(engine_name, 2, start=1, register=False) as reader:
                    found = out[: reader.read(out)].copy()
                return of(found, (found["source"] == Source.IBKR) & (found["record_type"] != RecordType.STATUS))

            def last_quotes() -> int:
                """Each of two aggregates ends with the same one."""
                quotes = of(found := live(), found["record_type"] == RecordType.QUOTE)
                return int(((quotes["bid"] == 149.0) & (quotes["ask"] == 150.0)).sum())

            wait_for("what was asked for", lambda: last_quotes() == 2 and len(live()) >= 200)
            tws.abort()
            wait_for("the next connection's", lambda: last_quotes() == 4)
            published = live()
            assert engine.stop() == 0
        replay = records_of(parts(tmp_path / "data" / engine_name / "wire"))
    replay = of(replay, replay["record_type"] != RecordType.STATUS)
    # What ingest adds: its verdict among the flags, priority; instrument numbers are the engine's own.
    added = ("sequence", "ts_publish", "source", "flags", "priority", "instrument_id")
    for records in (published, replay):
        for name in added:
            records[name] = 0
    assert len(published) >= 250
    assert published.tobytes() == replay[: len(published)].tobytes()
