"""A vendor that is asked again and again, as a feed: only what is new is published, within the budget of the key.

    job due --budget--> GET --thread: decode, sift--> batch --poll--> ring --thread: keep--> next request
                 '- waits, and says so                                    what was published is remembered

One request at a time; the next one goes out when all that the last one brought stands in the ring and is written down.
So what waits here is one answer, of bounded length, and a kill at any moment costs nothing and repeats nothing
(workers/sources/observed.py). Decoding and remembering happen in a thread: an answer of 100,000 observations does not
keep the ingest worker from its other feeds.

The session (workers/session.py) is that of every live source; here it is up while answers are good. A symbol is silent
when its answers stay away, or bring nothing new while its market is open, for several times its longest pause lately.
What is asked next, and how, is polled_requests.py's, what is to be said of it polled_monitor.py's. Vendors are
alpha_vantage.py, fred.py and yahoo.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, Flag, StatusCode, empty
from shm.ring import status_record
from workers.decoders.observations import KeyRefused, NotServed, Observations, SlowDown, VendorError
from workers.errors import SettingsError, SourceError
from workers.session import Do, Limits, Session, State, Verdict
from workers.source import SourceContext
from workers.sources.api_key import ApiKey
from workers.sources.market_hours import market_hours
from workers.sources.observed import Observed
from workers.sources.polled_loop import MAX_PAUSE_NS, PolledLoop
from workers.sources.polled_monitor import PolledMonitor
from workers.sources.polled_requests import PolledRequests
from workers.sources.polled_witness import PolledWitness
from workers.sources.tls import tls_context
from workers.sources.vendor import Job, Vendor
from workers.spec import FeedReport

log = logging.getLogger("polled")

REFUSED_RETRY_NS: Final = 3_600_000_000_000  # what the vendor does not serve is asked for again so seldom
_NEVER_S: Final = 1e8  # deadlines of sessions that mean nothing here: requests have their own


class Batch:
    """What one answer brought, on its way into the ring. `given` records of it have been handed out.

    `told` of them a capture knows. `rows` are their places in the answer, `flags` what each was given for its novelty.
    """

    def __init__(
        self,
        job: Job,
        answer_ns: int,
        records: np.ndarray,
        known_by: tuple[list[int], list[int]],
        sifted: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Nothing is given yet."""
        self.job = job
        self.answer_ns = answer_ns
        self.records = records
        self.keys, self.vintages = known_by
        self.rows, self.flags = sifted
        self.given = 0
        self.told = 0


