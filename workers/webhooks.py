"""The webhooks worker: records from rings to callback URLs, at least once, in order. `python -m workers.webhooks`.

    rings --> read --> who wants it? (audience.py) --> encode once --> queue of each subscription --> ledger
                                                                          `--> POST, one at a time, retried
                                                                              (webhook_deliveries.py)
    commands: other subscriptions --> the roll of those that are served (webhook_roll.py)

While there is no subscription it sleeps: no ring attached, no aiohttp imported. At least once rests on the ledger
(shm/ledger.py): a killed worker's successor reads each ring again from the first sequence that some subscription has
not acknowledged, as far as the ring still holds it.

What is not delivered, and how it shows (each as a gap at the head of the next delivery, and in `messages_lost`):
    queue full             the receiver is too slow: its oldest messages go
    parked                 many failures in a row: nothing is queued until it is tried again
    overrun                this worker, or its pause after a kill, was longer than the ring
    engine restarted       what was queued at the stop; rings do not outlive the engine

A slow receiver harms no other. Started by the control process (workers/runtime.py); it publishes no ring.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from shm.errors import ShmError
from shm.instruments import InstrumentTable
from shm.layout import empty
from shm.ledger import Ledger
from shm.ring import RingReader, RingSet, ring_info
from shm.source_names import SourceNames
from workers.audience import Audience
from workers.encode import MessageBuilder, encode_json
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import AnyCommand, Refused, WebhookSettings
from workers.webhook_queue import Message
from workers.webhook_roll import Roll
from workers.webhook_subscription import Subscription
from workers.webhook_target import Addresses

if TYPE_CHECKING:
    from workers.webhook_post import Poster

TICK_S: Final = 0.05
GATHER_S: Final = 0.01  # between two looks at rings that are not busy: what comes meanwhile shares a delivery
DRAIN_S: Final = 0.35

log = logging.getLogger("webhooks")


class Webhooks:
    """The rings, and what goes from them into the queues of subscriptions."""

    def __init__(self, runtime: Runtime[WebhookSettings], ledger: Ledger, poster: Poster, addresses: Addresses) -> None:
        """Go on with the subscriptions of the settings. Raises ShmError."""
        settings = runtime.settings
        self._runtime = runtime
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="rings")
        self._instruments = InstrumentTable.attach(settings.engine)
        self._audience: Audience[Subscription] = Audience(self._instruments)
        self._source_names = SourceNames(runtime.block)
        self._builder = MessageBuilder(self._source_names)
        self._records = empty(settings.batch_slots)
        self._records_view = memoryview(self._records.view(np.uint8).data)
        self._readers = RingSet()
        self._horizons: dict[int, int] = {}  # ring that is being read a second time -> where the first time ended
        self._wanted = asyncio.Event()
        counter = runtime.status.counter
        self._records_read = counter("records_read")
        self._records_lost = counter("records_lost")
        self._gaps = counter("gaps")
        self._messages_encoded = counter("messages_encoded")
        self._messages_lost = counter("messages_lost")
        self._ledger = ledger
        self._roll = Roll(
            runtime,
            ledger,
            poster,
            addresses,
            self._audience,
            on_begun=self._begin_now,
            on_changed=self._begin_reading,
        )
        self._deliveries = self._roll.deliveries
        self._open_rings(resume=True)

    async def run(self, pending: list[AnyCommand]) -> None:
        """Serve until the runtime says stop; `pending` are commands that came before."""
        self._roll.obey(pending)
        reading = asyncio.create_task(self._read())
        try:
            while not self._runtime.stopping:
                await asyncio.sleep(TICK_S)
                self._tick()
                if reading.done():
                    reading.result()
            await self._drain(reading)
        finally:
            reading.cancel()
            posts = self._deliveries.posts
            for post in posts:
                post.cancel()
            await asyncio.gather(reading, *posts, return_exceptions=True)
            self._waiter.shutdown(wait=True)  # it uses the mappings
            for subscription in self._roll.subscriptions.values():
                subscription.save()
            self._readers.close()
            self._instruments.close()

    async def _drain(self, reading: asyncio.Task[None]) -> None:
        """Before a stop: what the rings still hold, and what can be delivered in a moment."""
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        self._waiter.shutdown(wait=True)
        deadline_s = self._loop.time() + DRAIN_S
        while self._take_turn() and self._loop.time() < deadline_s:
            pass
        self._deliveries.dispatch()
        while self._deliveries.posts and self._loop.time() < deadline_s:
            self._runtime.beat(time.time_ns())
            await asyncio.wait(self._deliveries.posts, timeout=0.01)

    def _begin_now(self, subscription: Subscription) -> None:
        """It gets what is read from now on, for the first time."""
        for reader in self._readers:
            read = self._horizons.get(reader.ring_id, 0)
            subscription.floors[reader.ring_id] = max(reader.sequence - 1, read)
            subscription.read_again(reader.ring_id, reader.sequence, read)
        subscription.save()

    def _open_rings(self, *, resume: bool) -> None:
        """Attach to the rings: with `resume` where the ledger says, else at their ends."""
        engine, ledger = self._settings.engine, self._ledger
        active = self._roll.active
        if not active:
            return
        for ring in self._settings.rings:
            made_ns = ring_info(engine, ring).created_ns
            same = ledger.ring_made_ns(ring) == made_ns
            if not same:
                lost = sum(s.ring_is_gone(ring, ledger.read(ring)) for s in self._roll.subscriptions.values())
                self._messages_lost.add(lost)
            reader = RingReader.attach(engine, ring, label=self._settings.label)
            self._readers.append(reader)
            if resume and same:
                read = ledger.read(ring)
                for subscription in active:
                    subscription.floors[ring] = (subscription.unacked(ring) or read + 1) - 1
                first = 1 + min(subscription.floors[ring] for subscription in active)
                reader.seek(min(first, reader.published + 1))
                self._horizons[ring] = read
                self._follow(reader, active)
            else:
                reader.seek("oldest" if resume else "newest")
                for subscription in active:
                    subscription.floors[ring] = reader.sequence - 1
                    subscription.read_again(ring, reader.sequence, 0)
                ledger.follow_ring(ring, made_ns, reader.sequence - 1)
        for subscription in active:
            subscription.save()
        self._wanted.set()

    def _begin_reading(self) -> None:
        """The first active subscription is there."""
        if self._audience.subscriptions and not self._readers:
            self._open_rings(resume=False)

    def _close_rings(self) -> None:
        self._readers.close()
        self._readers.clear()
        self._horizons.clear()
        self._builder = MessageBuilder(self._source_names)

    async def _read(self) -> None:
        """Turn after turn; sleeps while the rings are empty, and without a subscription."""
        while True:
            if not self._audience.subscriptions:
                self._close_rings()
                self._wanted.clear()
                await self._wanted.wait()
            most = self._take_turn()
            self._deliveries.dispatch()
            if not most:
                await self._loop.run_in_executor(self._waiter, self._readers.wait, MAX_WAIT_S)
            else:
                await asyncio.sleep(GATHER_S if most < self._settings.batch_slots else 0)

    def _take_turn(self) -> int:
        """Take what each ring has. Returns the most that one ring gave."""
        most = 0
        for reader in self._readers:
            count = reader.read(self._records, self._settings.batch_slots)
            if reader.gap is not None:
                self._overrun(reader.ring_id, *reader.gap)
            if count:
                most = max(most, count)
                touched = self._queue(reader.ring_id, count)
                ring = reader.ring_id
                if ring in self._horizons:
                    active = self._roll.active
                    self._follow(reader, active)
                    touched = dict.fromkeys(active)
                for subscription in touched:
                    subscription.save()
                news = self._builder.open_from(ring)
                self._ledger.set_read(ring, min(reader.sequence, news or reader.sequence) - 1)
        self._runtime.beat(time.time_ns())
        return most

    def _follow(self, reader: RingReader, subscriptions: list[Subscription]) -> None:
        """A ring is read a second time, because somebody had not acknowledged all of it."""
        ring = reader.ring_id
        horizon = self._horizons[ring]
        for subscription in subscriptions:
            subscription.read_again(ring, reader.sequence, horizon)
        if reader.sequence > horizon:
            del self._horizons[ring]

    def _queue(self, ring: int, count: int) -> dict[Subscription, None]:
        """Offer the records just read to whoever wants them, each encoded once; returns whom that concerned. Hot."""
        records = self._records[:count]
        self._records_read.add(count)
        audience = self._audience
        keys, chosen = audience.choose(records)
        touched: dict[Subscription, None] = {}
        if not len(chosen):
            return touched
        publish_ns = int(records["ts_publish"][0])
        names, symbols, build = audience.names, audience.symbol_of, self._builder.build
        encoded = lost = 0
        for index, key in zip(chosen.tolist(), keys[chosen].tolist(), strict=True):
            for _, found in build(self._records_view, [(index, key, None)], ring, names, symbols):
                found["payload"]["ring"] = ring
                encoded += 1
                message = Message(ring, found["payload"]["sequence"], encode_json(found), publish_ns)
                for subscription in audience.clients(key):
                    lost += subscription.offer(message)
                    touched[subscription] = None
                if not encoded % 64:  # of many subscriptions a turn is long
                    self._runtime.beat(time.time_ns())
        self._messages_encoded.add(encoded)
        self._messages_lost.add(lost)
        for subscription in touched:
            self._deliveries.offer(subscription)
        return touched

    def _overrun(self, ring: int, first: int, end: int) -> None:
        log.warning("ring %d: lost %d records, %d to %d", ring, end - first, first, end - 1)
        self._gaps.add(1)
        self._records_lost.add(end - first)
        for subscription in self._roll.active:
            subscription.overrun(ring, first, end)
            subscription.save()
            self._deliveries.offer(subscription)

    # Time

    def _tick(self) -> None:
        """Twenty times a second: heartbeat, commands, the bound on all queues together, gauges."""
        self._runtime.beat(time.time_ns())
        if self._deliveries.fault is not None:
            raise self._deliveries.fault
        commands = self._runtime.commands()
        if commands:
            self._roll.obey(commands)
        self._roll.shed()
        self._roll.measure()


async def _serve(
    runtime: Runtime[WebhookSettings], ledger: Ledger, addresses: Addresses, pending: list[AnyCommand]
) -> None:
    from workers.webhook_post import Poster

    settings = runtime.settings
    poster = Poster(addresses, timeout_s=settings.timeout_s, connections=settings.max_deliveries)
    try:
        webhooks = Webhooks(runtime, ledger, poster, addresses)
        if settings.subscriptions:
            runtime.ready()
        await webhooks.run(pending)
    finally:
        await poster.close()


def _sleep(runtime: Runtime[WebhookSettings]) -> tuple[Ledger | None, list[AnyCommand]]:
    """Until the first subscription: its command and the ledger; None = stopping."""
    runtime.ready()
    while not runtime.stopping:
        runtime.wait(MAX_WAIT_S)
        runtime.beat(time.time_ns())
        pending = runtime.commands()
        if pending:
            _load(runtime)
            try:
                return Ledger.open(Path(runtime.settings.ledger)), pending
            except ShmError as error:
                for command in pending:
                    runtime.reply(Refused(request_id=command.request_id, error=str(error)))
    return None, []


def _load(runtime: Runtime[WebhookSettings]) -> None:
    """Import aiohttp, which on a busy machine takes longer than a heart may stand still."""
    loading = threading.Thread(target=import_module, args=("workers.webhook_post",), daemon=True)
    loading.start()
    while loading.is_alive():
        runtime.beat(time.time_ns())
        loading.join(0.02)


def run(runtime: Runtime[WebhookSettings]) -> None:
    """The life of this worker, as workers.runtime.main calls it: asleep until the first subscription."""
    settings = runtime.settings
    addresses = Addresses(allow_private=settings.allow_private, allow_networks=settings.allow_networks)
    ledger, pending = (Ledger.open(Path(settings.ledger)), []) if settings.subscriptions else _sleep(runtime)
    if ledger is None:
        return
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(runtime, ledger, addresses, pending))
    finally:
        ledger.close()


if __name__ == "__main__":
    main("webhooks", WebhookSettings, run)
