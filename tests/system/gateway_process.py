"""The real gateway on segments of its own, for tests; and WebSocket clients that say what they got."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from shm.latest import LatestTable
from shm.layout import RecordType, StatusCode, empty
from shm.ring import create_ring
from shm.status import ProcessView
from tests.children import DEADLINE_S
from tests.ports import free_port
from tests.system.worker_stage import RING, WorkerStage
from workers.spec import CacheSettings, GatewaySettings


def quotes(instrument_ids: np.ndarray, first_number: int = 0) -> np.ndarray:
    """A quote for each of `instrument_ids`; its bid counts them from `first_number`."""
    records = empty(len(instrument_ids))
    records["record_type"], records["instrument_id"] = RecordType.QUOTE, instrument_ids
    numbers = first_number + np.arange(len(instrument_ids))
    records["ts_event"] = records["ts_receive"] = 1_709_303_400_000_000_000 + numbers
    records["bid"], records["ask"] = numbers, numbers + 1
    return records


def halts(instrument_ids: np.ndarray, text: bytes = b"halted: ITCH H, reason T1") -> np.ndarray:
    """A trading status of each of `instrument_ids`."""
    records = quotes(instrument_ids)
    records["record_type"], records["code"], records["from_sequence"] = RecordType.STATUS, StatusCode.TRADING_STATUS, 0
    records["to_sequence"], records["text"], records["venue"] = 0, text, b"XNAS"
    return records


class GatewayStage(WorkerStage):
    """An engine's segments; a gateway on them, and a cache where it is asked for."""

    def __init__(self, engine: str, symbols: list[str], *, depth_slots: int = 65536) -> None:
        """Make the segments; `symbols` get the instrument ids 0, 1, ..."""
        super().__init__(engine, symbols, depth_slots=depth_slots)
        self.table = LatestTable.create(engine, instruments=4096, depth_records=200, pool_records=1 << 17)
        create_ring(engine, 1, depth_slots=4096)
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where the gateway listens, over restarts."""
        return f"ws://127.0.0.1:{self.port}/ws/stream"

    def start(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the gateway and wait until it is ready."""
        chosen = {"engine": self.engine, "label": "gateway", "rings": (1, RING), "port": self.port, **settings}
        return self.spawn_ready(GatewaySettings(**chosen))

    def start_cache(self) -> subprocess.Popen[bytes]:
        """Start the cache and wait until it is ready."""
        return self.spawn_ready(CacheSettings(engine=self.engine, label="cache", rings=(RING,)))

    def view(self) -> ProcessView:
        """What the gateway says about itself."""
        view = self.view_of("gateway")
        assert view is not None
        return view

    def counter(self, name: str) -> int:
        """One of the gateway's counters, now."""
        return self.view().counters.get(name, 0)

    def clients(self) -> int:
        """How many are connected, as the gateway says."""
        return int(self.view().gauges.get("clients", 0))

    def kill(self, label: str = "gateway") -> None:
        """kill -9, and wait until it is gone."""
        self.kill_worker(label)

    def close(self) -> None:
        """End what runs still. The segments are removed by the fixture that made the engine's name."""
        super().close()
        self.table.close()


class Client(WSListener):
    """A WebSocket client; `messages` are what it got, decoded, in order."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.gone = False
        self.transport: WSTransport | None = None

    @classmethod
    async def connect(cls, url: str, headers: dict[str, str] | None = None) -> Client:
        """Connect; raises what picows raises."""
        _, client = await ws_connect(cls, url, extra_headers=headers, websocket_handshake_timeout=DEADLINE_S)
        assert isinstance(client, cls)
        return client

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self.messages.append(json.loads(frame.get_payload_as_bytes()))
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = WSCloseCode(frame.get_close_code()).value
            transport.send_close(WSCloseCode(self.close_code))
            transport.disconnect()

    def on_ws_disconnected(self, _: WSTransport) -> None:
        self.gone = True

    def say(self, text: str | bytes) -> None:
        """Send a text message as it is."""
        assert self.transport is not None
        self.transport.send(WSMsgType.TEXT, text.encode() if isinstance(text, str) else text)

    def ask(self, kind: str, **fields: object) -> None:
        """Send a request."""
        self.say(json.dumps({"type": kind, **fields}))

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Messages of one type so far."""
        return [message for message in self.messages if message["type"] == kind]

    async def answer(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`-th message of a type."""
        await until(lambda: len(self.of_type(kind)) >= count or self.gone, f"{kind}; so far {self.messages[:5]}")
        assert len(self.of_type(kind)) >= count, f"the connection ended: {self.close_code}"
        return self.of_type(kind)[count - 1]

    def sequences(self) -> list[int]:
        """Sequences of the live data messages, in the order they came."""
        return [m["data"]["sequence"] for m in self.of_type("data") if not m.get("snapshot")]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait in the loop until `condition()` is true; fails the test after a generous deadline."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"did not happen within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.002)
