"""The gateway's clients: slow ones, strangers, those that talk nonsense; and what the others notice of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from picows import WSHandshakeError

from tests.children import DEADLINE_S
from tests.system.fanout_process import ticks
from tests.system.gateway_process import Client, GatewayStage, until
from tests.system.worker_stage import RING
from workers.spec import EXIT_BAD_SETTINGS, GatewaySettings

SYMBOLS = ["AAPL", "MSFT", "BRK.B", "TSLA"]


@pytest.fixture
def stage(engine_name: str) -> Iterator[GatewayStage]:
    made = GatewayStage(engine_name, SYMBOLS)
    yield made
    made.close()


def test_a_slow_client_is_conflated_then_cut_and_the_others_get_everything(stage: GatewayStage) -> None:
    stage.start(queue_messages=100, cut_after_s=4.0)

    async def scenario() -> None:
        good, slow = await Client.connect(stage.url), await Client.connect(stage.url)
        for client in (good, slow):
            client.ask("subscribe", topics=["marketdata.tick.*"])
            await client.answer("subscribed")
        assert slow.transport is not None
        slow.transport.underlying_transport.pause_reading()
        published = 0
        while stage.counter("messages_conflated") < 1000:
            stage.writer.publish_batch(ticks(np.arange(1000) % 4, published))
            published += 1000
            await until(lambda n=published: len(good.messages) > n, "the good one has all")  # type: ignore[misc]
        slow.transport.underlying_transport.resume_reading()
        last = published - 3
        await until(lambda: last in slow.sequences(), "the newest of the slow one")
        sequences = set(slow.sequences())
        gaps = slow.of_type("gap")
        assert gaps
        assert {gap["topic"] for gap in gaps} == {f"marketdata.tick.{symbol}" for symbol in SYMBOLS}
        missing = {
            s for gap in gaps for s in range(gap["from"], gap["to"]) if (s - 1) % 4 == SYMBOLS.index(gap["topic"][16:])
        }
        assert sum(gap["count"] for gap in gaps) == len(missing) == stage.counter("messages_conflated")
        await until(lambda: len(slow.sequences()) + len(missing) == published, "all, or told of")
        assert sequences.isdisjoint(missing)
        slow.transport.underlying_transport.pause_reading()
        while not stage.counter("clients_cut"):
            stage.writer.publish_batch(ticks(np.arange(1000) % 4, published))
            published += 1000
            await until(lambda n=published: len(good.messages) > n, "the good one has all")  # type: ignore[misc]
        assert stage.clients() == 1
        slow.transport.underlying_transport.resume_reading()
        await until(lambda: slow.gone, "the slow one is gone")
        assert good.sequences() == list(range(1, published + 1))
        assert not good.of_type("gap")

    asyncio.run(scenario())
    assert stage.counter("records_lost") == 0


def test_a_client_that_wants_no_conflation_is_cut_instead(stage: GatewayStage) -> None:
    stage.start(queue_messages=100)

    async def scenario() -> None:
        client = await Client.connect(stage.url)
        client.ask("subscribe", topics=["marketdata.*"], when_slow="cut")
        await client.answer("subscribed")
        assert client.transport is not None
        client.transport.underlying_transport.pause_reading()
        while not stage.counter("clients_cut"):
            stage.writer.publish_batch(ticks(np.arange(1000) % 4))
            await asyncio.sleep(0.002)
        client.transport.underlying_transport.resume_reading()
        await until(lambda: client.gone, "it is gone")
        assert client.close_code in (1008, None)  # None: the close frame was behind what it did not read in time
        assert client.sequences() == list(range(1, len(client.sequences()) + 1))

    asyncio.run(scenario())
    assert stage.counter("messages_conflated") == 0
    assert stage.counter("clients_cut") == 1


GARBAGE = [
    ("", ""),
    ("nonsense", ""),
    ("[]", ""),
    ("\x00", ""),
    ('{"topics":[]}', "type"),
    ('{"type":"buy"}', "type"),
    ('{"type":"subscribe"}', "topics"),
    ('{"type":"subscribe","topics":"marketdata.tick.A"}', "topics"),
    ('{"type":"subscribe","topics":[]}', "topics"),
    ('{"type":"subscribe","topics":["marketdata.tick.A",5]}', "topics[1]"),
    ('{"type":"subscribe","topics":["marketdata.tick.A","tick.A"]}', "topics[1]"),
    ('{"type":"subscribe","topics":["marketdata.trades.A"]}', "topics[0]"),
    ('{"type":"subscribe","topics":["marketdata.tick.*A"]}', "topics[0]"),
    ('{"type":"subscribe","topics":["marketdata.tick.A B"]}', "topics[0]"),
    ('{"type":"subscribe","topics":["marketdata.tick.' + "A" * 33 + '"]}', "topics[0]"),
    ('{"type":"subscribe","topics":["marketdata.tick.A"],"snapshots":true}', "snapshots"),
    ('{"type":"subscribe","topics":["marketdata.tick.A"],"when_slow":"wait"}', "when_slow"),
    ('{"type":"unsubscribe","topics":["marketdata.tick.A"]}', "topics[0]"),
    ('{"type":"subscribe","topics":["marketdata.tick.A","marketdata.tick.B","marketdata.tick.C"]}', "topics"),
    ("[" * 5000, ""),
]


def test_garbage_is_answered_with_the_field_and_the_connection_kept(stage: GatewayStage) -> None:
    stage.start(max_topics=2)

    async def scenario() -> None:
        client = await Client.connect(stage.url)
        for number, (text, field) in enumerate(GARBAGE, 1):
            client.say(text)
            error = await client.answer("error", number)
            assert error["field"] == field, (text, error)
            assert error["message"]
        client.say(b"\xff\xfe{}")
        await client.answer("error", len(GARBAGE) + 1)
        client.ask("subscribe", topics=["marketdata.tick.AAPL"])
        await client.answer("subscribed")
        stage.writer.publish_batch(ticks(np.array([0])))
        await client.answer("data")

    asyncio.run(scenario())
    assert stage.counter("requests_refused") == len(GARBAGE) + 1


def test_floods_and_oversize_messages_end_their_client_only(stage: GatewayStage) -> None:
    stage.start(max_clients=3)

    async def scenario() -> None:
        good, flood, big = [await Client.connect(stage.url) for _ in range(3)]
        with pytest.raises(WSHandshakeError):
            await Client.connect(stage.url)
        big.say("x" * 100_000)
        for _ in range(2000):
            if flood.gone:
                break
            flood.ask("ping")
        await until(lambda: flood.gone and big.gone, "both are gone")
        assert flood.close_code == 1008
        good.ask("ping")
        await good.answer("pong")
        await until(lambda: stage.clients() == 1, "one is left")
        with pytest.raises(WSHandshakeError):
            await Client.connect(stage.url.replace("/ws/stream", "/elsewhere"))
        with pytest.raises(WSHandshakeError):
            await Client.connect(stage.url, {"Origin": "https://evil.example"})
        (await Client.connect(stage.url, {"Origin": "http://localhost:3000"})).ask("ping")

    asyncio.run(scenario())


def test_beyond_loopback_a_token_is_needed(stage: GatewayStage) -> None:
    token = "t0k3n-t0k3n-t0k3n"
    open_to_all = GatewaySettings(engine=stage.engine, label="open", rings=(RING,), host="0.0.0.0", port=stage.port)
    assert stage.spawn(open_to_all).wait(DEADLINE_S) == EXIT_BAD_SETTINGS
    stage.start(host="0.0.0.0", tokens=("an older one that nobody has", token))

    async def scenario() -> None:
        bearer = await Client.connect(stage.url, {"Authorization": f"Bearer {token}"})
        bearer.ask("subscribe", topics=["marketdata.tick.*"])
        await bearer.answer("subscribed")
        with pytest.raises(WSHandshakeError):
            await Client.connect(stage.url, {"Authorization": "Bearer wrong"})
        asked, wrong = await Client.connect(stage.url), await Client.connect(stage.url)
        asked.ask("subscribe", topics=["marketdata.tick.*"])
        assert (await asked.answer("error"))["field"] == "type"
        asked.ask("auth", token=token)
        await asked.answer("authorised")
        asked.ask("subscribe", topics=["marketdata.tick.*"])
        await asked.answer("subscribed")
        wrong.ask("auth", token="guess")
        await until(lambda: wrong.gone, "it is gone")
        assert wrong.close_code == 1008

    asyncio.run(scenario())


def test_a_bare_socket_speaks_the_protocol_with_fragments_and_pings(stage: GatewayStage) -> None:
    stage.start()
    with socket.create_connection(("127.0.0.1", stage.port), timeout=DEADLINE_S) as plain:
        key = base64.b64encode(os.urandom(16)).decode()
        plain.sendall(
            f"GET /ws/stream?x=1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode()
        )
        stream = plain.makefile("rb")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.readline()
        assert head.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in head.lower()

        def send(opcode: int, payload: bytes, *, fin: bool = True) -> None:
            mask = os.urandom(4)
            masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            plain.sendall(bytes([opcode | 0x80 * fin, 0x80 | len(payload)]) + mask + masked)

        def receive() -> tuple[int, bytes]:
            opcode, size = stream.read(2)
            if size == 126:
                size = int.from_bytes(stream.read(2), "big")
            return opcode, stream.read(size)

        send(1, b'{"type":"subsc', fin=False)
        send(9, b"are you there")
        send(0, b'ribe","topics":', fin=False)
        send(0, b'["marketdata.tick.AAPL"]}')
        answers = dict([receive(), receive()])
        assert answers[0x8A] == b"are you there"
        assert json.loads(answers[0x81])["type"] == "subscribed"
        stage.writer.publish_batch(ticks(np.zeros(1, dtype=int)))
        opcode, text = receive()
        assert (opcode, json.loads(text)["data"]["symbol"]) == (0x81, "AAPL")
        send(8, (1000).to_bytes(2, "big"))
        assert receive() == (0x88, (1000).to_bytes(2, "big"))
        assert stream.read() == b""
