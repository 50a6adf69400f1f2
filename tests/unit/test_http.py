"""Access rules of the HTTP interface, and records in the words of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.access import REQUESTS_BURST, REQUESTS_PER_SECOND, Gate, read_token
from engine.config import load
from engine.errors import ConfigError
from engine.replies import points
from shm.layout import Flag, RecordType, Side, Source, empty
from shm.message import news_pieces

TOKEN = "0123456789abcdef-token"


def test_on_loopback_reading_is_open() -> None:
    gate = Gate(TOKEN, loopback=True, now_s=0.0)
    assert gate.allows("/metrics", None)


@pytest.mark.parametrize(
    ("path", "authorization", "allowed"),
    [
        ("/metrics", None, False),
        ("/metrics", "Bearer wrong-token-of-some-length", False),
        ("/metrics", f"Basic {TOKEN}", False),
        ("/metrics", "Bearer", False),
        ("/metrics", "Bearer ä", False),
        ("/metrics", f"Bearer {TOKEN}", True),
        ("/metrics", f"bearer  {TOKEN} ", True),
        ("/live", None, True),
        ("/ready", None, True),
        ("/", None, True),
        ("/schema/openapi.json", None, False),
    ],
)
def test_beyond_loopback_the_token_is_needed(path: str, authorization: str | None, allowed: bool) -> None:
    assert Gate(TOKEN, loopback=False, now_s=0.0).allows(path, authorization) is allowed


def test_requests_are_bounded_and_come_back_with_time() -> None:
    gate = Gate("", loopback=True, now_s=0.0)
    taken = sum(gate.takes(0.0) for _ in range(int(REQUESTS_BURST) + 50))
    assert taken == REQUESTS_BURST
    assert not gate.takes(0.5 / REQUESTS_PER_SECOND)
    assert gate.takes(2.0 / REQUESTS_PER_SECOND)


def test_the_token_comes_from_file_credential_or_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-file\n")
    (tmp_path / "http_token").write_text(f"{TOKEN}-credential\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TICKENGINE_HTTP_TOKEN": f"{TOKEN}-environment"}
    with_file = load(None, {}, {"http.token_file": str(file)})
    assert read_token(with_file, env) == f"{TOKEN}-file"
    assert read_token(load(None, {}), env) == f"{TOKEN}-credential"
    assert read_token(load(None, {}), {"TICKENGINE_HTTP_TOKEN": f"{TOKEN}-environment"}) == f"{TOKEN}-environment"
    assert read_token(load(None, {}), {}) == ""


def test_beyond_loopback_without_a_token_is_refused_and_no_error_shows_a_token(tmp_path: Path) -> None:
    beyond = load(None, {}, {"http.host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="bearer token is needed"):
        read_token(beyond, {})
    with pytest.raises(ConfigError) as error:
        read_token(beyond, {"TICKENGINE_HTTP_TOKEN": "short-secret"})
    assert "short-secret" not in str(error.value)
    with pytest.raises(ConfigError, match="nowhere"):
        read_token(load(None, {}, {"http.token_file": str(tmp_path / "nowhere")}), {})


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
