"""The mirror process: what the recorder has written to the journal, into one store: Redis or PostgreSQL.

Started as `python -m workers.mirror` by the control process, one a store. It follows the journal's files from the
cursors that the store itself keeps, and changes both in one transaction: whatever is killed at whatever moment, each
record is in the store once. It reads no ring and holds nobody up: a store that is down, slow or full makes this process
fall behind, within what the journal keeps. What the journal removed before that is counted.

    pump   a thread: connect (backed off), read the journal, store, again; every call to the store may block here
    main   heartbeat and numbers; breaks off a call that the store has not answered for `timeout_s`

    DOWN --connected, cursors known--> UP --StoreDown--> DOWN     next try at once, then 0.5 s, 1 s, ... 30 s, jittered
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shm.source_names import SourceNames
from shm.status import ProcessStatus, StatusBlock
from workers.backoff import Backoff
from workers.journal_follower import Batch, JournalFollower, Place
from workers.runtime import Runtime, main
from workers.spec import MirrorSettings
from workers.store import Store, StoreDown, with_password

SHOW_NS: Final = 250_000_000
RECORDER_LABEL: Final = "recorder"
IDLE_S: Final = 0.1
LOOK_S: Final = 1.0  # how often the journal's length is looked at while the store is down
STOP_S: Final = 0.3  # a transaction in hand may take this long at the end; it is undone otherwise

log = logging.getLogger("mirror")


@dataclass
class Tally:
    """What the pump has done; written by it alone, read by the main thread at any time."""

    records_stored: int = 0
    records_lost: int = 0
    gaps: int = 0
    store_errors: int = 0
    reconnects: int = 0
    records_removed: int = 0  # entries or partitions that were too old
    connected: bool = False
    positions: dict[int, tuple[Place, int]] = field(default_factory=dict)  # ring -> newest stream, stored up to
    unread: dict[Place, int] = field(default_factory=dict)  # an estimate, for streams that no recorder reports
    oldest_ns: int = 0  # when the oldest block was written that is not stored; 0 = all is
    busy_since_s: float = 0.0  # monotonic; a call to the store is under way since; 0 = none


class Pump:
    """Moves records from the journal to a store. `turn` by one thread; times and dice come from the caller."""

    def __init__(self, settings: MirrorSettings, store: Store, dice: random.Random) -> None:
        """Nothing is opened yet."""
        self.tally = Tally()
        self._settings = settings
        self._store = store
        self._follower = JournalFollower(Path(settings.folder) / "journal")
        self._backoff = Backoff(dice)
        self._retry_ns = 0
        self._up_since_ns = 0
        self._was_up = False
        self._complaint = ""
        self._vanished = 0

    def turn(self, now_ns: int) -> float:
        """Do what is due; returns for how many seconds there is nothing to do. `now_ns` is monotonic."""
        tally = self.tally
        if not tally.connected:
            if now_ns < self._retry_ns:
                self._look()
                return min(LOOK_S, (self._retry_ns - now_ns) / 1e9)
            if not self._connect(now_ns):
                return 0.0
        batches = self._follower.read(self._settings.max_batch_records)
        self._count_vanished()
        if batches:
            tally.oldest_ns = min(batch.written_ns for batch in batches)
        try:
            tally.busy_since_s = time.monotonic()
            if batches:
                self._store.store(batches, time.time_ns())
                self._stored(batches)
            tally.records_removed += self._store.tend(time.time_ns())
        except StoreDown as error:
            self._failed(error, now_ns)
            return 0.0
        finally:
            tally.busy_since_s = 0.0
        self._look()
        if sum(len(batch.records) for batch in batches) * 2 > self._settings.max_batch_records:
            return 0.0
        return max(self._settings.flush_ms / 1e3, IDLE_S) if batches else IDLE_S

    def close(self) -> None:
        """Let go of everything; what is under way is undone by the store."""
        self._store.close()
        self._follower.close()

    def abort(self) -> None:
        """From another thread: break off the call that is under way."""
        self._store.abort()

    def _connect(self, now_ns: int) -> bool:
        try:
            self.tally.busy_since_s = time.monotonic()
            cursors = self._store.connect()
            self._follower.resume(cursors)
            self._store.forget(self._follower.outlived(cursors))
        except StoreDown as error:
            self._failed(error, now_ns)
            return False
        finally:
            self.tally.busy_since_s = 0.0
        self.tally.positions = self._follower.positions()  # the last mirror may have died before it could tell
        if self._was_up:
            self.tally.reconnects += 1
        if self._complaint:
            log.warning("%s takes records again", self._store.name)
        self._was_up, self._complaint = True, ""
        self._up_since_ns = now_ns
        self.tally.connected = True
        return True

    def _failed(self, error: StoreDown, now_ns: int) -> None:
        self.tally.connected = False
        self.tally.store_errors += 1
        self._retry_ns = self._backoff.failed(now_ns, self._up_since_ns)
        self._up_since_ns = 0
        self._store.close()
        if str(error) != self._complaint:
            log.error("%s; trying again, the journal keeps what is not stored", error)
            self._complaint = str(error)

    def _stored(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.tally.records_stored += len(batch.records)
            self.tally.gaps += batch.gaps
            if batch.lost:
                self.tally.records_lost += batch.lost
                log.warning(
                    "ring %d: %d records before %d had gone from the journal before %s had them",
                    batch.place.ring_id,
                    batch.lost,
                    batch.next_sequence,
                    self._store.name,
                )
        self.tally.positions = self._follower.positions()

    def _count_vanished(self) -> None:
        gone = self._follower.vanished - self._vanished
        if gone:
            self._vanished = self._follower.vanished
            self.tally.records_lost += gone
            log.warning("%d records had gone from the journal before %s had them", gone, self._store.name)

    def _look(self) -> None:
        """How far behind we are."""
        self.tally.unread = self._follower.unread()
        self.tally.oldest_ns = self._follower.oldest_unread_ns()
        self._count_vanished()


def lag_records(tally: Tally, recorded: dict[int, int]) -> int:
    """Records in the journal that are not stored: exact for rings that the recorder reports, else by file sizes."""
    behind = 0
    for place, unread in list(tally.unread.items()):
        newest, stored = tally.positions.get(place.ring_id, (None, 0))
        if newest == place and place.ring_id in recorded:
            behind += max(0, recorded[place.ring_id] - stored)
        else:
            behind += unread
    return behind


class _Numbers:
    """The mirror's figures in the status block."""

    COUNTERS: Final = ("records_stored", "records_lost", "gaps", "store_errors", "reconnects", "records_removed")

    def __init__(self, status: ProcessStatus, block: StatusBlock) -> None:
        self._status = status
        self._block = block
        self._shown: dict[str, int] = {}
        self._next_ns = 0

    def show(self, tally: Tally, now_ns: int) -> None:
        """A few times a second; `now_ns` is the wall clock."""
        if now_ns < self._next_ns and self._next_ns - now_ns <= SHOW_NS:
            return
        self._next_ns = now_ns + SHOW_NS
        for name in self.COUNTERS:  # added up over all mirrors of this label in this run of the engine
            value = getattr(tally, name)
            self._status.counter(name).add(value - self._shown.get(name, 0))
            self._shown[name] = value
        for ring_id, (_, stored) in list(tally.positions.items()):
            self._status.counter(f"stored.{ring_id}").set(stored)
        self._status.gauge("store_down").set(float(not tally.connected))
        self._status.gauge("lag_records").set(float(lag_records(tally, self._recorded())))
        oldest_ns = tally.oldest_ns
        self._status.gauge("lag_seconds").set(max(0.0, (now_ns - oldest_ns) / 1e9) if oldest_ns else 0.0)

    def _recorded(self) -> dict[int, int]:
        recorder = self._block.process(RECORDER_LABEL)
        counters = recorder.counters if recorder is not None else {}
        return {int(name.partition(".")[2]): count for name, count in counters.items() if name.startswith("recorded.")}


