"""What is kept in the data folder is there for the next engine, or the error says what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from engine.errors import ConfigError, StoreError
from engine.store import FILE, Store, StoredFeed, StoredSubscription


def feed(number: int, **changes: object) -> StoredFeed:
    fields = {"symbol": "TSLA", "data_source": "mock", "options": {"rate": 5}, **changes}
    return StoredFeed(feed_id=f"feed_tsla_{number:03d}", number=1000 + number, **fields)  # type: ignore[arg-type]


def test_feeds_come_back_in_order_with_their_last_settings(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder")
    for number in (2, 1, 3):
        store.put_feed(feed(number))
    store.put_feed(feed(2, paused=True, data_types=("trade",)))
    store.delete_feed("feed_tsla_001")
    store.delete_feed("feed_nobody_001")
    store.close()
    again = Store(tmp_path / "deep" / "folder")
    assert again.feeds() == [feed(2, paused=True, data_types=("trade",)), feed(3)]
    again.close()


def test_reading_makes_no_file(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").feeds() == []
    assert not (tmp_path / "none").exists()


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="data_dir"):
        Store(tmp_path / "file" / "below").put_feed(feed(1))


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 50, b""])
def test_a_damaged_file_is_named_or_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    store = Store(tmp_path)
    if content:
        with pytest.raises(ConfigError, match="move it away"):
            store.feeds()
    else:
        assert store.feeds() == []
    store.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="version 99"):
        Store(tmp_path).feeds()


def subscription(number: int, **changes: object) -> StoredSubscription:
    fields = {"symbols": ("AAPL", "B*"), "callback_url": "http://x/", "secret": "s" * 16, **changes}
    return StoredSubscription(
        subscription_id=f"sub_{number}",
        key=number,
        created_ns=number,
        **fields,  # type: ignore[arg-type]
    )


def test_subscriptions_come_back_in_order_with_their_last_settings(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_subscriptions([subscription(2), subscription(1)])
    store.put_subscriptions([subscription(3)])
    store.put_subscriptions([subscription(2, priority="high", is_active=False)])
    store.delete_subscription("sub_1")
    store.close()
    again = Store(tmp_path)
    assert again.subscriptions() == [subscription(2, priority="high", is_active=False), subscription(3)]
    assert again.feeds() == []
    again.close()


def test_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    (tmp_path / FILE).touch(0o644)
    store = Store(tmp_path)
    store.put_subscriptions([subscription(1)])
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    store.close()


def test_a_file_of_version_1_keeps_its_feeds_and_takes_subscriptions(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE feeds (feed_id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT")
        connection.execute("INSERT INTO feeds VALUES (?, ?)", ("feed_tsla_001", msgspec.json.encode(feed(1))))
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = Store(tmp_path)
    assert store.feeds() == [feed(1)]
    assert store.subscriptions() == []
    store.put_subscriptions([subscription(1)])
    store.close()
    again = Store(tmp_path)
    assert (again.feeds(), again.subscriptions()) == ([feed(1)], [subscription(1)])
    again.close()
