"""The real webhooks worker on segments of its own, for tests; its ring is written by the test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from shm.ledger import DeliveryView, Ledger
from shm.ring import RingReader
from tests.system.receiver import SECRET
from tests.system.worker_stage import RING, WorkerStage
from workers.spec import SubscriptionSpec, WebhookSettings


def subscription(url: str, key: int = 1, **changes: Any) -> SubscriptionSpec:
    """All quotes to `url`, unless said otherwise."""
    fields = {"topics": ("marketdata.quote.*",), "subscription_id": f"sub_{key}", "secret": SECRET, **changes}
    return SubscriptionSpec(key=key, callback_url=url, **fields)


class WebhookStage(WorkerStage):
    """Segments, the ledger in `folder`, and the worker, which may deliver to 127.0.0.1 but nowhere else here."""

    def __init__(self, engine: str, folder: Path, symbols: list[str], *, depth_slots: int = 65536) -> None:
        super().__init__(engine, symbols, depth_slots=depth_slots)
        self.path = folder / "webhooks.ledger"

    def serve(self, *subscriptions: SubscriptionSpec, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the worker with these subscriptions and wait until it is ready."""
        chosen = {
            "engine": self.engine,
            "label": "webhooks",
            "rings": (RING,),
            "ledger": str(self.path),
            "subscriptions": subscriptions,
            "allow_networks": ("127.0.0.1",),
            "timeout_s": 30.0,
            **settings,
        }
        return self.spawn_ready(WebhookSettings(**chosen))

    def delivery(self, key: int = 1) -> DeliveryView:
        """What the ledger says of a subscription."""
        ledger = Ledger.attach(self.path)
        try:
            view = ledger.view(key)
        finally:
            ledger.close()
        assert view is not None
        return view

    def number(self, name: str) -> float:
        """A counter or gauge of the worker."""
        view = self.status.process("webhooks")
        assert view is not None
        return view.counters.get(name, 0) or view.gauges.get(name, 0)

    def reader_position(self) -> int:
        """Where the worker stands in the test's ring; 0 = not attached."""
        from shm.ring import list_readers

        found = [r.cursor for r in list_readers(self.engine, RING) if r.alive and r.label == "webhooks"]
        return found[0] if found else 0

    def ring_sequences(self) -> list[int]:
        """Sequences that the ring holds."""
        with RingReader.attach(self.engine, RING, start="oldest") as reader:
            return [s for batch in reader.batches(0) for s in batch["sequence"].tolist()]
