"""A data vendor for tests: an HTTP server on loopback that answers as told, with captured bodies, and misbehaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.venue_server import Act, Ready, VenueServer, no_answer


@dataclass
class Reply:
    """How one GET is answered.

    Attributes:
        cut: so many bytes of the body are sent, then the connection is broken off; -1 = all.
        stall: nothing is sent until the server ends.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = -1
    stall: bool = False


class VendorServer(VenueServer):
    """`script` has the answers for each symbol in order, the last one for all that follow; `asked` what was asked."""

    def __init__(self, script: dict[str, list[Reply]], *, acts: list[Act] | None = None, ready: Ready | None = None):
        """`acts`, `ready`: of the WebSocket, for a vendor that has one."""
        super().__init__(acts or [], answer=no_answer, ready=ready or (lambda _: True))
        self.script = script
        self.asked: list[dict[str, str]] = []
        self.counts: dict[str, int] = defaultdict(int)  # requests by symbol
        self._asking = threading.Lock()

    @property
    def base(self) -> str:
        """What `url` of a feed's options is."""
        return f"http://127.0.0.1:{self.port}"

    def add_routes(self, app: web.Application) -> None:
        """Every path."""
        app.router.add_get("/v8/finance/chart/{symbol}", self._reply)
        app.router.add_get("/{path:.*}", self._reply)

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        symbol = request.match_info.get("symbol") or query.get("series_id") or query.get("symbol")
        symbol = symbol or f"{query.get('from_currency')}/{query.get('to_currency')}"
        with self._asking:
            self.asked.append({**query, "symbol": symbol, "path": request.path})
            script = self.script.get(symbol, [Reply(status=404)])
            reply = script[min(self.counts[symbol], len(script) - 1)]
            self.counts[symbol] += 1
        if reply.stall:
            await self._stop.wait()
        if reply.cut < 0:
            return web.Response(
                body=reply.body, status=reply.status, headers=reply.headers, content_type="application/json"
            )
        response = web.StreamResponse(status=reply.status, headers={"Content-Length": str(len(reply.body))})
        await response.prepare(request)
        await response.write(reply.body[: reply.cut])
        await asyncio.sleep(0)
        assert request.transport is not None
        request.transport.abort()
        return response


# -- bodies


def fred_rows(samples: Path) -> list[dict[str, str]]:
    """790 monthly observations, as captured."""
    text = (samples / "vendor/fred/vignettes_fredr_observations-004a37.json").read_text()
    rows: list[dict[str, str]] = json.loads(text)["observations"]
    return rows


def fred_body(rows: list[dict[str, str]], *, count: int | None = None) -> bytes:
    """An answer of fred/series/observations."""
    return json.dumps({"count": len(rows) if count is None else count, "observations": rows}).encode()


def fred_row(date: str, value: str, vintage: str = "2020-05-20") -> dict[str, str]:
    """One observation."""
    return {"realtime_start": vintage, "realtime_end": "9999-12-31", "date": date, "value": value}


def fred_error(text: str) -> bytes:
    """What FRED says with HTTP 400."""
    return json.dumps({"error_code": 400, "error_message": text}).encode()


def av_series(bars: dict[str, float], interval: str = "1min", zone: str = "US/Eastern") -> bytes:
    """A time series of bars that are flat: time -> price."""
    series = {
        at: {
            "1. open": str(price),
            "2. high": str(price),
            "3. low": str(price),
            "4. close": str(price),
            "5. volume": "100",
        }
        for at, price in bars.items()
    }
    return json.dumps({"Meta Data": {"6. Time Zone": zone}, f"Time Series ({interval})": series}).encode()


def av_quote(symbol: str, day: str, price: str, volume: str = "1000") -> bytes:
    """A Global Quote."""
    quote = {
        "01. symbol": symbol,
        "05. price": price,
        "06. volume": volume,
        "07. latest trading day": day,
    }
    return json.dumps({"Global Quote": quote}).encode()


def yahoo_chart(samples: Path) -> dict[str, Any]:
    """The captured chart."""
    captured: dict[str, Any] = json.loads((samples / "vendor/yahoo/chart-AAPL.json").read_text())
    body: dict[str, Any] = captured["response"]["bodyJson"]
    return body


def yahoo_frames(samples: Path) -> list[bytes]:
    """The captured messages of the stream."""
    lines = (samples / "vendor/yahoo/streamer-frames.txt").read_bytes().splitlines()
    return [line for line in lines if line and not line.startswith(b"#")]
