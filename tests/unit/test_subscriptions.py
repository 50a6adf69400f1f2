"""The book of subscriptions: changed whole or not at all, with a real store and a real secret file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import load
from engine.errors import (
    ConfigError,
    SubscriptionConflict,
    SubscriptionError,
    SubscriptionRefused,
    SubscriptionUnavailable,
)
from engine.http_subscriptions import changed, failure_words, state_word
from engine.settings import Config
from engine.store import Store, StoredSubscription
from engine.subscription_bodies import ChangeSubscription
from engine.subscriptions import Subscriptions, specs, topics_of
from engine.webhook_secret import FILE, VARIABLE, WebhookSecret
from shm.ledger import DeliveryState, Failure
from workers.spec import AnyReply, Command, Done, Refused, SetSubscriptions, SubscriptionSpec


class Worker:
    """What supervisor and worker were told; the next answers to commands can be set."""

    def __init__(self) -> None:
        self.plan: tuple[SubscriptionSpec, ...] = ()
        self.serves: dict[int, SubscriptionSpec] = {}
        self.answers: list[AnyReply] = []

    def set_subscriptions(self, label: str, subscriptions: tuple[SubscriptionSpec, ...]) -> None:
        assert label == "webhooks"
        self.plan = subscriptions

    async def ask(self, label: str, command: Command, timeout_s: float = 2.0) -> AnyReply:
        assert label == "webhooks"
        assert timeout_s > 0
        assert isinstance(command, SetSubscriptions)
        answer = self.answers.pop(0) if self.answers else Done()
        if isinstance(answer, Done):
            self.serves |= {spec.key: spec for spec in command.subscriptions}
            for key in command.removed:
                self.serves.pop(key, None)
        return answer


class Stage:
    """A book with what belongs to it."""

    def __init__(self, folder: Path, *, enabled: bool = True, **options: Any) -> None:
        self.worker = Worker()
        self.store = Store(folder)
        secret = WebhookSecret(Config(), {}, folder)
        self.book = Subscriptions(
            self.store.subscriptions(),
            self.store,
            secret,
            folder / "ledger",
            max_subscriptions=options.get("max_subscriptions", 10),
            workers=self.worker if enabled else None,
        )
        self.book.connect(self.worker)

    def create(self, *wanted: StoredSubscription) -> list[StoredSubscription]:
        return asyncio.run(self.book.create(list(wanted)))

    def change(self, before: StoredSubscription, **fields: Any) -> StoredSubscription:
        after = changed(before, ChangeSubscription(**fields))
        asyncio.run(self.book.change(before, after))
        return after

    def agrees(self) -> None:
        """Plan, worker and store know of the same ones."""
        kept = self.store.subscriptions()
        assert kept == list(self.book.entries.values())
        expected = [item.key for item in kept if item.callback_url]
        assert [spec.key for spec in self.worker.plan] == expected
        assert sorted(self.worker.serves) == sorted(expected)


def wanted(**fields: Any) -> StoredSubscription:
    chosen = {"symbols": ("AAPL",), "callback_url": "http://x.example/", **fields}
    return StoredSubscription(subscription_id="", key=0, created_ns=1, **chosen)


def test_what_is_made_is_planned_served_and_kept(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    first, second = stage.create(wanted(), wanted(callback_url="", symbols=("B*",)))
    assert first.subscription_id != second.subscription_id
    assert first.key < second.key
    stage.agrees()
    assert len(stage.worker.serves) == 1
    assert stage.book.active == 2
    again = Stage(tmp_path)
    assert list(again.book.entries.values()) == [first, second]
    (third,) = again.create(wanted())
    assert third.key > second.key


def test_topics_are_those_that_other_clients_subscribe_to() -> None:
    assert topics_of(wanted(symbols=("A", "B*"), data_types=("trade",))) == (
        "marketdata.trade.A",
        "marketdata.trade.B*",
    )
    assert topics_of(wanted(symbols=("*",))) == ("marketdata.*.*",)


@pytest.mark.parametrize("symbols", [("A B",), ("*A",), ("A*B",), ("**",), ("x" * 33,), ("",)])
def test_symbols_that_can_not_be_are_named(tmp_path: Path, symbols: tuple[str, ...]) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(SubscriptionRefused, match=r"^symbols\[0\]: "):
        stage.create(wanted(symbols=symbols))
    with pytest.raises(SubscriptionRefused, match=r"^\[1\]\.symbols\[1\]: "):
        stage.create(wanted(), wanted(symbols=("A", *symbols)))
    assert not stage.book.entries


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Refused(error="callback_url: no", settings=True, index=0), SubscriptionRefused, r"^\[1\]\.callback_url: no"),
        (Refused(error="worker webhooks is not connected"), SubscriptionUnavailable, "not connected"),
    ],
)
def test_a_worker_that_refuses_leaves_everything_as_it_was(
    tmp_path: Path, answer: Refused, error: type[SubscriptionError], words: str
) -> None:
    stage = Stage(tmp_path)
    stage.create(wanted())
    stage.worker.answers = [answer]
    with pytest.raises(error, match=words):
        stage.create(wanted(callback_url=""), wanted())
    assert len(stage.book.entries) == 1
    stage.agrees()


def test_a_store_that_can_not_write_leaves_everything_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    stage = Stage(folder)
    (first,) = stage.create(wanted(secret="s" * 16))
    stage.store.close()
    (folder / "state.sqlite").unlink()
    for name in ("state.sqlite-wal", "state.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "state.sqlite").mkdir()
    with pytest.raises(SubscriptionUnavailable, match="data_dir"):
        stage.create(wanted(secret="s" * 16))
    with pytest.raises(SubscriptionUnavailable, match="data_dir"):
        stage.change(first, priority="low")
    assert list(stage.book.entries.values()) == [first]
    assert [spec.priority for spec in stage.worker.plan] == ["normal"]
    assert [spec.priority for spec in stage.worker.serves.values()] == ["normal"]


def test_a_change_reaches_plan_worker_and_store(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (item,) = stage.create(wanted(data_types=("trade",)))
    item = stage.change(item, add_symbols=["MSFT", "AAPL"], remove_symbols=["AAPL", "NONE"], add_data_types=["quote"])
    assert (item.symbols, item.data_types) == (("MSFT", "AAPL"), ("trade", "quote"))
    item = stage.change(item, is_active=False, priority="low")
    assert stage.worker.plan[0].paused
    assert stage.book.active == 0
    stage.agrees()
    item = stage.change(item, callback_url="")
    assert not stage.worker.plan
    stage.agrees()
    item = stage.change(item, callback_url="http://y.example/", is_active=True)
    stage.agrees()
    asyncio.run(stage.book.remove(item))
    stage.agrees()
    assert not stage.book.entries


def test_a_change_of_what_was_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (item,) = stage.create(wanted())
    stage.change(item, priority="low")
    with pytest.raises(SubscriptionConflict, match="meanwhile"):
        stage.change(item, priority="high")


def test_types_and_symbols_can_not_be_changed_away() -> None:
    everything = wanted()
    left = changed(everything, ChangeSubscription(remove_data_types=["news", "bar"]))
    assert left.data_types == ("tick", "quote", "trade", "level2", "status")
    assert changed(everything, ChangeSubscription(add_data_types=["news"])).data_types == (), "it had all already"
    with pytest.raises(SubscriptionRefused, match=r"^remove_data_types"):
        changed(wanted(data_types=("news",)), ChangeSubscription(remove_data_types=["news"]))
    with pytest.raises(SubscriptionRefused, match=r"^remove_symbols"):
        changed(everything, ChangeSubscription(remove_symbols=["AAPL"]))
    with pytest.raises(SubscriptionRefused, match=r"^add_symbols: there would be 257"):
        changed(everything, ChangeSubscription(add_symbols=[f"S{n}" for n in range(256)]))


def test_there_are_bounds(tmp_path: Path) -> None:
    stage = Stage(tmp_path, max_subscriptions=2)
    with pytest.raises(SubscriptionConflict, match="max_subscriptions"):
        stage.create(wanted(), wanted(), wanted())
    stage.create(wanted(), wanted())
    with pytest.raises(SubscriptionConflict, match="the most is 2"):
        stage.create(wanted())
    large = Stage(tmp_path / "large", max_subscriptions=1000)
    many = tuple(f"SYMBOL{n}" for n in range(256))
    with pytest.raises(SubscriptionConflict, match="topics"):
        large.create(*[wanted(symbols=many, data_types=("trade", "quote", "tick", "bar"))] * 100)
    assert not large.book.entries


def test_without_the_worker_only_callbacks_are_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, enabled=False)
    with pytest.raises(SubscriptionRefused, match="callback_url: webhooks are disabled"):
        stage.create(wanted())
    (item,) = stage.create(wanted(callback_url=""))
    with pytest.raises(SubscriptionRefused, match="callback_url: webhooks are disabled"):
        stage.change(item, callback_url="http://x.example/")


def test_deliveries_are_always_signed(tmp_path: Path) -> None:
    secret = WebhookSecret(Config(), {}, tmp_path)
    keyed = [msgspec.structs.replace(wanted(secret=given), key=key) for key, given in ((1, "o" * 16), (2, ""))]
    own, engines = specs(keyed, secret)
    assert own.secret == "o" * 16
    assert engines.secret == (tmp_path / FILE).read_text().strip() == WebhookSecret(Config(), {}, tmp_path).get()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert WebhookSecret(Config(), {VARIABLE: "e" * 16}, tmp_path).get() == "e" * 16


def test_the_secret_comes_from_file_credential_or_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("f" * 20 + "\n")
    (tmp_path / "webhook_secret").write_text("c" * 20)
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), VARIABLE: "e" * 20}
    config = load(None, {}, {"webhooks.secret_file": str(tmp_path / "file")})
    assert WebhookSecret(config, env, tmp_path).get() == "f" * 20
    assert WebhookSecret(Config(), env, tmp_path).get() == "c" * 20
    with pytest.raises(ConfigError, match=f"{VARIABLE}: the secret has 5"):
        WebhookSecret(Config(), {VARIABLE: "short"}, tmp_path)
    with pytest.raises(ConfigError, match="secret_file"):
        WebhookSecret(load(None, {}, {"webhooks.secret_file": str(tmp_path / "none")}), {}, tmp_path)


def test_states_and_failures_have_words() -> None:
    assert [state_word(wanted(), state) for state in DeliveryState] == ["delivering", "waiting", "parked", "delivering"]
    assert state_word(wanted(is_active=False), DeliveryState.PARKED) == "paused"
    assert state_word(wanted(callback_url=""), DeliveryState.DELIVERING) == "no callback"
    assert failure_words(307) == "answered 307; redirects are not followed"
    assert failure_words(500) == "answered 500"
    assert all(failure_words(failure) for failure in Failure if failure)
