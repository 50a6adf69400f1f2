"""The shortest way to the plainest question: GET /data/SYMBOL from L1, in front of the application.

    GET /data/SYMBOL            with no parameter but `limit` and `data_type`, if L1 may answer alone
    POST /symbols/SYMBOL/snapshot    without a body, if L1 has one

are answered here, with the bytes and headers that the routes of engine/http.py would answer with; routing, parsing and
checking by Litestar take several times as long as the answer itself. Everything else, whatever is odd or refused
included, goes on to the application, which knows all the rules. So an answer never depends on which way it took.

Made and called by engine/control.py; counts requests and asks the gate as the application does for its own.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from engine.access import Denial, Gate
from engine.http_data import JSON, data_headers, json_body, kind_of
from engine.l1 import Wanted
from engine.observer import Observer
from engine.replies import snapshot_body
from shm.errors import ShmError
from shm.layout import TYPE_NAMES

PASSED: Final = "tickengine.passed"  # in the scope: counted, and the gate's verdict (None = it may pass)

_PATH: Final = re.compile(r"/data/([^/]{1,32})|/symbols/([^/]{1,32})/snapshot")
_QUERY: Final = re.compile(rb"(?:limit=([1-9]\d{0,4}))?(?:&?data_type=([a-z0-9]{3,6}))?")
_DATA_TYPES: Final = frozenset({"all", *TYPE_NAMES[1:-1]})
_LIMIT: Final = 100  # what is asked for by leaving it out
_MOST: Final = 500  # more are worded piece by piece, by the route


class Front:
    """An ASGI application in front of the one with the routes."""

    def __init__(self, app: Any, observer: Observer, gate: Gate) -> None:
        """`gate` is asked once a request, here; `app` finds the verdict under PASSED."""
        self._app = app
        self._observer = observer
        self._gate = gate
        self._requests = observer.supervisor.own.counter("http_requests")
        self._most = min(_MOST, observer.config.http.max_data_records)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._requests.add()
        denial = verdict(self._gate, scope)
        match = _PATH.fullmatch(scope["path"]) if denial is None else None
        if match is not None:
            found = self._data(scope, match[1]) if match[1] is not None else self._snapshot(scope, match[2])
            if found is not None:
                body, headers = found
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self._app({**scope, PASSED: denial}, receive, send)

    def _data(self, scope: Any, symbol: str) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
        query = _QUERY.fullmatch(scope["query_string"])
        if scope["method"] != "GET" or query is None or scope["query_string"].startswith(b"&"):
            return None
        data_type = query[2].decode() if query[2] is not None else "all"
        limit = int(query[1]) if query[1] is not None else _LIMIT
        if data_type not in _DATA_TYPES or limit > self._most:
            return None
        try:
            answer = self._observer.tiers.from_l1(symbol, Wanted(kind_of(data_type), None, None, None, limit))
        except ShmError:
            return None
        if answer is None:
            return None
        extra = [(name.lower().encode(), value.encode()) for name, value in data_headers(answer).items()]
        return _json(json_body(symbol, data_type, answer, self._observer.source_names), extra)

    def _snapshot(self, scope: Any, symbol: str) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
        if scope["method"] != "POST" or scope["query_string"] or _has_body(scope["headers"]):
            return None
        instrument_id = self._observer.segments.instruments.find(symbol)
        if instrument_id is None:
            return None
        try:
            found = self._observer.latest().snapshot(instrument_id)
        except ShmError:
            return None
        if found is None:
            return None
        self._observer.tiers.count_snapshot(True)
        return _json(snapshot_body(symbol, found, time.time_ns()), [])


def verdict(gate: Gate, scope: Any) -> Denial | None:
    """What the gate says to a request."""
    authorization, host = None, ""
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
    return gate.denial(
        scope["method"],
        scope["path"],
        authorization=authorization,
        peer=scope["client"][0] if scope["client"] else "",
        host=host,
        now_s=time.monotonic(),
    )


def _has_body(headers: Any) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def _json(body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    length = (b"content-length", str(len(body)).encode())
    return body, [*headers, (b"content-type", JSON.encode()), length]
