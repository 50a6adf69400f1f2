"""The roll of webhook subscriptions: which are served, as the control process says, and the bound on all their queues.

    settings, SetSubscriptions --> can all of it work? --> added, changed, removed --> ledger, audience, deliveries
                                        `--> Refused, and nothing was done

Made and called by workers/webhooks.py, which reads the rings for them. It attaches to no ring and sends nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from shm.errors import ShmError
from shm.ledger import DeliveryState, Ledger
from workers.audience import Audience
from workers.errors import SettingsError
from workers.runtime import Runtime
from workers.spec import AnyCommand, Done, Refused, SetSubscriptions, SubscriptionSpec, WebhookSettings
from workers.stream import RequestError
from workers.webhook_deliveries import Deliveries
from workers.webhook_subscription import Limits, Subscription, patterns_of
from workers.webhook_target import Addresses, check_url

if TYPE_CHECKING:
    from workers.webhook_post import Poster


class Roll:
    """The subscriptions of one worker, by their keys, and their deliveries."""

    def __init__(
        self,
        runtime: Runtime[WebhookSettings],
        ledger: Ledger,
        poster: Poster,
        addresses: Addresses,
        audience: Audience[Subscription],
        *,
        on_begun: Callable[[Subscription], None],
        on_changed: Callable[[], None],
    ) -> None:
        """Go on with the subscriptions of the settings. Raises ShmError.

        `on_begun`: a subscription is new or unpaused, and gets what comes from now on; `on_changed`: a command was
        carried out, so there may be a first active subscription.
        """
        settings = runtime.settings
        self.subscriptions: dict[int, Subscription] = {}
        self.deliveries = Deliveries(runtime, poster, self.serves)
        self._runtime = runtime
        self._settings = settings
        self._ledger = ledger
        self._addresses = addresses
        self._audience = audience
        self._on_begun = on_begun
        self._on_changed = on_changed
        self._dice = random.SystemRandom()
        self._limits = Limits(
            queue_messages=settings.queue_messages,
            queue_bytes=settings.queue_bytes,
            batch_messages=settings.batch_messages,
            batch_bytes=settings.batch_bytes,
            park_after=settings.park_after,
            parked_ns=int(settings.parked_s * 1e9),
        )
        self._messages_lost = runtime.status.counter("messages_lost")
        gauge = runtime.status.gauge
        self._targets = gauge("webhook_subscriptions")
        self._parked = gauge("webhooks_parked")
        self._queued = gauge("webhook_messages_queued")
        self._queued_bytes = gauge("webhook_bytes_queued")
        ledger.keep({spec.key for spec in settings.subscriptions})
        for spec in settings.subscriptions:
            self._add(spec)

    def serves(self, subscription: Subscription) -> bool:
        """Whether it is still one of ours, and not an earlier one of the same key."""
        return self.subscriptions.get(subscription.spec.key) is subscription

    @property
    def active(self) -> list[Subscription]:
        """Those that are not paused."""
        return [subscription for subscription in self.subscriptions.values() if not subscription.spec.paused]

    def _add(self, spec: SubscriptionSpec) -> Subscription:
        slot = self._ledger.claim(spec.key)
        subscription = Subscription(spec, slot, self._limits, self._settings.rings, self._dice)
        self.subscriptions[spec.key] = subscription
        if not spec.paused:
            self._join(subscription)
        return subscription

    def _join(self, subscription: Subscription) -> None:
        for pattern in subscription.patterns:
            self._audience.add(subscription, pattern)
        self.deliveries.schedule(subscription)

    def _leave(self, subscription: Subscription) -> None:
        for pattern in subscription.patterns:
            self._audience.remove(subscription, pattern)
        self.deliveries.unschedule(subscription)

    def obey(self, commands: list[AnyCommand]) -> None:
        """Carry commands out and answer each: all of one, or nothing of it and why."""
        for command in commands:
            if not isinstance(command, SetSubscriptions):
                self._runtime.reply(Refused(request_id=command.request_id, error="webhooks have no feeds"))
                continue
            refused = self._first_refused(command)
            if refused is None:
                try:
                    self._set(command)
                except ShmError as error:
                    refused = Refused(request_id=command.request_id, error=str(error))
            self._runtime.reply(refused or Done(request_id=command.request_id))

    def _first_refused(self, command: SetSubscriptions) -> Refused | None:
        """The first subscription of a command that can't work; None if all can."""
        for index, spec in enumerate(command.subscriptions):
            try:
                check_url(spec.callback_url, self._addresses)
                patterns_of(spec)
            except (SettingsError, RequestError) as error:
                return Refused(request_id=command.request_id, error=str(error), settings=True, index=index)
        return None

    def _set(self, command: SetSubscriptions) -> None:
        self._ledger.keep({*self.subscriptions, *(spec.key for spec in command.subscriptions)})
        for spec in command.subscriptions:
            self._ledger.claim(spec.key)  # may fail: before anything is done
        for spec in command.subscriptions:
            subscription = self.subscriptions.get(spec.key)
            if subscription is None:
                subscription = self._add(spec)
                self._on_begun(subscription)
            else:
                was_paused = subscription.spec.paused
                self._leave(subscription)
                self._messages_lost.add(subscription.change(spec, unpark=command.unpark))
                if was_paused:
                    self._on_begun(subscription)
                if not spec.paused:
                    self._join(subscription)
        for key in command.removed:
            gone = self.subscriptions.pop(key, None)
            if gone is not None:
                self._leave(gone)
        self._ledger.keep(self.subscriptions)
        self._on_changed()
        self.deliveries.dispatch()

    def shed(self) -> None:
        """Keep all queues together within bounds: low priority gives first, and of equals the longest queue."""
        excess = sum(s.queue.size_bytes for s in self.subscriptions.values()) - self._settings.total_bytes
        if excess <= 0:
            return
        for subscription in sorted(self.subscriptions.values(), key=lambda s: (-s.rank, -s.queue.size_bytes)):
            before = subscription.queue.size_bytes
            self._messages_lost.add(subscription.shed(excess))
            subscription.save()
            excess -= before - subscription.queue.size_bytes
            if excess <= 0:
                return

    def measure(self) -> None:
        """Set the gauges."""
        self._targets.set(len(self.subscriptions))
        self._parked.set(sum(s.state is DeliveryState.PARKED for s in self.subscriptions.values()))
        self._queued.set(sum(len(s.queue) for s in self.subscriptions.values()))
        self._queued_bytes.set(sum(s.queue.size_bytes for s in self.subscriptions.values()))
