"""Access rules of the HTTP interface, and records in the words of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.access import Gate, parse_tokens, read_tokens
from engine.config import load
from engine.errors import ConfigError
from engine.replies import points
from shm.layout import Flag, RecordType, Side, Source, empty
from shm.message import news_pieces

TOKEN = "0123456789abcdef-token"


def gate(text: str = "", *, loopback: bool = True, rate: float = 500.0) -> Gate:
    """A gate with the tokens of a token file."""
    return Gate(parse_tokens(text, "test"), loopback=loopback, requests_per_second=rate)


def status(
    gate: Gate,
    method: str,
    path: str,
    authorization: str | None = None,
    *,
    peer: str = "127.0.0.1",
    host: str = "127.0.0.1:8800",
    now_s: float = 0.0,
) -> int:
    """What a request is answered with; 0 = it is served."""
    denial = gate.denial(method, path, authorization=authorization, peer=peer, host=host, now_s=now_s)
    return denial.status if denial is not None else 0


def test_on_loopback_reading_is_open() -> None:
    assert status(gate(TOKEN), "GET", "/metrics") == 0
    assert status(gate(TOKEN), "POST", "/symbols/AAPL/snapshot") == 0


@pytest.mark.parametrize(
    ("path", "authorization", "answer"),
    [
        ("/metrics", None, 401),
        ("/metrics", "Bearer wrong-token-of-some-length", 401),
        ("/metrics", f"Basic {TOKEN}", 401),
        ("/metrics", "Bearer", 401),
        ("/metrics", "Bearer ä", 401),
        ("/metrics", f"Bearer {TOKEN}", 0),
        ("/metrics", f"bearer  {TOKEN} ", 0),
        ("/live", None, 0),
        ("/ready", None, 0),
        ("/", None, 0),
        ("/schema/openapi.json", None, 401),
    ],
)
def test_beyond_loopback_a_token_is_needed(path: str, authorization: str | None, answer: int) -> None:
    assert status(gate(TOKEN, loopback=False), "GET", path, authorization) == answer


@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize(("method", "path"), [("POST", "/data/ingest"), ("PATCH", "/feeds/x"), ("DELETE", "/feeds/x")])
def test_what_changes_state_needs_a_token_of_scope_write(loopback: bool, method: str, path: str) -> None:
    reader, writer = "read-0123456789abcdef", "write-0123456789abcdef"
    guarded = gate(f"# holders\n\nread {reader} grafana\nwrite {writer}\n", loopback=loopback)
    assert status(guarded, method, path) == 401
    assert status(guarded, method, path, f"Bearer {reader}") == 403
    assert status(guarded, method, path, f"Bearer {writer}") == 0
    assert status(guarded, "GET", "/metrics", f"Bearer {reader}") == 0


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1:8800", 0), ("localhost:8800", 0), ("[::1]:8800", 0), ("evil.example:8800", 403), ("", 403)],
)
def test_without_tokens_a_write_must_be_addressed_to_loopback(host: str, answer: int) -> None:
    assert status(gate(), "POST", "/data/ingest", host=host) == answer
    assert status(gate(), "GET", "/metrics", host=host) == 0


def test_each_client_has_a_bucket_of_its_own_that_fills_with_time() -> None:
    limited = gate(rate=10)
    taken = [status(limited, "GET", "/live", peer="10.0.0.1") for _ in range(30)]
    assert taken == [0] * 20 + [429] * 10
    assert status(limited, "GET", "/live", peer="10.0.0.2") == 0
    denial = limited.denial("GET", "/live", authorization=None, peer="10.0.0.1", host="", now_s=0.0)
    assert denial is not None
    assert int(denial.headers["Retry-After"]) >= 1
    assert status(limited, "GET", "/live", peer="10.0.0.1", now_s=0.2) == 0


def test_the_tokens_come_from_file_credential_or_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-file\nread {TOKEN}-second dashboard\n")
    (tmp_path / "http_token").write_text(f"{TOKEN}-credential\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TICKENGINE_HTTP_TOKEN": f"{TOKEN}-environment"}
    first, second = read_tokens(load(None, {}, {"http.token_file": str(file)}), env)
    assert (first.secret, first.writes, first.name) == (f"{TOKEN}-file".encode(), True, "token-1")
    assert (second.secret, second.writes, second.name) == (f"{TOKEN}-second".encode(), False, "dashboard")
    assert [token.secret for token in read_tokens(load(None, {}), env)] == [f"{TOKEN}-credential".encode()]
    only = read_tokens(load(None, {}), {"TICKENGINE_HTTP_TOKEN": f"{TOKEN}-environment"})
    assert [token.secret for token in only] == [f"{TOKEN}-environment".encode()]
    assert read_tokens(load(None, {}), {}) == ()


def test_beyond_loopback_without_a_token_is_refused_and_no_error_shows_a_token(tmp_path: Path) -> None:
    beyond = load(None, {}, {"http.host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="bearer token is needed"):
        read_tokens(beyond, {})
    for text in ("short-secret", "read short-secret", f"admin {TOKEN}", f"write {TOKEN} two words"):
        with pytest.raises(ConfigError, match="line 1") as error:
            read_tokens(beyond, {"TICKENGINE_HTTP_TOKEN": text})
        assert "short-secret" not in str(error.value)
        assert TOKEN not in str(error.value)
    with pytest.raises(ConfigError, match="nowhere"):
        read_tokens(load(None, {}, {"http.token_file": str(tmp_path / "nowhere")}), {})
    assert TOKEN not in repr(parse_tokens(TOKEN, "test"))


def test_a_trade_is_told_in_the_fields_of_the_interface() -> None:
    record = empty(1)
    record["record_type"], record["source"], record["side"] = RecordType.TRADE, Source.MOCK, Side.BUY
    record["ts_event"], record["ts_receive"] = 1_700_000_000_000_001_000, 1_700_000_000_002_501_000
    record["price"], record["size"], record["trade_id"], record["venue"] = 10.5, 3.0, 77, b"XNAS"
    record["sequence"], record["flags"] = 9, Flag.LATE | Flag.OUTLIER
    (point,) = points(record.tobytes(), "AAPL")
    assert point.timestamp == "2023-11-14T22:13:20.000001Z"
    assert (point.data_type, point.source, point.sequence, point.latency_ms) == ("trade", "mock", 9, 2.5)
    assert point.data == {"price": 10.5, "size": 3.0, "exchange": "XNAS", "trade_id": 77, "side": "buy"}
    assert point.flags == ["OUTLIER", "LATE"]


def test_the_pieces_of_one_news_item_are_one_point() -> None:
    text = "A headline that is certainly longer than the sixty-four bytes of one record's body"
    pieces = news_pieces(text, body="first\nsecond", url="https://example.org/x")
    records = empty(len(pieces) + 1)
    records["record_type"] = RecordType.NEWS
    for at, piece in enumerate(pieces):
        records["headline"][at] = piece
        records["flags"][at] = Flag.CONTINUES if at + 1 < len(pieces) else 0
    records["headline"][len(pieces)] = b"another"
    found = points(records.tobytes(), "AAPL")
    assert [point.data["headline"] for point in found] == [text, "another"]
    assert found[0].data["body"] == "first\nsecond"
    assert found[0].data["url"] == "https://example.org/x"