def make_store(settings: MirrorSettings, source_names: SourceNames | None = None) -> Store:
    """The store that the settings name. Raises SettingsError where its library is missing."""
    address = with_password(settings.address, settings.password)
    if settings.store == "redis":
        from workers.redis_store import RedisStore

        return RedisStore(
            address,
            settings.engine,
            hours=settings.hours,
            max_records=settings.max_records_per_symbol,
            timeout_s=settings.timeout_s,
        )
    from workers.postgres_store import PostgresStore

    return PostgresStore(
        address,
        settings.engine,
        retention_days=settings.retention_days,
        timescale=settings.timescale,
        source_names=source_names,
    )


def run(runtime: Runtime[MirrorSettings]) -> None:
    """Be the mirror until asked to stop; then let a transaction that is under way come to its end, briefly."""
    settings = runtime.settings
    pump = Pump(settings, make_store(settings, SourceNames(runtime.block)), random.SystemRandom())
    numbers = _Numbers(runtime.status, runtime.block)
    stopping = threading.Event()
    failure: list[BaseException] = []

    def turns() -> None:
        try:
            while not stopping.is_set():
                stopping.wait(pump.turn(time.monotonic_ns()))
            pump.close()
        except BaseException as error:  # told to the main thread, which ends the process  # noqa: BLE001
            failure.append(error)

    thread = threading.Thread(target=turns, name="pump", daemon=True)
    thread.start()
    runtime.ready()
    while not runtime.stopping and thread.is_alive():
        now_ns = time.time_ns()
        numbers.show(pump.tally, now_ns)
        runtime.beat(now_ns)
        since_s = pump.tally.busy_since_s
        if since_s and time.monotonic() - since_s > settings.timeout_s:
            pump.abort()
        runtime.wait(0.1)
    stopping.set()
    thread.join(STOP_S)
    numbers.show(pump.tally, time.time_ns() + 2 * SHOW_NS)
    if failure:
        raise failure[0]


if __name__ == "__main__":
    main("mirror", MirrorSettings, run)
