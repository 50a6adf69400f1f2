"""A TWS for tests: a server on loopback that speaks TWS's wire protocol and misbehaves as told.

The protocol: the client sends "API", NUL, and its range of versions; the server answers with its version and its time.
From then on every message is a length of 4 bytes, big-endian, and fields that each end with NUL. Fields are as of
server version 176 (TWS API, EDecoder and EClient).
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

DEADLINE_S = 60
VERSION = 176

Fields = list[str]

MKT_DATA, CANCEL_MKT_DATA, CONTRACT, DEPTH, CANCEL_DEPTH, BULLETINS = 1, 2, 9, 10, 11, 12
HISTORICAL, CANCEL_HISTORICAL, CURRENT_TIME, BARS, MARKET_DATA_TYPE, START_API = 20, 25, 49, 50, 59, 71
BY_TICK, CANCEL_BY_TICK = 97, 98
DATA_REQUESTS = (MKT_DATA, DEPTH, HISTORICAL, BARS, BY_TICK)
# Where the number of the request stands in each kind.
_NUMBER_AT = {MKT_DATA: 2, CONTRACT: 2, DEPTH: 2, HISTORICAL: 1, BARS: 2, BY_TICK: 1}
# Where the contract's twelve fields begin.
_CONTRACT_AT = {MKT_DATA: 3, CONTRACT: 3, DEPTH: 3, HISTORICAL: 2, BARS: 3, BY_TICK: 2}


def packed(*fields: object) -> bytes:
    """A message as it goes over the wire."""
    body = b"".join(str(one).encode() + b"\0" for one in fields)
    return struct.pack(">I", len(body)) + body


def error(request: int | str, code: int, text: str) -> bytes:
    """What TWS says in numbers."""
    return packed(4, 2, request, code, text, "")


def captured(row: str, request: int | str) -> bytes:
    """A captured row (NUL shown as a bar) as the answer to another request; its kind says where the number stands."""
    fields = row.split("|")[:-1]
    fields[2 if fields[0] == "50" else 1] = str(request)
    return packed(*fields)


@dataclass(frozen=True)
class Asked:
    """A request of a client, with what it names."""

    kind: int
    number: int
    fields: Fields

    @property
    def con_id(self) -> str:
        """IBKR's number of the contract."""
        return self.fields[_CONTRACT_AT[self.kind]]

    @property
    def name(self) -> str:
        """The contract's symbol, or its local symbol where that says it."""
        at = _CONTRACT_AT[self.kind]
        return self.fields[at + 1] or self.fields[at + 10]


def contract_row(symbol: str, con_id: int, **fields: str) -> Fields:
    """Contract details but for their number: a stock, unless told otherwise."""
    told = {
        "secType": "STK",
        "expiry": "",
        "exchange": "SMART",
        "currency": "USD",
        "local": symbol,
        "tradingClass": symbol,
        "multiplier": "",
        "primary": "NASDAQ",
        "zone": "US/Eastern",
        "hours": "",
        **fields,
    }
    return [
        *(symbol, told["secType"], told["expiry"], "0", "", told["exchange"], told["currency"], told["local"], "X"),
        *(told["tradingClass"], str(con_id), "0.01", told["multiplier"], "LMT", "SMART", "1", "0", "NAME"),
        *(told["primary"], "", "", "", "", told["zone"], told["hours"], told["hours"], "", "", "0"),
        *("1", "", "", "26", "", "COMMON", "1", "1", "100"),
    ]


Answer = Callable[[Asked], Iterable[bytes]]


def nothing(_: Asked) -> Iterable[bytes]:
    """The test sends data itself."""
    return ()


