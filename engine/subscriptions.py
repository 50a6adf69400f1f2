"""The subscriptions of an engine while it runs: made, changed and removed over HTTP, kept over restarts.

One change at a time, each in this order, so that a kill at any point leaves something that a restart makes whole:

    plan     the settings with which the supervisor would start the webhooks worker again
    worker   the command, answered; refused = the plan is put back, and nothing was done
    store    what the next start of the engine begins with

A subscription without a callback URL concerns plan and worker not at all: it is a named set of topics that is kept,
counted, and told to whoever asks what to stream. How far deliveries are stands in the ledger (shm/ledger.py), which is
only read here. Called by engine/http_subscriptions.py; it delivers nothing and checks no address: the worker does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from engine.errors import (
    StoreError,
    SubscriptionConflict,
    SubscriptionRefused,
    SubscriptionUnavailable,
)
from engine.feeds import Commands
from engine.plan import WEBHOOKS_LABEL
from engine.store import Store, StoredSubscription
from engine.webhook_secret import WebhookSecret
from shm.errors import BadArgument, ShmError
from shm.instruments import check_symbol
from shm.ledger import DeliveryView, Ledger
from workers.spec import Refused, SetSubscriptions, SubscriptionSpec

ALL: Final = "*"
ANSWER_S: Final = 10.0  # the first subscription has the worker import its HTTP library
MAX_SYMBOLS: Final = 256  # of one subscription
MAX_TOPICS: Final = 100_000  # of all of them: symbols times types
MAX_SPECS_BYTES: Final = 2 << 20  # of all that the worker is told: half of what it reads at its start


class Workers(Protocol):
    """What is needed of the supervisor."""

    def set_subscriptions(self, label: str, subscriptions: tuple[SubscriptionSpec, ...]) -> None:
        """From now on the worker is started with these subscriptions."""


def topics_of(subscription: StoredSubscription) -> tuple[str, ...]:
    """Its topics, as WebSocket clients write them; on ZeroMQ marketdata.feed.status is one topic for all symbols."""
    kinds = subscription.data_types or (ALL,)
    return tuple(f"marketdata.{kind}.{symbol}" for kind in kinds for symbol in subscription.symbols)


def specs(subscriptions: Iterable[StoredSubscription], secret: WebhookSecret) -> tuple[SubscriptionSpec, ...]:
    """What the worker is told: of those that have a callback URL. StoreError if a secret is needed and can't be had."""
    return tuple(
        SubscriptionSpec(
            key=item.key,
            subscription_id=item.subscription_id,
            topics=topics_of(item),
            callback_url=item.callback_url,
            secret=item.secret or secret.get(),
            priority=item.priority,
            paused=not item.is_active,
        )
        for item in subscriptions
        if item.callback_url
    )


def check_symbols(symbols: Iterable[str], field: str) -> None:
    """SubscriptionRefused naming the first that can't be a symbol, the start of one and *, or * for all."""
    for index, symbol in enumerate(symbols):
        text = symbol.removesuffix(ALL)
        try:
            if text or not symbol:
                check_symbol(text)
        except BadArgument as error:
            raise SubscriptionRefused(f"{field}[{index}]: {error}") from error
        if ALL in text:
            raise SubscriptionRefused(f"{field}[{index}]: {symbol!r}: * may stand at the end only")