class PolledSource:
    """See the module and `workers.source.LiveSource`."""

    tells = True
    asks = True  # what it has depends on when it asks

    def __init__(self, context: SourceContext, vendor: Vendor, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Open the budget and the memory; requests are made by the polls.

        Raises:
            SettingsError: options that can't work.
            SourceError: files that can't be used now.
        """
        spec, options = context.spec, vendor.options
        self._spec = spec
        self._vendor = vendor
        self._key = vendor.key or ApiKey("", "")
        self._clock = clock
        self._wire = PolledWitness(context.wire, vendor)
        self._published = context.published
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        if not context.folder and not context.budgets:
            raise SettingsError(f"feed {spec.name}: source {spec.source!r} needs a folder for its key's budget")
        tls = tls_context(spec.name, verify=options.tls_verify, ca_file=options.ca_file)
        self._hours = market_hours(spec.name, options.session)
        self._session = Session(
            random.Random(f"{spec.name} {context.epoch}"),
            limits=Limits(connect_s=_NEVER_S, first_data_s=_NEVER_S, message_s=_NEVER_S, stale_s=_NEVER_S),
            acknowledged=False,
        )
        self._monitor = PolledMonitor(spec.feed_id, vendor, self._session, self._hours, context.counter)
        self._poll_ns = round(options.poll_s * 1e9)
        self._told: deque[tuple[StatusCode, str]] = deque()
        self._batch: Batch | None = None
        self._working = True  # a request, decoding or remembering is under way
        self._may_ask = False  # the session says so
        self._requests = PolledRequests(context, vendor, self._wire, tls=tls, hours=self._hours, clock=clock)
        try:
            memory = Path(context.folder) / "observed" if context.folder else None
            self._observed = Observed(memory, f"{spec.source} {spec.name}")
        except SourceError:
            self._requests.close()
            raise
        self._loop = PolledLoop()
        self.fd = self._loop.fd
        self._task = self._loop.spawn(self._recall())

    @property
    def errors(self) -> int:
        """See `Source`."""
        return self._monitor.errors

    @property
    def report(self) -> FeedReport:
        """See `LiveSource`."""
        return self._monitor.report

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        if self._task.done() and not self._task.cancelled() and (fault := self._task.exception()) is not None:
            raise fault
        batch = self._batch
        if batch is not None:
            self._tell_capture(batch, now_ns)  # given in an earlier poll: the ring has it
        if batch is not None and batch.given == len(batch.records):
            self._batch, self._working = None, True
            self._task = self._loop.spawn(self._keep(batch))
        count = self._drain(out, 0)
        self._obey(self._session.tick(now_ns, expected=False), now_ns)
        self._ask_next(now_ns)
        self._loop.turn()
        self.bytes_received = self._requests.bytes_received
        count = self._drain(out, count)
        if now_ns >= self._monitor.due_ns:
            self._look(now_ns)
            count = self._drain(out, count)
        self._monitor.note(now_ns, self._requests)
        self.next_due_ns = self._due_ns(now_ns)
        return count

    def _due_ns(self, now_ns: int) -> int:
        if self._told or self._batch is not None:
            return now_ns
        due_ns = min(self._session.due_ns, self._monitor.due_ns)
        if self._working:
            return min(due_ns, now_ns + MAX_PAUSE_NS)
        if self._may_ask and (asks_ns := self._requests.due_ns(now_ns)) is not None:
            due_ns = min(due_ns, asks_ns)
        return due_ns

    def _drain(self, out: np.ndarray, count: int) -> int:
        """Fill `out` from `count` on; returns how far it is filled."""
        raw = out.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)
        while self._told and count < len(out):
            code, text = self._told.popleft()
            row = status_record(
                code, text=text, feed_id=self._spec.feed_id, source=self._vendor.SOURCE, ts_event=self._clock()
            )
            raw[count] = np.frombuffer(row, np.uint8)
            count += 1
        batch = self._batch
        if batch is not None:
            more = min(len(out) - count, len(batch.records) - batch.given)
            rows = batch.records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)
            raw[count : count + more] = rows[batch.given : batch.given + more]
            batch.given += more
            count += more
        return count

    # -- asking

    def _ask_next(self, now_ns: int) -> None:
        if self._working or self._batch is not None or not self._may_ask:
            return
        job = self._requests.take(now_ns)
        if job is None:
            return
        self._working = True
        self._monitor.asked()
        self._task = self._loop.spawn(self._ask(job, now_ns))

    async def _ask(self, job: Job, taken_ns: int) -> None:
        """One request, and all that comes of it but the publishing."""
        import aiohttp

        try:
            status, body = await self._requests.get(job)
            now_ns = self._clock()
            self._wire.answered(job, status, body, now_ns)
            batch, found = await asyncio.to_thread(self._take, job, status, body, now_ns)
            self._answered(batch, found, self._clock())
        except VendorError as error:
            self._refused(job, error, self._clock())
        except aiohttp.ClientConnectorError as error:
            self._requests.unsent(taken_ns)
            self._lost(job, Verdict(self._words(error)))
        except TimeoutError:
            self._lost(job, Verdict(f"no answer within {self._vendor.options.timeout_s:g} s"))
        except (aiohttp.ClientError, OSError, ValueError, SourceError) as error:
            self._lost(job, Verdict(self._words(error)))
        finally:
            self._working = False

    def _take(self, job: Job, status: int, body: bytes, now_ns: int) -> tuple[Batch, Observations]:
        """In the thread: decode, and leave out what was published before."""
        found = self._vendor.read(job, status, body, now_ns)
        if not job.offset:
            job.history = self._observed.is_new(job.name)
        rows, flags = self._observed.sift(job.name, found, history=job.history)
        records = empty(len(rows))
        wanted = found.records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[rows]
        records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[:] = wanted
        records["flags"] |= flags
        records["ts_receive"] = now_ns
        records["instrument_id"] = job.instrument_id
        records["feed_id"] = self._spec.feed_id
        records["source"] = self._vendor.SOURCE
        records["venue"] = self._vendor.VENUE
        known_by = found.keys[rows].tolist(), found.vintages[rows].tolist()
        return Batch(job, now_ns, records, known_by, (rows, flags)), found

    def _answered(self, batch: Batch, found: Observations, now_ns: int) -> None:
        """A good answer, new or not."""
        job, records = batch.job, batch.records
        if len(records):
            self._batch = batch
        job.refused, job.answered_ns = "", now_ns
        job.was_open = self._hours is not None and self._hours.is_open(now_ns)
        news = bool(len(records)) or not job.moves
        self._monitor.answered(
            job,
            now_ns,
            missing=found.missing,
            malformed=found.malformed,
            corrected=int(np.count_nonzero(records["flags"] & np.uint16(Flag.CORRECTED))),
            news=news,
        )
        had = job.offset + len(found.records) + found.missing + found.malformed
        if had > job.offset and found.total > had:
            job.offset, job.due_ns = had, now_ns
        else:
            job.offset, job.due_ns = 0, now_ns + self._poll_ns
        self._obey(self._session.opened(now_ns), now_ns)
        if self._session.state is not State.STALE or news:
            self._obey(self._session.heard(now_ns), now_ns)

    def _refused(self, job: Job, error: VendorError, now_ns: int) -> None:
        """The vendor said something else than observations."""
        text = self._key.redact(str(error))
        if isinstance(error, SlowDown):
            self._wire.failed(job, self._requests.slow_down(text, error.wait_s, now_ns), now_ns)
            return
        if isinstance(error, KeyRefused):
            self._lost(job, Verdict(f"the key in {self._key.variable} is refused: {text}", lasting=True))
            return
        if not isinstance(error, NotServed):
            self._lost(job, Verdict(text))
            return
        self._monitor.refused(now_ns)
        self._wire.failed(job, text, now_ns)
        log.warning("feed %s: %s is refused: %s", self._spec.name, job.name, text)
        job.refused, job.offset = text, 0
        job.due_ns = now_ns + max(self._poll_ns, REFUSED_RETRY_NS)
        if all(one.refused for one in self._vendor.jobs):
            wait_s = (min(one.due_ns for one in self._vendor.jobs) - now_ns) / 1e9
            self._obey(self._session.lost(now_ns, Verdict(f"{job.name}: {text}", wait_s, lasting=True)), now_ns)

    def _lost(self, job: Job, verdict: Verdict) -> None:
        now_ns = self._clock()
        self._wire.failed(job, verdict.reason, now_ns)
        job.due_ns = now_ns  # after those that are due before it
        self._monitor.lost(now_ns)
        log.warning("feed %s: %s: %s", self._spec.name, job.name, verdict.reason)
        self._obey(self._session.lost(now_ns, verdict), now_ns)

    def _obey(self, actions: list[Do], now_ns: int) -> None:
        for action in actions:
            if action is Do.CONNECT:
                self._may_ask = True
            elif action is Do.CLOSE:
                self._may_ask, self._requests.waiting = False, 0
                self._monitor.reconnected(now_ns)
            elif action is Do.UP:
                self._told.append((StatusCode.FEED_UP, f"{self._vendor.NAME} delivers"))
            elif action is Do.DOWN:
                self._told.append((StatusCode.FEED_DOWN, self._session.why))

    def _words(self, error: BaseException) -> str:
        return self._key.redact(" ".join((str(error) or type(error).__name__).split())[:200])

    # -- what was published

    def _tell_capture(self, batch: Batch, now_ns: int) -> None:
        """What has been given since the last time."""
        told, batch.told = batch.told, batch.given
        new = slice(told, batch.given)
        self._wire.published(batch.job, batch.answer_ns, batch.rows[new], batch.flags[new], now_ns)

    async def _recall(self) -> None:
        """Before the first request: what a worker that was killed had published last stands in the ring."""
        try:
            await asyncio.to_thread(self._recall_now)
        except (SourceError, OSError) as error:
            self._forgetful(error)
        finally:
            self._working = False

    def _recall_now(self) -> None:
        import aiohttp  # noqa: F401 -- needed soon; takes 0.15 s, which here keep nobody waiting

        if self._published is None:
            return
        jobs = {(job.instrument_id, int(job.kind), job.interval_s): job for job in self._vendor.jobs}
        for piece in self._published():
            mine = piece[piece["source"] == self._vendor.SOURCE] if len(piece) else piece
            for (instrument_id, kind, interval_s), job in jobs.items():
                chosen = (mine["instrument_id"] == instrument_id) & (mine["record_type"] == kind)
                if interval_s:
                    chosen &= mine["interval_s"] == interval_s
                if chosen.any():
                    raw = np.ascontiguousarray(mine).view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[chosen]
                    records = raw.reshape(-1).view(RECORD)
                    keys, vintages = self._vendor.known_by(records)
                    self._observed.published(job.name, records, keys.tolist(), vintages.tolist())

    async def _keep(self, batch: Batch) -> None:
        """The ring has it."""
        try:
            await asyncio.to_thread(self._observed.published, *_kept(batch))
            self._monitor.remembers()
        except SourceError as error:
            self._forgetful(error)
        finally:
            self._working = False

    def _forgetful(self, error: Exception) -> None:
        """This process remembers, the next one may not: said in the report until it works again."""
        self._monitor.forgetful(str(error))
        log.error("feed %s: %s", self._spec.name, error)

    # -- how it is

    def _look(self, now_ns: int) -> None:
        """Once a second: silence, warnings."""
        if why := self._monitor.look(now_ns, self._requests):
            self._obey(self._session.silent(now_ns, why), now_ns)
        self._told.extend((StatusCode.FEED_DEGRADED, warning) for warning in self._monitor.warnings(now_ns))

    # -- the rest of a source

    def skip(self, records: int) -> None:
        """Not possible: what was published before is never given again."""
        raise NotImplementedError(f"a live feed has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """Nothing to do: a paused live feed is closed, and opened anew."""

    def close(self) -> None:
        """See `Source.close`. What was handed out is remembered."""
        if self.fd < 0:
            return
        self.fd = -1
        self._session.stop(self._clock())
        if self._requests.connected:
            self._loop.spawn(self._requests.hang_up())
            self._loop.turn()
        self._loop.close()
        try:
            if self._batch is not None and self._batch.given:
                self._tell_capture(self._batch, self._clock())
                self._observed.published(*_kept(self._batch))
        except SourceError as error:
            self._forgetful(error)
        self._observed.close()
        self._requests.close()


def _kept(batch: Batch) -> tuple[str, np.ndarray, list[int], list[int]]:
    """What of a batch was handed out, for `Observed.published`."""
    given = batch.given
    return batch.job.name, batch.records[:given], batch.keys[:given], batch.vintages[:given]
