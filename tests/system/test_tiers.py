"""GET /data over the tiers of a real engine: earlier runs, paging, files, a store or the historian that is down."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402  # after the check that it is there

from shm.layout import RecordType  # noqa: E402
from shm.ring import ring_info  # noqa: E402
from tests.system.engine_process import EngineProcess, wait_for  # noqa: E402
from workers.history import History  # noqa: E402
from workers.journal_reader import list_segments  # noqa: E402
from workers.parquet import schema_of, seal  # noqa: E402

pytestmark = pytest.mark.slow

QUIET = "[simulate]\nenabled = false\n"
FAST = "[simulate]\nenabled = true\ninstruments = 4\nrate = 4000\n"


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A configuration without feeds: only what is posted is in there."""
    path = tmp_path / "quiet.toml"
    path.write_text(QUIET)
    return path


def post(engine: EngineProcess, symbol: str, first: int, count: int) -> None:
    """Trades with price and trade id first, first + 1, ..., a second apart, in 2025."""
    points = [
        {
            "symbol": symbol,
            "data_type": "trade",
            "timestamp": 1_750_000_000_000_000_000 + number * 1_000_000_000,
            "data": {"price": float(number), "size": 1.0, "trade_id": number},
        }
        for number in range(first, first + count)
    ]
    assert engine.send("POST", "/data/ingest", {"data": points})[1]["count"] == count


def ask(engine: EngineProcess, path: str) -> tuple[dict[str, str], dict[str, Any]]:
    status, headers, body = engine.get(path)
    assert status == 200, body
    return headers, json.loads(body)


def ids(answer: dict[str, Any]) -> list[int]:
    return [point["data"]["trade_id"] for point in answer["data"]]


def in_l1(engine: EngineProcess, symbol: str, newest: int) -> None:
    """Wait until the newest that was posted is answered."""
    wait_for("the posted points", lambda: ids(ask(engine, f"/data/{symbol}?data_type=trade&limit=1")[1]) == [newest])


def pages(engine: EngineProcess, path: str) -> Iterator[dict[str, Any]]:
    """Answers from the newest page to the oldest."""
    cursor = ""
    while True:
        _, answer = ask(engine, path + cursor)
        assert answer["incomplete"] == []
        yield answer
        if answer["cursor"] is None:
            return
        cursor = f"&cursor={answer['cursor']}"