@dataclass
class Act:
    """How one connection is treated: the n-th act for the n-th one, the last act for all that follow.

    Attributes:
        answer: what is sent for a request for data.
        greeting: instead of the answer to the handshake.
        refusal: what is sent instead of accounts and order number; then the connection is closed.
        clocks: whether the time is told when asked for; a TWS that hangs does not.
        looks_up: whether contract details are answered.
        notes: what is said once the client is logged in.
    """

    answer: Answer = nothing
    greeting: bytes | None = None
    refusal: bytes | None = None
    clocks: bool = True
    looks_up: bool = True
    hangs: bool = False  # takes the connection and says nothing at all
    mute: tuple[str, ...] = ()  # symbols whose contract details are not answered
    logs_in: bool = True  # accounts and order number are sent
    version: int = VERSION
    notes: list[bytes] = field(default_factory=lambda: [error(-1, 2104, "Market data farm connection is OK:usfarm")])


class TwsServer:
    """Use as a context manager.

    `asked` has each connection's requests; `contracts` symbol -> rows of contract details; others are error 200.
    """

    def __init__(self, acts: list[Act], contracts: dict[str, list[Fields]], *, port: int = 0) -> None:
        """Listens on a free port, unless told which."""
        self.acts = acts
        self.contracts = contracts
        self.asked: list[list[Asked]] = []
        self.client_ids: list[str] = []
        self.client_versions: list[str] = []
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> TwsServer:
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As when TWS is killed: the port is closed, and every connection broken off. Safe to call twice."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE_S)

    def push(self, *messages: bytes, connection: int = -1) -> None:
        """Send bytes, whole messages or not, one write each."""
        self._loop.call_soon_threadsafe(self._write, connection, messages)

    def abort(self, connection: int = -1) -> None:
        """Break a connection off."""
        self._loop.call_soon_threadsafe(self._writers[connection].transport.abort)

    def find(self, kind: int, name: str = "", connection: int = -1) -> Asked | None:
        """The last request of a kind, for a contract by symbol or number, on a connection."""
        if not self.asked or connection >= len(self.asked):
            return None
        for one in reversed(self.asked[connection]):
            if one.kind == kind and (not name or name in (one.name, one.con_id)):
                return one
        return None

    def _write(self, connection: int, messages: Iterable[bytes]) -> None:
        writer = self._writers[connection]
        if not writer.is_closing():
            for message in messages:
                writer.write(message)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        act = self.acts[min(len(self.asked), len(self.acts) - 1)]
        asked: list[Asked] = []
        self.asked.append(asked)
        self._writers.append(writer)
        try:
            await self._talk(act, asked, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server stops
        finally:
            writer.close()

    async def _talk(
        self, act: Act, asked: list[Asked], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if act.hangs:
            await reader.read()
            return
        assert await reader.readexactly(4) == b"API\0"
        self.client_versions.append((await self._message(reader)).decode())
        if act.greeting is not None:
            writer.write(act.greeting)
            await reader.read()
            return
        writer.write(packed(act.version, "20240701 09:30:00 EST"))
        while True:
            fields = (await self._message(reader)).decode().split("\0")[:-1]
            kind = int(fields[0])
            if kind == START_API:
                self.client_ids.append(fields[2])
                if act.refusal is not None:
                    writer.write(act.refusal)
                    await writer.drain()
                    return
                if act.logs_in:
                    for message in (packed(15, 1, "DU1234567"), packed(9, 1, 1), *act.notes):
                        writer.write(message)
                continue
            number = int(fields[_NUMBER_AT[kind]]) if kind in _NUMBER_AT else -1
            one = Asked(kind, number, fields)
            asked.append(one)
            if kind == CURRENT_TIME and act.clocks:
                writer.write(packed(49, 1, int(time.time())))
            elif kind == CONTRACT and act.looks_up and one.name not in act.mute:
                rows = self.contracts.get(one.name) or self.contracts.get(one.con_id)
                if rows is None:
                    text = "No security definition has been found for the request"
                    writer.write(error(number, 200, text))
                else:
                    writer.write(b"".join(packed(10, number, *row) for row in rows) + packed(52, 1, number))
            elif kind in DATA_REQUESTS:
                for message in act.answer(one):
                    writer.write(message)

    async def _message(self, reader: asyncio.StreamReader) -> bytes:
        (size,) = struct.unpack(">I", await reader.readexactly(4))
        return await reader.readexactly(size)
