"""The gateway as a process: what the ring holds is what WebSocket clients get, each at its own pace."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, empty
from shm.message import news_pieces
from shm.status import ProcessState
from tests.children import DEADLINE_S
from tests.system.engine_process import EngineProcess, wait_for
from tests.system.fanout_process import ticks
from tests.system.gateway_process import Client, GatewayStage, halts, quotes, until
from tests.system.worker_stage import RING
from workers.spec import EXIT_CLEAN

SYMBOLS = ["AAPL", "MSFT", "BRK.B", "TSLA"]


@pytest.fixture
def stage(engine_name: str) -> Iterator[GatewayStage]:
    made = GatewayStage(engine_name, SYMBOLS)
    yield made
    made.close()


def test_a_client_gets_what_the_ring_holds_of_its_topics(stage: GatewayStage) -> None:
    stage.start()

    async def scenario() -> None:
        exact, wild = await Client.connect(stage.url), await Client.connect(stage.url)
        exact.ask("subscribe", topics=["marketdata.tick.AAPL", "marketdata.tick.BRK.B"], id=7)
        wild.ask("subscribe", topics=["marketdata.quote.*", "marketdata.*.MSFT", "marketdata.quote.MS*"])
        assert (await exact.answer("subscribed"))["topics"] == ["marketdata.tick.AAPL", "marketdata.tick.BRK.B"]
        assert (await exact.answer("subscribed"))["id"] == 7
        await wild.answer("subscribed")
        first = stage.writer.publish_batch(ticks(np.arange(4000) % 4))
        stage.writer.publish_batch(quotes(np.arange(400) % 4))
        await until(lambda: len(exact.of_type("data")) == 2000, "all ticks of two symbols")
        await until(lambda: len(wild.of_type("data")) == 1400, "all quotes, and the ticks of one symbol, each once")
        assert exact.sequences() == [first + i for i in range(4000) if i % 4 in (0, 2)]
        assert wild.sequences() == [first + i for i in range(4000) if i % 4 == 1] + [
            first + 4000 + i for i in range(400)
        ]
        message = exact.of_type("data")[1]
        assert message["topic"] == "marketdata.tick.BRK.B"
        data = message["data"]
        assert (data["symbol"], data["data_type"], data["price"]) == ("BRK.B", "tick", 100.0 + 2 / 64)
        assert {"source", "timestamp", "sequence", "latency_ms", "size", "exchange", "side"} <= data.keys()
        exact.ask("unsubscribe", topics=["marketdata.tick.AAPL"])
        await exact.answer("unsubscribed")
        stage.writer.publish_batch(ticks(np.array([0, 2])))
        await until(lambda: len(exact.of_type("data")) == 2001, "the one that is left")
        exact.ask("ping", id="x")
        assert (await exact.answer("pong"))["id"] == "x"
        assert len(exact.of_type("data")) == 2001

    asyncio.run(scenario())
    assert stage.counter("messages_conflated") == stage.counter("records_lost") == 0
    assert stage.counter("messages_encoded") <= 4402
    assert stage.view().histograms["send_latency"].count > 0


def test_trading_status_names_its_symbol_and_can_be_had_of_one_symbol(stage: GatewayStage) -> None:
    stage.start()

    async def scenario() -> None:
        every, one, ticker = [await Client.connect(stage.url) for _ in range(3)]
        every.ask("subscribe", topics=["marketdata.feed.status"])
        one.ask("subscribe", topics=["marketdata.status.BRK.B", "marketdata.tick.BRK.B"])
        ticker.ask("subscribe", topics=["marketdata.tick.*"])
        for client in (every, one, ticker):
            await client.answer("subscribed")
        stage.writer.publish_batch(halts(np.arange(4)))
        stage.writer.publish_batch(ticks(np.arange(4)))
        await until(lambda: len(ticker.of_type("data")) == 4, "all ticks")
        await until(lambda: len(one.of_type("data")) == 2, "one symbol's halt and tick")
        await until(lambda: len(every.of_type("data")) == 4, "every halt")
        assert [m["data"]["symbol"] for m in every.of_type("data")] == SYMBOLS
        assert {m["data"]["data_type"] for m in ticker.of_type("data")} == {"tick"}
        told = one.of_type("data")[0]
        assert (told["topic"], told["data"]["symbol"]) == ("marketdata.feed.status", "BRK.B")
        assert (told["data"]["state"], told["data"]["detail"]) == ("halted", "ITCH H, reason T1")

    asyncio.run(scenario())


def test_a_symbol_of_the_future_and_the_special_topics_come_too(stage: GatewayStage) -> None:
    stage.start()

    async def scenario() -> None:
        client = await Client.connect(stage.url)
        client.ask("subscribe", topics=["marketdata.tick.NEW", "marketdata.feed.status", "marketdata.news.AAPL"])
        await client.answer("subscribed")
        records = ticks(np.array([stage.instruments.intern("NEW")]))
        stage.writer.publish_batch(records)
        status = empty(1)
        status["record_type"], status["instrument_id"], status["code"] = RecordType.STATUS, 0xFFFFFFFF, 2
        stage.writer.publish_batch(status)
        pieces = news_pieces("A headline that is longer than what fits into a single record of the ring", "and a body")
        news = empty(len(pieces))
        news["record_type"], news["headline"] = RecordType.NEWS, pieces
        news["flags"][:-1] = Flag.CONTINUES
        stage.writer.publish_batch(news)
        await until(lambda: len(client.of_type("data")) == 3, "three messages")
        tick, down, item = client.of_type("data")
        assert tick["data"]["symbol"] == "NEW"
        assert (down["topic"], down["data"]["code"]) == ("marketdata.feed.status", "feed_down")
        assert item["data"]["headline"].endswith("record of the ring")
        assert item["data"]["body"] == "and a body"

    asyncio.run(scenario())


def test_snapshot_then_stream_has_neither_gap_nor_duplicate_under_load(stage: GatewayStage) -> None:
    stage.start_cache()
    stage.start()

    async def scenario() -> None:
        stop = asyncio.Event()
        published = 0

        async def load() -> None:
            nonlocal published
            while not stop.is_set():
                stage.writer.publish_batch(quotes(np.arange(published, published + 40) % 4, published))
                published += 40
                await asyncio.sleep(0.002)
                await until(lambda: stage.counter("records_read") >= published - 400, "it follows")  # noqa: B023

        loading = asyncio.create_task(load())
        clients = []
        for number in range(12):
            client = await Client.connect(stage.url)
            wanted = f"marketdata.quote.{SYMBOLS[number % 4]}" if number % 3 else "marketdata.quote.*"
            client.ask("subscribe", topics=[wanted], snapshot=True)
            clients.append(client)
            await asyncio.sleep(0.003 * number)
        counts = [len(client.messages) for client in clients]
        await until(
            lambda: all(len(c.messages) > n + 50 for c, n in zip(clients, counts, strict=True)), "everybody streams"
        )
        stop.set()
        await loading
        last = stage.writer.next_sequence - 1
        for number, client in enumerate(clients):
            mine = range(4) if number % 3 == 0 else [number % 4]
            for instrument in mine:
                newest = last - (last - 1 - instrument) % 4
                await until(lambda c=client, n=newest: n in c.sequences(), "the newest")  # type: ignore[misc]
                got = [m for m in client.of_type("data") if m["data"]["symbol"] == SYMBOLS[instrument]]
                values = [m["data"]["sequence"] for m in got]
                assert values == list(range(values[0], newest + 1, 4)), f"client {number}, {SYMBOLS[instrument]}"
                assert [bool(m.get("snapshot")) for m in got] == [values[0] > 0] + [False] * (len(got) - 1)
                assert values[0] > 0
            assert client.messages[0]["type"] == "subscribed"

    asyncio.run(scenario())
    assert stage.counter("messages_conflated") == 0


def test_last_values_are_the_newest_of_each_type_and_only_of_the_new_topics(stage: GatewayStage) -> None:
    stage.start_cache()
    stage.start()
    stage.writer.publish_batch(ticks(np.array([0, 1, 0])))
    stage.writer.publish_batch(quotes(np.zeros(300, dtype=int)))  # the tick has left the records that are kept

    async def scenario() -> None:
        client = await Client.connect(stage.url)

        def values() -> list[dict[str, Any]]:
            """What has come but for bars, which close when they do."""
            return [message for message in client.of_type("data") if ".bar." not in message["topic"]]

        client.ask("subscribe", topics=["marketdata.quote.AAPL"], snapshot=True)
        await until(lambda: len(values()) == 1, "the quote")
        client.ask("subscribe", topics=["marketdata.*.AAPL", "marketdata.tick.NOBODY"], snapshot=True)
        await until(lambda: len(values()) == 2, "the tick")
        client.ask("subscribe", topics=["marketdata.tick.MSFT"], snapshot=True)
        await until(lambda: len(values()) == 3, "the other tick")
        quote, old, tick = values()
        assert (quote["snapshot"], quote["data"]["bid"], quote["data"]["sequence"]) == (True, 299.0, 303)
        assert (tick["snapshot"], tick["topic"], tick["data"]["sequence"]) == (True, "marketdata.tick.MSFT", 2)
        assert (old["data"]["sequence"], old["data"]["price"]) == (3, 100.0 + 2 / 64)

    asyncio.run(scenario())


def test_without_a_cache_the_stream_goes_on_and_the_client_is_told(stage: GatewayStage) -> None:
    stage.start()

    async def scenario() -> None:
        early, client = await Client.connect(stage.url), await Client.connect(stage.url)
        early.ask("subscribe", topics=["marketdata.tick.*"])
        await early.answer("subscribed")
        stage.writer.publish_batch(ticks(np.zeros(5, dtype=int)))
        await until(lambda: len(early.of_type("data")) == 5, "five")
        client.ask("subscribe", topics=["marketdata.tick.*"], snapshot=True, id=1)
        await client.answer("subscribed")
        stage.writer.publish_batch(ticks(np.zeros(7, dtype=int)))
        error = await client.answer("error")
        assert (error["field"], error["id"]) == ("snapshot", 1)
        await until(lambda: len(client.of_type("data")) == 7, "what came since")
        assert client.sequences() == list(range(6, 13))

    asyncio.run(scenario())


def test_a_killed_gateway_is_replaced_and_clients_connect_again(stage: GatewayStage) -> None:
    stage.start_cache()
    stage.start()

    async def scenario() -> None:
        client = await Client.connect(stage.url)
        client.ask("subscribe", topics=["marketdata.tick.AAPL"])
        await client.answer("subscribed")
        stage.writer.publish_batch(ticks(np.zeros(10, dtype=int)))
        await until(lambda: len(client.sequences()) == 10, "ten")
        stage.kill()
        await until(lambda: client.gone, "the connection ends")
        stage.writer.publish_batch(ticks(np.zeros(10, dtype=int)))
        await asyncio.to_thread(stage.start)
        again = await Client.connect(stage.url)
        again.ask("subscribe", topics=["marketdata.tick.AAPL"], snapshot=True)
        await again.answer("data")
        stage.writer.publish_batch(ticks(np.zeros(5, dtype=int)))
        await until(lambda: len(again.of_type("data")) == 6, "the last value and five more")
        assert [m["data"]["sequence"] for m in again.of_type("data")] == list(range(20, 26))

    asyncio.run(scenario())
    assert stage.clients() <= 1


def test_sigterm_sends_what_is_left_and_says_goodbye(stage: GatewayStage) -> None:
    worker = stage.start()

    async def scenario() -> None:
        clients = [await Client.connect(stage.url) for _ in range(20)]
        for client in clients:
            client.ask("subscribe", topics=["marketdata.tick.*"])
            await client.answer("subscribed")
        stage.writer.publish_batch(ticks(np.arange(500) % 4))
        worker.send_signal(signal.SIGTERM)
        await until(lambda: all(client.gone for client in clients), "all are gone")
        assert {client.close_code for client in clients} == {1001}
        assert all(client.sequences() == list(range(1, 501)) for client in clients)

    asyncio.run(scenario())
    assert worker.wait(DEADLINE_S) == EXIT_CLEAN
    assert stage.view().state is ProcessState.STOPPED


def test_an_overrun_of_the_gateway_itself_is_told_to_every_client(engine_name: str) -> None:
    stage = GatewayStage(engine_name, SYMBOLS, depth_slots=1024)
    try:
        worker = stage.start()

        async def scenario() -> None:
            clients = [await Client.connect(stage.url) for _ in range(3)]
            for client in clients:
                client.ask("subscribe", topics=["marketdata.tick.*"])
                await client.answer("subscribed")
            worker.send_signal(signal.SIGSTOP)
            stage.writer.publish_batch(ticks(np.arange(5000) % 4))
            worker.send_signal(signal.SIGCONT)
            for client in clients:
                gap = await client.answer("gap")
                assert (gap["topic"], gap["ring"], gap["from"], gap["reason"]) == ("marketdata.*", RING, 1, "overrun")
                await until(lambda c=client: 5000 in c.sequences(), "the newest")  # type: ignore[misc]
                assert client.sequences() == list(range(gap["to"], 5001))

        asyncio.run(scenario())
        assert stage.counter("gaps") == 1
        assert stage.counter("records_lost") > 0
    finally:
        stage.close()


def test_an_engine_serves_its_stream_and_shows_the_gateway(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        url = f"ws://127.0.0.1:{engine.base - 200}/ws/stream"
        assert url in engine.output

        async def scenario() -> None:
            client = await Client.connect(url)
            client.ask("subscribe", topics=["marketdata.*"], snapshot=True)
            await until(lambda: len(client.of_type("data")) > 3000, "the simulated market, bars and all")
            live: dict[tuple[str, int], list[int]] = {}
            for data in [m["data"] for m in client.of_type("data") if not m.get("snapshot")]:
                live.setdefault((data["symbol"], data["ring"]), []).append(data["sequence"])
            assert all(sequences == sorted(set(sequences)) for sequences in live.values())
            assert not client.of_type("gap")

            def shown() -> bool:
                found = {process["label"]: process for process in engine.json("/processes")["processes"]}["gateway"]
                return found["counters"]["messages_sent"] > 3000 and found["gauges"]["clients"] == 1

            await asyncio.to_thread(wait_for, "the gateway's counters in /processes", shown)
            _, _, text = await asyncio.to_thread(engine.get, "/metrics/prometheus")
            assert b'messages_conflated_total{process="gateway",role="gateway"}' in text
            assert b'clients{process="gateway",role="gateway"} 1.0' in text
            engine.process.send_signal(signal.SIGTERM)
            await until(lambda: client.gone, "goodbye")
            assert client.close_code == 1001

        asyncio.run(scenario())
        assert engine.process.wait(DEADLINE_S) == 0
        assert "did not stop" not in engine.output


def test_six_hundred_clients_get_every_message_encoded_once(stage: GatewayStage) -> None:
    stage.start()

    async def scenario() -> None:
        clients = await asyncio.gather(*(Client.connect(stage.url) for _ in range(600)))
        for client in clients:
            client.ask("subscribe", topics=["marketdata.tick.*"])
        await until(lambda: stage.counter("subscriptions") == 600, "all have subscribed")
        for number in range(10):
            stage.writer.publish_batch(ticks(np.arange(4), number * 4))
        await until(lambda: all(len(client.messages) == 41 for client in clients), "all have all")
        assert all(client.sequences() == list(range(1, 41)) for client in clients)
        assert stage.counter("messages_encoded") == 40
        assert stage.clients() == 600

    asyncio.run(scenario())
