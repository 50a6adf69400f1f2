"""One POST: signed so that three lines can verify it, guarded at the address that is connected to."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from shm.ledger import Failure
from tests.system.receiver import SECRET, Receiver
from workers.webhook_post import Outcome, Poster, retry_after_ns, sign
from workers.webhook_target import Addresses


class Names(AbstractResolver):
    """Names of no real zone: each to one address."""

    def __init__(self, **names: str) -> None:
        self.names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.names[host.partition(".")[0]]
        return [ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


def send(url: str, *, timeout_s: float = 20.0, names: dict[str, str] | None = None, **rules: Any) -> Outcome:
    """One request of a poster of its own."""

    async def work() -> Outcome:
        resolver = Names(**names) if names else None
        poster = Poster(Addresses(**rules), timeout_s=timeout_s, connections=4, resolver=resolver)
        try:
            return await poster.post(
                url, b"[]", secret=SECRET, subscription_id="sub_1", delivery=3, now_s=lambda: 1_700_000_000.5
            )
        finally:
            await poster.close()

    return asyncio.run(work())


LOOPBACK = {"allow_networks": ["127.0.0.1"]}


def test_the_signature_is_that_of_timestamp_dot_body() -> None:
    expected = hmac.new(b"secret", b"1700000000." + b"[1]", hashlib.sha256).hexdigest()
    assert sign("secret", "1700000000", b"[1]") == f"sha256={expected}"


def test_2xx_is_acknowledged_and_everything_else_is_not() -> None:
    with Receiver() as receiver:
        receiver.script.extend(["ok", "201", "304", "400", "500", "redirect http://127.0.0.1:9/"])
        outcomes = [send(receiver.url, **LOOPBACK).failure for _ in range(6)]
    assert outcomes == [0, 0, 304, 400, 500, 307]
    assert all(delivery.signed for delivery in receiver.deliveries)


def test_each_way_to_fail_has_a_name() -> None:
    with Receiver() as receiver:
        receiver.script.extend(["close", "garbage", "stall"])
        assert send(receiver.url, **LOOPBACK).failure == Failure.CLOSED
        assert send(receiver.url, **LOOPBACK).failure == Failure.PROTOCOL
        assert send(receiver.url, timeout_s=0.3, **LOOPBACK).failure == Failure.TIMEOUT
        assert send(receiver.url.replace("http", "https"), **LOOPBACK).failure == Failure.TLS
        url = receiver.url
    assert send(url, **LOOPBACK).failure == Failure.NO_CONNECTION
    assert send("http://does-not-exist.invalid/", **LOOPBACK).failure == Failure.NO_ADDRESS


def test_a_name_that_resolves_to_a_private_address_is_refused_when_it_is_connected_to() -> None:
    with Receiver() as receiver:
        port = receiver.url.rpartition(":")[2]
        names = {"rebound": "127.0.0.1"}
        refused = send(f"http://rebound.example:{port}", names=names)
        assert refused.failure == Failure.REFUSED_TARGET
        assert not receiver.connections
        assert send(f"http://rebound.example:{port}", names=names, **LOOPBACK).failure == 0
        assert receiver.connections == 1


def test_a_literal_address_is_refused_too() -> None:
    with Receiver() as receiver:
        assert send(receiver.url).failure == Failure.REFUSED_TARGET
        assert not receiver.connections


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("120", 120),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("9" * 400, 10**9),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: int) -> None:
    assert retry_after_ns(text, 1_700_000_000.0) == pytest.approx(seconds * 10**9)


def test_retry_after_of_a_429_is_told() -> None:
    with Receiver() as receiver:
        receiver.script.append("429 7")
        assert send(receiver.url, **LOOPBACK).retry_after_ns == 7 * 10**9
