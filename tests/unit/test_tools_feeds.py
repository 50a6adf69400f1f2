"""`tickengine feeds` without an engine: options as they are typed, the table, refusals in the engine's words."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tools.feeds import FeedsError, ask, options_of, table

FEED: dict[str, Any] = {
    "feed_id": "feed_btcusdt_001",
    "state": "failed",
    "health_score": 0.0,
    "rate": 1234.0,
    "message_count": 5000,
    "age_seconds": 61.0,
    "silent_symbols": 2,
    "gap_count": 1,
    "error_count": 0,
    "latency_ms": 12.345,
    "data_source": "websocket",
    "why": "refused",
    "retry_at": "2026-01-01T00:01:00.000000Z",
}


def test_options_are_json_or_text() -> None:
    given = ["venue=binance", "depth=10", "tls_verify=false", 'rename={"A":"B"}', "url=ws://x/?a=b"]
    assert options_of(given) == {
        "venue": "binance",
        "depth": 10,
        "tls_verify": False,
        "rename": {"A": "B"},
        "url": "ws://x/?a=b",
    }
    with pytest.raises(FeedsError, match="expected KEY=VALUE"):
        options_of(["venue"])


def test_the_table_gives_reasons_only_where_there_is_something_to_say() -> None:
    fine = {**FEED, "feed_id": "x", "state": "active", "why": "delivers", "retry_at": None, "latency_ms": None}
    lines = table([FEED, fine], 1767225630.0).splitlines()
    assert [line.split()[0] for line in lines] == ["FEED", "feed_btcusdt_001", "refused;", "x"]
    assert lines[2] == "    refused; next try in 30 s"
    assert lines[1].split()[1:4] == ["failed", "0.00", "1234/s"]
    assert table([], 0.0) == "no feed"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "- -"),
        ({"group": "g", "rank": 1, "role": "standby"}, "g/1 standby"),
        ({"group": "g", "rank": 0, "role": "active", "silent_here": ["A", "B"]}, "g/0 active but for A, B"),
        ({"group": "g", "rank": 1, "role": "standby", "publishes_alone": ["A"]}, "g/1 standby, publishes A"),
    ],
)
def test_the_table_shows_who_publishes_in_a_group(told: dict[str, Any], words: str) -> None:
    line = table([{**FEED, **told}], 0.0).splitlines()[1]
    assert " ".join(line.split()).endswith(f"websocket {words}")


def test_a_refusal_is_told_in_the_engines_words() -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"title":"Unprocessable","detail":"options.venue is wrong"}'
            self.send_response(422)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(FeedsError, match=r"options.venue is wrong \(HTTP 422\)"):
            ask(url, "GET", "/feeds")
        thread.join()
    with pytest.raises(FeedsError, match="does not answer"):
        ask(url, "GET", "/feeds")
