"""From queues to receivers: which subscription is sent to now, which is tried again when, and the requests under way.

    offered, or its time has come ──▶ due ──▶ a POST, one at a time for each subscription ──▶ acknowledged, or a time
                                                                                              to try again

Made and driven by workers/webhooks.py inside its event loop; what becomes of a subscription is decided by
workers/webhook_subscription.py. It reads no ring. Bounded: so many requests at a time, chosen by priority, then by how
long they have waited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shm.ledger import DeliveryState
from workers.runtime import Runtime
from workers.spec import WebhookSettings
from workers.webhook_queue import Batch
from workers.webhook_subscription import Subscription

if TYPE_CHECKING:
    from workers.webhook_post import Poster

TIMER_S: Final = 0.001

log = logging.getLogger("webhooks")


class Deliveries:
    """Those of one worker. `posts` are under way; `fault` is what one of them raised: our fault, not a receiver's."""

    def __init__(
        self, runtime: Runtime[WebhookSettings], poster: Poster, is_served: Callable[[Subscription], bool]
    ) -> None:
        """`is_served`: whether a subscription is still one of the worker's. Needs a running event loop."""
        self.posts: set[asyncio.Task[None]] = set()
        self.fault: BaseException | None = None
        self._runtime = runtime
        self._poster = poster
        self._is_served = is_served
        self._most = runtime.settings.max_deliveries
        self._loop = asyncio.get_running_loop()
        self._due: dict[Subscription, None] = {}  # ready to be sent, longest first
        self._timers: dict[Subscription, asyncio.TimerHandle] = {}
        counter = runtime.status.counter
        self._messages_delivered = counter("messages_delivered")
        self._messages_lost = counter("messages_lost")
        self._deliveries = counter("deliveries")
        self._deliveries_failed = counter("deliveries_failed")
        self._bytes_sent = counter("bytes_sent")
        self._latency = runtime.status.histogram("delivery_latency")

    def offer(self, subscription: Subscription) -> None:
        """Something was queued for it."""
        if subscription.ready:
            self._due[subscription] = None

    def schedule(self, subscription: Subscription) -> None:
        """Have it sent as soon as there is room, or tried again when its time comes."""
        self.unschedule(subscription)
        if not self._is_served(subscription):
            return
        if subscription.ready:
            self._due[subscription] = None
        elif subscription.next_attempt_ns and not subscription.spec.paused:
            delay_s = max(0.0, (subscription.next_attempt_ns - time.time_ns()) / 1e9)
            self._timers[subscription] = self._loop.call_later(delay_s + TIMER_S, self._wake, subscription)

    def unschedule(self, subscription: Subscription) -> None:
        """Send it nothing until it is scheduled again; what is under way goes on."""
        self._due.pop(subscription, None)
        timer = self._timers.pop(subscription, None)
        if timer is not None:
            timer.cancel()

    def _wake(self, subscription: Subscription) -> None:
        """Its time has come; or nearly so, as the loop's clock is coarser than its own: then it waits once more."""
        subscription.wake(time.time_ns())
        self.schedule(subscription)
        self.dispatch()

    def dispatch(self) -> None:
        """Begin as many deliveries as there is room for: by priority, then the one that has waited longest."""
        room = self._most - len(self.posts)
        if not self._due or room <= 0:
            return
        chosen = list(self._due)
        if len(chosen) > room:
            chosen = sorted(chosen, key=lambda subscription: subscription.rank)[:room]
        for subscription in chosen:
            del self._due[subscription]
            if subscription.ready:
                post = self._loop.create_task(self._deliver(subscription, subscription.begin()))
                self.posts.add(post)
                post.add_done_callback(self._posted)

    def _posted(self, post: asyncio.Task[None]) -> None:
        """A delivery is over; one that raised is a fault of ours, and ends the process at the next tick."""
        self.posts.discard(post)
        if not post.cancelled():
            self.fault = self.fault or post.exception()
            self.dispatch()

    async def _deliver(self, subscription: Subscription, batch: Batch) -> None:
        """One request, from the first byte to what it means for the subscription."""
        spec = subscription.spec
        self._runtime.beat(time.time_ns())
        outcome = await self._poster.post(
            spec.callback_url,
            batch.body,
            secret=spec.secret,
            subscription_id=spec.subscription_id,
            delivery=batch.number,
            now_s=time.time,
        )
        now_ns = time.time_ns()
        self._deliveries.add(1)
        if not self._is_served(subscription):
            return
        if outcome.failure:
            self._deliveries_failed.add(1)
            lost = subscription.failed(batch, outcome.failure, outcome.retry_after_ns, now_ns)
            self._messages_lost.add(lost)
            if subscription.state is DeliveryState.PARKED:
                log.warning("%s: parked after %s", spec.subscription_id, outcome.detail)
        else:
            subscription.acknowledged(batch, now_ns)
            self._messages_delivered.add(len(batch.messages))
            self._bytes_sent.add(len(batch.body))
            if batch.messages:
                self._latency.record(max(0, now_ns - batch.messages[0].publish_ns))
        self.schedule(subscription)