def test_earlier_runs_are_answered_from_the_stores_and_new_records_from_l1(
    engine_name: str, tmp_path: Path, quiet: Path
) -> None:
    config = ("--config", str(quiet))
    with EngineProcess(engine_name, tmp_path, *config) as engine:
        engine.wait_ready()
        post(engine, "OLD", 1, 30)
        in_l1(engine, "OLD", 30)
        headers, _ = ask(engine, "/data/OLD?data_type=trade&limit=5")
        assert headers["x-cache"] == "L1"
        assert engine.stop() == 0
    folder = tmp_path / "data" / engine_name
    journal = [segment.path for segment in list_segments(folder / "journal")]
    assert seal(folder, [path.name for path in journal]) is not None
    for path in journal:
        path.unlink()  # as if its hours were over

    with EngineProcess(engine_name, tmp_path, *config) as engine:
        engine.wait_ready()
        headers, answer = ask(engine, "/data/OLD?data_type=trade&limit=5")
        assert (headers["x-cache"], ids(answer)) == ("L3", [26, 27, 28, 29, 30])
        post(engine, "OLD", 31, 10)
        in_l1(engine, "OLD", 40)
        headers, answer = ask(engine, "/data/OLD?data_type=trade")
        assert (headers["x-cache"], ids(answer), answer["cursor"]) == ("L1, L3", list(range(1, 41)), None)
        assert engine.stop() == 0

    with EngineProcess(engine_name, tmp_path, *config) as engine:
        engine.wait_ready()
        headers, answer = ask(engine, "/data/OLD?data_type=trade&limit=12")
        assert (headers["x-cache"], ids(answer)) == ("L2, L3", list(range(29, 41)))
        post(engine, "OLD", 41, 5)
        in_l1(engine, "OLD", 45)
        headers, answer = ask(engine, "/data/OLD?data_type=trade")
        assert (headers["x-cache"], ids(answer)) == ("L1, L2, L3", list(range(1, 46)))
        found = list(pages(engine, "/data/OLD?data_type=trade&limit=4"))
        assert [number for page in reversed(found) for number in ids(page)] == list(range(1, 46))
        start, end = "2025-06-15T15:07:10Z", "2025-06-15T15:07:25Z"  # numbers 30 and 45
        _, answer = ask(engine, f"/data/OLD?data_type=trade&start={start}&end={end}")
        assert ids(answer) == list(range(30, 45))

        status, headers, body = engine.get("/data/OLD?data_type=trade&format=parquet")
        assert (status, headers["content-type"]) == (200, "application/vnd.apache.parquet")
        assert headers["x-cache"] == "L1, L2, L3"
        table = pq.read_table(pa.BufferReader(body))
        assert table.schema.names == schema_of(RecordType.TRADE).names
        assert table["trade_id"].to_pylist() == list(range(1, 46))
        status, headers, body = engine.get("/data/OLD?data_type=trade&format=arrow&limit=10")
        assert (status, headers["content-type"]) == (200, "application/vnd.apache.arrow.stream")
        assert pa.ipc.open_stream(body).read_all()["trade_id"].to_pylist() == list(range(36, 46))
        status, headers, body = engine.get(
            f"/data/OLD?data_type=trade&format=arrow&limit=10&cursor={headers['x-cursor']}"
        )
        assert pa.ipc.open_stream(body).read_all()["trade_id"].to_pylist() == list(range(26, 36))
        assert engine.get("/data/OLD?format=arrow&limit=200001")[0] == 422

        assert engine.get("/data/NEVER")[0] == 404
        assert set(engine.json("/metrics")["tiers"]) == {"L1", "L2", "L3"}
        wait_for("hits of all tiers", lambda: all(t["hits"] for t in engine.json("/metrics")["tiers"].values()))
        assert b'marketdata_cache_hit_ratio{tier="L2"}' in engine.get("/metrics/prometheus")[2]

        for path in (folder / "parquet").rglob("trade.parquet"):
            path.write_bytes(b"no Parquet")
        pid = engine.pids()["historian"]
        os.kill(pid, signal.SIGKILL)  # which remembers footers
        wait_for("another historian", lambda: engine.pids().get("historian", pid) != pid)
        headers, answer = ask(engine, "/data/OLD?data_type=trade")
        assert (headers["x-cache"], ids(answer)) == ("L1, L2", list(range(31, 46)))
        assert "L3 parquet" in headers["x-cache-missing"]
        assert "L3 parquet" in answer["incomplete"][0]
        assert answer["cursor"] is not None  # it is not known that this is the end
        wait_for("the store that is down is counted", lambda: engine.json("/metrics")["tiers"]["L3"]["down"])
        assert engine.stop() == 0


