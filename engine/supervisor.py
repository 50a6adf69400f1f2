"""Starts the workers, watches them, starts them again, stops them in order.

Made and driven by engine/control.py inside its event loop. What should happen to one worker is decided by
engine/lifecycle.py; here it is carried out: spawn, kill, count, tell. An exit is noticed at once (SIGCHLD), silence
within the heartbeat timeout by a look at the status block every TURN_S. No worker's end stops another one.

    start   all are spawned together, and import while the segments are made; producers get their settings only when
            the consumers are ready, so that nothing of the first records is lost
    stop    ingest first, then the readers once they have read the rings to their ends, in STOP_S altogether
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from engine.duties import WorkerPlan
from engine.errors import ConfigError, SharedMemoryError, WorkerNeverStarted
from engine.lifecycle import Action, Life, Limits, Phase
from engine.plan import CONTROL_LABEL, Plan
from engine.process import Child, worker_environment
from engine.reaper import Reaper
from engine.roster import ingest_words
from engine.settings import Config
from shm.errors import ShmError
from shm.layout import StatusCode
from shm.ring import RingWriter, list_readers, status_record
from shm.status import ProcessState, ProcessStatus, StatusBlock
from workers.spec import (
    EXIT_BAD_SETTINGS,
    MODULES,
    FeedSpec,
    IngestSettings,
    SubscriptionSpec,
    WebhookSettings,
    encode,
)
from workers.spec import EXIT_SHM as WORKER_EXIT_SHM

TURN_S: Final = 0.2
START_TURN_S: Final = 0.02
PRODUCER_HOLD_S: Final = 5.0  # producers start after this long even if a consumer is still not ready
SPAWNED_LAST: Final = ("historian", "mirror")  # at start their imports would only hold up those that ticks need
START_FAILURES: Final = 3  # of one worker before it was ever ready: the start has failed
INGEST_STOP_S: Final = 0.6
DRAIN_S: Final = 0.4
READERS_STOP_S: Final = 0.6


class Worker:
    """One supervised worker: its plan, its life, its process of the moment."""

    def __init__(self, plan: WorkerPlan, life: Life) -> None:
        """A worker that has not been started."""
        self.plan = plan
        self.life = life
        self.child: Child | None = None
        self.was_ready = False
        self.last_end = ""  # how the last process ended, for people

    @property
    def pid(self) -> int:
        """Process id; 0 = no process."""
        return self.child.pid if self.child is not None and self.child.exit_code is None else 0


class Supervisor:
    """All workers of one engine. `on_line(label, text)` gets their output and the supervisor's own remarks."""

    def __init__(self, config: Config, plan: Plan, ring: RingWriter, on_line: Callable[[str, str], None]) -> None:
        """Nothing is started yet. `ring` is ring 0, for records about restarts."""
        self._config = config
        self._plan = plan
        self._ring = ring
        self._on_line = on_line
        self._block: StatusBlock | None = None
        self._own: ProcessStatus | None = None
        self._environment = worker_environment(os.environ, config.engine.math_threads)
        section = config.supervisor
        limits = Limits(
            heartbeat_timeout_s=section.heartbeat_timeout_s,
            startup_grace_s=section.startup_grace_s,
            backoff_cap_s=section.backoff_cap_s,
            stable_after_s=section.stable_after_s,
            failed_after=section.failed_after,
        )
        chance = random.SystemRandom()
        now_s = time.monotonic()
        self.workers = {item.label: Worker(item, Life(limits, chance.random, now_s)) for item in plan.workers}
        self._reaper: Reaper | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turning: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def own(self) -> ProcessStatus:
        """The control process's slot in the status block."""
        assert self._own is not None, "start() has not been called"
        return self._own

    @property
    def _status(self) -> StatusBlock:
        assert self._block is not None, "start() has not been called"
        return self._block

    async def spawn(self) -> None:
        """Start what ticks wait for. They import, and wait for their settings: no segment is needed yet."""
        self._reaper = Reaper()
        first = [worker for worker in self.workers.values() if not _can_wait(worker)]
        for worker in self.workers.values():
            if worker not in first:
                worker.life.due_s += PRODUCER_HOLD_S  # `start` calls for it before
        await asyncio.gather(*(self._spawn(worker) for worker in first))

    async def start(self, status: StatusBlock, on_ready: Callable[[Worker], None]) -> None:
        """Hand out settings and wait until all workers are ready; `on_ready` hears of each.

        Args:
            status: the status block, writable; all other segments are there too.
            on_ready: called once a worker.

        Raises:
            WorkerNeverStarted, ConfigError, SharedMemoryError: one could not start.
        """
        self._block = status
        self._own = status.register(CONTROL_LABEL, "control", os.getpid())
        for worker in self.workers.values():
            if worker.plan.role != "ingest" and worker.child is not None:
                worker.child.release()
        started_s = time.monotonic()
        told: set[str] = set()
        while len(told) < len(self.workers):
            await asyncio.sleep(START_TURN_S)
            self._turn(START_TURN_S)
            for worker in self.workers.values():
                if worker.was_ready and worker.plan.label not in told:
                    told.add(worker.plan.label)
                    on_ready(worker)
                elif not worker.was_ready:
                    self._check_start(worker)
            consumers = [w for w in self.workers.values() if w.plan.role != "ingest" and not _can_wait(w)]
            consumers_ready = all(worker.was_ready for worker in consumers)
            if consumers_ready or time.monotonic() - started_s > PRODUCER_HOLD_S:
                for worker in self.workers.values():
                    if worker.child is not None:
                        worker.child.release()
                    elif worker.life.phase is Phase.WAITING:
                        worker.life.due_s = time.monotonic()
        self._turning = asyncio.create_task(self._turns())

    def set_feeds(self, label: str, feeds: tuple[FeedSpec, ...]) -> None:
        """From now on an ingest worker is started with these feeds. The one that runs is not told."""
        worker = self.workers[label]
        settings = worker.plan.settings
        assert isinstance(settings, IngestSettings), label
        settings = msgspec.structs.replace(settings, feeds=feeds)
        worker.plan = WorkerPlan(settings, ingest_words(feeds, settings.ring_id))

    def set_subscriptions(self, label: str, subscriptions: tuple[SubscriptionSpec, ...]) -> None:
        """From now on the webhooks worker is started with these subscriptions. The one that runs is not told."""
        worker = self.workers[label]
        settings = worker.plan.settings
        assert isinstance(settings, WebhookSettings), label
        settings = msgspec.structs.replace(settings, subscriptions=subscriptions)
        worker.plan = WorkerPlan(settings, worker.plan.does)

    def _check_start(self, worker: Worker) -> None:
        """A worker that can't start at all ends the start, instead of being tried for ever behind people's backs."""
        if worker.life.failures == 0:
            return
        code = worker.child.exit_code if worker.child is not None else None
        text = f"worker {worker.plan.label} did not start: {worker.last_end}; its last words are above"
        if code == EXIT_BAD_SETTINGS:
            raise ConfigError(text)
        if worker.life.failures >= START_FAILURES or code == WORKER_EXIT_SHM:
            raise SharedMemoryError(text) if code == WORKER_EXIT_SHM else WorkerNeverStarted(text)

    async def _spawn(self, worker: Worker) -> None:
        plan = worker.plan
        heartbeat = self._block.heartbeat_ns(plan.label) if self._block is not None else None
        worker.life.spawned(time.monotonic(), heartbeat or 0)
        starting = self._turning is None and not worker.was_ready
        withhold = starting and (plan.role == "ingest" or self._block is None)
        try:
            worker.child = await Child.spawn(
                MODULES[plan.role],
                plan.label,
                encode(plan.settings),
                self._environment,
                on_exit=lambda child: self._exited(worker, child),
                on_line=self._on_line,
                withhold=withhold,
            )
        except OSError as error:  # the machine has no room for a process or its pipes: as if it had ended at once
            worker.child = None
            self._ended(worker, f"no process could be started: {error.strerror or error}")
            return
        if self._stopping:
            worker.child.signal(signal.SIGKILL)
        self._tell_reaper()

    def _tell_reaper(self) -> None:
        if self._reaper is not None:
            self._reaper.watch([worker.pid for worker in self.workers.values() if worker.pid])

    def _exited(self, worker: Worker, child: Child) -> None:
        """SIGCHLD: a worker ended. A crash is answered here and now, not at the next turn."""
        self._ended(worker, end_in_words(child.exit_code))

    def _ended(self, worker: Worker, how: str) -> None:
        worker.last_end = how
        label, life = worker.plan.label, worker.life
        expected = life.phase is Phase.STOPPING
        action = life.exited(time.monotonic())
        if expected or self._stopping or self._block is None:
            return
        self._status.set_state(label, ProcessState.FAILED)
        self._status.set_restarts(label, life.restarts)
        if worker.was_ready:
            pause = (
                "starting it again"
                if action is Action.SPAWN
                else f"next start in {life.due_s - time.monotonic():.1f} s"
            )
            often = f", {life.failures} times in a row" if life.failures > 1 else ""
            self._on_line(label, f"{worker.last_end}{often}; {pause}")
            self._publish(StatusCode.FEED_DOWN, worker, worker.last_end)
        if action is Action.SPAWN:
            self._run(self._spawn(worker))

    def _publish(self, code: StatusCode, worker: Worker, what: str) -> None:
        """Tell the readers of ring 0: one record for each feed of the worker, or one for feed 0 if it has none."""
        settings = worker.plan.settings
        feeds = [feed.feed_id for feed in settings.feeds] if isinstance(settings, IngestSettings) else []
        try:
            for feed_id in feeds or [0]:
                self._ring.publish(status_record(code, feed_id=feed_id, text=f"{worker.plan.label} {what}"))
        except ShmError as error:
            self._on_line(CONTROL_LABEL, f"status record not published: {error}")

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        """Raise what ended the turns, if they have ended: an engine that nobody watches must not go on."""
        if self._turning is not None and self._turning.done() and not self._turning.cancelled():
            self._turning.result()

    async def _turns(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            self._turn(TURN_S)

    def _turn(self, interval_s: float) -> None:
        """A look at every worker's heartbeat; also this process's own."""
        self.own.heartbeat(time.time_ns())
        now_s = time.monotonic()
        for worker in self.workers.values():
            label = worker.plan.label
            heartbeat, ready = self._pulse(worker)
            before = worker.life.phase
            action = worker.life.turn(now_s, interval_s, heartbeat, ready)
            if worker.life.phase is Phase.RUNNING and before is not Phase.RUNNING:
                if worker.was_ready:
                    self._on_line(label, f"back as process {worker.pid}, restart {worker.life.restarts}")
                    self._publish(StatusCode.FEED_UP, worker, f"back, restart {worker.life.restarts}")
                worker.was_ready = True
            if action is Action.SPAWN:
                self._run(self._spawn(worker))
            elif action is Action.KILL and worker.child is not None:
                what = "not ready" if worker.life.phase is Phase.STARTING else "silent"
                seconds = f"{worker.life.silent_s:.1f} s" if what == "silent" else "too long"
                self._on_line(label, f"{what} for {seconds}: killing process {worker.child.pid}")
                worker.child.signal(signal.SIGKILL)

    def _pulse(self, worker: Worker) -> tuple[int, bool]:
        """(heartbeat, ready) of the worker's present process; what its predecessor left in the slot does not count."""
        label = worker.plan.label
        if worker.life.phase is Phase.RUNNING:
            return self._status.heartbeat_ns(label) or 0, True
        try:
            view = self._status.process(label) if worker.life.phase is Phase.STARTING else None
        except ShmError:  # no descriptor left to look with
            view = None
        if view is None or view.pid != worker.pid:
            return 0, False
        return view.heartbeat_ns, view.state is ProcessState.READY

    async def stop(self) -> None:
        """End every worker in order, within about 1.6 s; those that do not follow are killed."""
        self._stopping = True
        if self._turning is not None:
            self._turning.cancel()
        for worker in self.workers.values():
            worker.life.stop()
        producers = [worker for worker in self.workers.values() if worker.plan.role == "ingest"]
        readers = [worker for worker in self.workers.values() if worker.plan.role != "ingest"]
        await self._end(producers, INGEST_STOP_S)
        await self._drained(readers)
        await self._end(readers, READERS_STOP_S)
        self._finish()

    def stop_now(self) -> None:
        """End every worker by SIGKILL, without order."""
        self._stopping = True
        for worker in self.workers.values():
            worker.life.stop()
            if worker.child is not None:
                worker.child.signal(signal.SIGKILL)
        self._finish()

    def _finish(self) -> None:
        if self._own is not None:
            self._own.state = ProcessState.STOPPED
        for worker in self.workers.values():
            if worker.child is not None:
                worker.child.close()
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None

    async def _end(self, workers: list[Worker], patience_s: float) -> None:
        children = [worker.child for worker in workers if worker.child is not None and worker.child.exit_code is None]
        for child in children:
            child.signal(signal.SIGTERM)
        await self._gone(children, patience_s)
        late = [child for child in children if child.exit_code is None]
        for child in late:
            self._on_line(child.label, f"did not stop within {patience_s:g} s: killing process {child.pid}")
            child.signal(signal.SIGKILL)
        await self._gone(late, 1.0)

    async def _gone(self, children: list[Child], patience_s: float) -> None:
        if children:
            await asyncio.wait([asyncio.create_task(child.ended.wait()) for child in children], timeout=patience_s)

    async def _drained(self, readers: list[Worker]) -> None:
        """Until our own readers have read every ring to its end, or DRAIN_S is over."""
        deadline_s = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline_s and self.lag({worker.pid for worker in readers if worker.pid}):
            await asyncio.sleep(0.01)

    def lag(self, pids: set[int]) -> int:
        """Records that the readers of these processes have not read yet, over all rings."""
        behind = 0
        for ring in self._plan.rings:
            try:
                behind += sum(r.lag for r in list_readers(self._config.engine.name, ring.ring_id) if r.pid in pids)
            except ShmError:
                continue
        return behind

    def reader_pids(self) -> set[int]:
        """Processes of our own that read rings."""
        return {worker.pid for worker in self.workers.values() if worker.pid and worker.plan.role != "ingest"}


def end_in_words(code: int | None) -> str:
    """How a process ended, for people: "exit 3 (shared memory)", "killed by SIGKILL"."""
    if code is None:
        return "still running"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    meaning = {0: "ended by itself", EXIT_BAD_SETTINGS: "settings", WORKER_EXIT_SHM: "shared memory"}.get(
        code, "failed"
    )
    return f"exit {code} ({meaning})"


def _can_wait(worker: Worker) -> bool:
    """Whether no tick is lost, or comes later, if this worker is there later."""
    settings = worker.plan.settings
    return worker.plan.role in SPAWNED_LAST or (isinstance(settings, WebhookSettings) and not settings.subscriptions)
