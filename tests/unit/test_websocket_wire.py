"""Between socket and message: TLS, fragments, messages that are too long, a frame that ends in the middle."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from shm.layout import StatusCode
from tests.unit.test_websocket_source import Feed, btc_messages, feeds

__all__ = ["feeds"]  # the fixture

Make = Callable[..., Feed]
Speak = Callable[[WSTransport, int], None]


class RawVenue:
    """Acknowledges a subscription and then does with the transport what the test says; counts connections."""

    def __init__(self, speak: Speak, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self._speak, self._tls = speak, tls
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> RawVenue:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        server = await ws_create_server(self._listener, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"{'wss' if self._tls else 'ws'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        self._started.set()
        await self._stop.wait()
        server.close()

    def _listener(self, _: WSUpgradeRequest) -> WSListener:
        venue = self
        number, self.connections = self.connections, self.connections + 1

        class Listener(WSListener):
            def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
                if frame.msg_type == WSMsgType.TEXT:
                    transport.send(WSMsgType.TEXT, b'{"result":null,"id":%d}' % (number + 1))
                    venue._speak(transport, number)
                elif frame.msg_type == WSMsgType.CLOSE:
                    transport.disconnect()

        return Listener()


def feed_of(feeds: Make, venue: RawVenue, **options: object) -> Feed:
    return feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url, **options)


def test_a_message_in_fragments_is_one_message(samples: Path, feeds: Make) -> None:
    messages = btc_messages(samples)[:60]

    def speak(transport: WSTransport, _: int) -> None:
        for message in messages:
            transport.send(WSMsgType.TEXT, message[:30], fin=False)
            transport.send_ping(b"between")
            transport.send(WSMsgType.CONTINUATION, message[30:50], fin=False)
            transport.send(WSMsgType.CONTINUATION, message[50:])

    with RawVenue(speak) as venue:
        feed = feed_of(feeds, venue)
        feed.until(lambda: len(feed.market) == 60, "every record")
        assert feed.source.errors == 0


@pytest.mark.parametrize("fragments", [False, True])
def test_a_message_that_is_too_long_ends_the_connection_and_not_the_feed(
    samples: Path, feeds: Make, fragments: bool
) -> None:
    messages = btc_messages(samples)

    def speak(transport: WSTransport, number: int) -> None:
        first = number * 20
        for message in messages[first : first + 20]:
            transport.send(WSMsgType.TEXT, message)
        if number:
            return
        if fragments:
            transport.send(WSMsgType.TEXT, b" " * 1500, fin=False)
            transport.send(WSMsgType.CONTINUATION, b" " * 1500, fin=False)
        else:
            transport.send(WSMsgType.TEXT, b" " * 3000)

    with RawVenue(speak) as venue:
        feed = feed_of(feeds, venue, max_message_bytes=2048)
        feed.until(lambda: len(feed.market) == 40, "data of the second connection")
        assert venue.connections == 2
        assert StatusCode.FEED_DOWN in feed.codes()


def test_a_connection_that_ends_within_a_frame_is_lost_and_made_again(samples: Path, feeds: Make) -> None:
    messages = btc_messages(samples)

    def speak(transport: WSTransport, number: int) -> None:
        for message in messages[number * 20 : number * 20 + 20]:
            transport.send(WSMsgType.TEXT, message)
        if number == 0:
            transport.underlying_transport.write(b"\x81\x7d" + messages[20][:40])
            transport.underlying_transport.close()

    with RawVenue(speak) as venue:
        feed = feed_of(feeds, venue)
        feed.until(lambda: len(feed.market) == 40, "data of the second connection")
        assert (StatusCode.FEED_DOWN, "the connection broke off") in feed.said
        assert feed.source.errors == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_verified_unless_told_otherwise(samples: Path, feeds: Make, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    messages = btc_messages(samples)[:20]

    def speak(transport: WSTransport, _: int) -> None:
        for message in messages:
            transport.send(WSMsgType.TEXT, message)

    with RawVenue(speak, tls) as venue:
        distrusting = feed_of(feeds, venue)
        distrusting.until(lambda: distrusting.source.report.state == "failed", "the refusal")
        assert "certificate is not trusted" in distrusting.source.report.why
        for options in ({"ca_file": str(certificate)}, {"tls_verify": False}):
            feed = feed_of(feeds, venue, **options)
            feed.until(lambda feed=feed: len(feed.market) == 20, "data")