def test_paging_gives_every_record_once_while_records_keep_coming(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "fast.toml"
    path.write_text(FAST)
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        symbol = wait_for("symbols", lambda: engine.json("/symbols")["symbols"])[0]
        wait_for(
            "more than L1 holds",
            lambda: ask(engine, f"/data/{symbol}?data_type=quote&limit=2000")[1]["count"] > 1000,
        )
        before = ring_info(engine.name, 2).published
        found = list(pages(engine, f"/data/{symbol}?data_type=quote&limit=50"))
        assert ring_info(engine.name, 2).published > before
        got = [point["sequence"] for page in reversed(found) for point in page["data"]]
        assert engine.stop() == 0
    table = History(tmp_path / "data" / engine_name).table(RecordType.QUOTE, symbol=symbol)
    recorded = table["sequence"].to_pylist()
    assert len(got) > 500
    assert got == recorded[: len(got)]


def test_a_killed_historian_costs_an_answer_at_most(engine_name: str, tmp_path: Path, quiet: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--config", str(quiet)) as engine:
        engine.wait_ready()
        post(engine, "X", 1, 20)
        in_l1(engine, "X", 20)
        pid = engine.pids()["historian"]
        os.kill(pid, signal.SIGSTOP)
        got: list[tuple[int, dict[str, str], bytes]] = []
        asking = [
            threading.Thread(target=lambda path=path: got.append(engine.get(path)))
            for path in ("/data/X?data_type=trade", "/data/UNKNOWN")
        ]
        for thread in asking:
            thread.start()
        os.kill(pid, signal.SIGKILL)
        for thread in asking:
            thread.join()
        for status, headers, body in got:
            answer = json.loads(body)
            if status == 200:  # the one with records in L1
                assert (headers["x-cache"], len(answer["data"])) == ("L1", 20)
                assert answer["incomplete"] or answer["cursor"] is None
            else:
                assert status in (503, 404)
                assert status == 404 or headers["retry-after"]
        wait_for("another historian", lambda: engine.pids().get("historian", pid) != pid)
        headers, answer = ask(engine, "/data/X?data_type=trade")
        assert (headers["x-cache"], answer["incomplete"], answer["cursor"]) == ("L1", [], None)
        assert engine.get("/data/UNKNOWN")[0] == 404
        assert engine.stop() == 0


def test_the_short_way_and_the_long_way_give_the_same_answer(engine_name: str, tmp_path: Path, quiet: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--config", str(quiet)) as engine:
        engine.wait_ready()
        quotes = [{"symbol": "Q", "data_type": "quote", "data": {"bid": bid, "ask": bid + 1}} for bid in range(20)]

        def posted() -> bool:
            """Post twenty of this moment; whether L1 has them, and they are above what it can't know of."""
            assert engine.send("POST", "/data/ingest", {"data": quotes})[1]["count"] == 20
            found = engine.get("/data/Q?limit=5&data_type=quote")
            return found[0] == 200 and json.loads(found[2])["count"] == 5

        wait_for("quotes in L1", posted)
        for query in ("limit=5&data_type=quote", "data_type=quote", "limit=3", ""):
            short = engine.get(f"/data/Q?{query}" if query else "/data/Q")
            long = engine.get(f"/data/Q?{query}&format=json" if query else "/data/Q?format=json")
            for status, headers, _ in (short, long):
                assert status == 200
                del headers["date"]
            assert short == long
        short_status, short_headers, short = engine.get("/symbols/Q/snapshot", method="POST")
        long_status, long_headers, long = engine.get("/symbols/Q/snapshot?long=way", method="POST")
        assert (short_status, long_status) == (200, 200)
        assert short_headers.keys() == long_headers.keys()
        assert json.loads(short)["snapshot"] == json.loads(long)["snapshot"]
        assert engine.stop() == 0


def test_without_storage_l1_answers_for_itself(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    path.write_text(QUIET + "[storage]\nenabled = false\n")
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        assert "historian" not in engine.pids()
        post(engine, "X", 1, 20)
        in_l1(engine, "X", 20)
        found = list(pages(engine, "/data/X?data_type=trade&limit=7"))
        assert [number for page in reversed(found) for number in ids(page)] == list(range(1, 21))
        assert engine.get("/data/Y")[0] == 404
        status, _, body = engine.get("/data/X?format=arrow")
        assert (status, b"[storage] enabled" in body) == (422, True)
        assert engine.stop() == 0


def test_a_page_never_cuts_a_news_item(engine_name: str, tmp_path: Path, quiet: Path) -> None:
    texts = [f"{number}: " + "a headline of several records " * (number % 7 * 3 + 1) for number in range(30)]
    config = ("--config", str(quiet))
    for told in (15, 30):  # so that pages are of the journal, of L1 and of both
        with EngineProcess(engine_name, tmp_path, *config) as engine:
            engine.wait_ready()
            items = [
                {"symbol": "OLD", "data_type": "news", "source": "internal", "data": {"headline": text}}
                | {"timestamp": f"2025-06-15T15:00:{texts.index(text):02d}Z"}
                for text in texts[told - 15 : told]
            ]
            assert engine.send("POST", "/data/ingest", {"data": items})[1]["count"] == len(items)
            last = texts[told - 1 : told]
            wait_for("the last item", lambda last=last: headlines(ask(engine, "/data/OLD?limit=1")[1]) == last)
            for limit in (1, 2, 3, 7, 40, 1000):
                found = list(pages(engine, f"/data/OLD?limit={limit}"))
                assert [line for page in reversed(found) for line in headlines(page)] == texts[:told], limit
            assert engine.stop() == 0


def headlines(answer: dict[str, Any]) -> list[str]:
    return [point["data"]["headline"] for point in answer["data"]]