class Subscriptions:
    """All subscriptions of one engine. `entries` by id, in order of creation."""

    def __init__(
        self,
        stored: Iterable[StoredSubscription],
        store: Store,
        secret: WebhookSecret,
        ledger: Path,
        *,
        max_subscriptions: int,
        workers: Workers | None,
    ) -> None:
        """Everything in `stored` is served already, or about to be. `workers` None: webhooks are disabled."""
        self.entries = {item.subscription_id: item for item in stored}
        self._store = store
        self._secret = secret
        self._ledger_path = ledger
        self._ledger: Ledger | None = None
        self._max = max_subscriptions
        self._workers = workers
        self._commands: Commands | None = None
        self._changing = asyncio.Lock()

    def connect(self, commands: Commands) -> None:
        """The channel to the workers; before it is there none with a callback URL can be changed."""
        self._commands = commands

    @property
    def active(self) -> int:
        """How many are active, with and without a callback URL."""
        return sum(item.is_active for item in self.entries.values())

    def delivery(self, subscription: StoredSubscription) -> DeliveryView | None:
        """How far its deliveries are; None where nothing was ever delivered or queued."""
        if self._ledger is None and subscription.callback_url:
            try:
                self._ledger = Ledger.attach(self._ledger_path)
            except ShmError:
                return None  # the worker says in words what is wrong with it
        return self._ledger.view(subscription.key) if self._ledger is not None else None

    async def create(self, wanted: list[StoredSubscription]) -> list[StoredSubscription]:
        """Make all of them or none.

        Args:
            wanted: without `subscription_id` and `key`, which are given here.

        Raises:
            SubscriptionRefused: one can't work; the text begins with the field, after the index if there are several.
            SubscriptionConflict: there is no room.
            SubscriptionUnavailable: not now.
        """
        async with self._changing:
            for index, item in enumerate(wanted):
                where = f"[{index}]." if len(wanted) > 1 else ""
                check_symbols(item.symbols, f"{where}symbols")
                if item.callback_url and self._workers is None:
                    raise SubscriptionRefused(f"{where}callback_url: webhooks are disabled: [webhooks] enabled")
            if len(self.entries) + len(wanted) > self._max:
                raise SubscriptionConflict(
                    f"there are {len(self.entries)} subscriptions, the most is {self._max}; remove some, or raise "
                    "[webhooks] max_subscriptions"
                )
            made = [
                msgspec.structs.replace(item, subscription_id=f"sub_{secrets.token_hex(8)}", key=key)
                for key, item in enumerate(wanted, self._next_key())
            ]
            await self._change({**self.entries, **{item.subscription_id: item for item in made}}, made)
            return made

    async def change(self, before: StoredSubscription, after: StoredSubscription, *, unpark: bool = False) -> None:
        """Put `after` in the place of `before`; with `unpark` it is tried again at once. Raises as `create`."""
        async with self._changing:
            if self.entries.get(before.subscription_id) is not before:
                raise SubscriptionConflict(f"subscription {before.subscription_id!r} was changed meanwhile; try again")
            if after.callback_url and self._workers is None:
                raise SubscriptionRefused("callback_url: webhooks are disabled: [webhooks] enabled")
            await self._change({**self.entries, after.subscription_id: after}, [after], unpark=unpark)

    async def remove(self, subscription: StoredSubscription) -> None:
        """Forget it; what is queued for it is not delivered. Raises SubscriptionUnavailable."""
        async with self._changing:
            if self.entries.get(subscription.subscription_id) is not subscription:
                return
            try:
                await asyncio.to_thread(self._store.delete_subscription, subscription.subscription_id)
            except StoreError as error:
                raise SubscriptionUnavailable(str(error)) from error
            del self.entries[subscription.subscription_id]
            if subscription.callback_url and self._workers is not None:
                self._workers.set_subscriptions(WEBHOOKS_LABEL, specs(self.entries.values(), self._secret))
                await self._tell(SetSubscriptions(removed=(subscription.key,)))

    def _next_key(self) -> int:
        """Keys are times, so that one is never used again, not even by a later engine with the same ledger."""
        return max(time.time_ns(), 1 + max((item.key for item in self.entries.values()), default=0))

    async def _change(
        self, entries: dict[str, StoredSubscription], changed: list[StoredSubscription], *, unpark: bool = False
    ) -> None:
        """Plan, worker, store; what can't be finished is undone."""
        earlier = [self.entries[item.subscription_id] for item in changed if item.subscription_id in self.entries]
        concerns = any(item.callback_url for item in (*changed, *earlier))
        try:
            told = specs(entries.values(), self._secret) if concerns else ()
            if concerns:
                _check_size(told)
                await self._serve(told, changed, earlier, unpark=unpark)
            await asyncio.to_thread(self._store.put_subscriptions, changed)
        except (SubscriptionRefused, SubscriptionConflict, SubscriptionUnavailable, StoreError) as error:
            if concerns and self._workers is not None:
                self._workers.set_subscriptions(WEBHOOKS_LABEL, specs(self.entries.values(), self._secret))
                if not isinstance(error, SubscriptionRefused | SubscriptionConflict):
                    fresh = {item.key for item in changed} - {item.key for item in earlier if item.callback_url}
                    old = specs(earlier, self._secret)
                    await self._tell(SetSubscriptions(subscriptions=old, removed=tuple(sorted(fresh))))
            if isinstance(error, StoreError):
                raise SubscriptionUnavailable(str(error)) from error
            raise
        self.entries = entries

    async def _serve(
        self,
        told: tuple[SubscriptionSpec, ...],
        changed: list[StoredSubscription],
        earlier: list[StoredSubscription],
        *,
        unpark: bool,
    ) -> None:
        """Plan and worker."""
        if self._workers is None:
            return  # nothing with a callback URL is left but what an earlier configuration allowed
        if self._commands is None:
            raise SubscriptionUnavailable("the engine is starting")
        self._workers.set_subscriptions(WEBHOOKS_LABEL, told)
        served = [index for index, item in enumerate(changed) if item.callback_url]
        kept = {changed[index].key for index in served}
        removed = tuple(item.key for item in earlier if item.callback_url and item.key not in kept)
        command = SetSubscriptions(subscriptions=specs(changed, self._secret), removed=removed, unpark=unpark)
        reply = await self._commands.ask(WEBHOOKS_LABEL, command, ANSWER_S)
        if isinstance(reply, Refused):
            if not reply.settings:
                raise SubscriptionUnavailable(reply.error)
            where = f"[{served[reply.index]}]." if len(changed) > 1 else ""
            raise SubscriptionRefused(f"{where}{reply.error}")

    async def _tell(self, command: SetSubscriptions) -> None:
        """A worker that does not hear it is started again with the plan, if it is started again."""
        if self._commands is not None:
            await self._commands.ask(WEBHOOKS_LABEL, command, ANSWER_S)


def _check_size(told: tuple[SubscriptionSpec, ...]) -> None:
    topics = sum(len(spec.topics) for spec in told)
    size_bytes = len(msgspec.json.encode(told))
    if topics > MAX_TOPICS or size_bytes > MAX_SPECS_BYTES:
        raise SubscriptionConflict(
            f"all subscriptions together would have {topics} topics and {size_bytes} bytes, the most is {MAX_TOPICS} "
            f"and {MAX_SPECS_BYTES}; use * for all symbols, or the start of a symbol and *"
        )
