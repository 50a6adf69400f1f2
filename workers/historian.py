"""The historian process: what L1 no longer has, from the stores below it, for GET /data.

Started as `python -m workers.historian` by the control process, which alone asks it (ROUTER, ipc). It reads no ring,
writes nothing, and changes nothing in any store.

    main thread     sleeps on its socket; takes questions into a queue of `max_waiting`, sends answers, beats
    one thread      answers one question after the other: walks L2, then L3 (workers/tier_walk.py)

    L2   Redis, if configured; the journal        L3   PostgreSQL, if configured; the Parquet archive

All of them are asked, the local ones too: they are exact, and what lacks in a store that lags behind is in them. A
question is refused as busy when the queue is full, and dropped when its time is over. Heavy libraries are imported by
the stores with the first question that needs them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from shm.layout import RECORD, RecordType
from shm.status import StatusBlock
from workers.bulk import NoLibrary, to_file
from workers.journal_tier import JournalTier
from workers.parquet_tier import ParquetTier
from workers.runtime import Runtime, main
from workers.spec import Found, HistorianSettings, Question, decode_question, encode_found
from workers.store import with_password
from workers.tier import Key, Tier, Wanted
from workers.tier_order import key_of
from workers.tier_walk import Walked, walk

WAIT_MS: Final = 200
CATCH_UP_S: Final = 1.0  # how long it waits for the recorder to have written what has left L1
_CATCH_UP_POLL_S: Final = 0.002
_WAKE: Final = "inproc://answered"

log = logging.getLogger("historian")


class Historian:
    """Answers questions; not thread-safe, used by the one thread."""

    def __init__(self, settings: HistorianSettings, block: StatusBlock | None = None) -> None:
        """Nothing is opened yet. `block` tells how far the recorder is; None = not asked."""
        folder, timeout_s = Path(settings.folder), settings.store_timeout_s
        self.journal = JournalTier(folder / "journal", timeout_s)
        self.tiers: list[Tier] = []
        if settings.redis_url:
            self.tiers.append(_redis(settings))
        self.tiers.append(self.journal)
        if settings.postgres_dsn:
            self.tiers.append(_postgres(settings))
        self.tiers.append(ParquetTier(folder / "parquet", timeout_s))
        self._block = block

    def answer(self, question: Question) -> tuple[Found, bytes]:
        """The answer and its records, or its file."""
        kind = RecordType(question.kind) if question.kind else None
        before = Key(*question.before) if question.before is not None else None
        wanted = Wanted(question.symbol, kind, question.from_ns, question.to_ns, before, question.limit)
        newer = np.frombuffer(question.newer, RECORD)
        behind = self._catch_up(question)
        walked = walk(self.tiers, wanted, newer, lambda: time.monotonic_ns() > question.deadline_ns)
        missing = (*walked.missing, *behind)
        records = walked.records
        if question.form == "records":
            body = records.tobytes()
        else:
            try:
                body = to_file(records, question.symbol, kind, question.form)
            except NoLibrary as error:
                return Found(number=question.number, refused=f"format: {question.form} {error}"), b""
        return (
            Found(
                number=question.number,
                count=len(records),
                oldest=tuple(key_of(records[0])) if len(records) else None,  # type: ignore[arg-type]  # three of them
                asked=walked.asked,
                gave=walked.gave,
                missing=missing,
                known=bool(len(records)) or not question.probe or self._knows(question, walked),
            ),
            body,
        )

    def close(self) -> None:
        """Let go of every store."""
        for tier in self.tiers:
            tier.close()

    def _knows(self, question: Question, walked: Walked) -> bool:
        """Whether any store has anything of the symbol; no store that is down can deny it."""
        found = walk(
            self.tiers,
            Wanted(question.symbol, None, None, None, None, 1),
            np.empty(0, RECORD),
            lambda: time.monotonic_ns() > question.deadline_ns,
        )
        return bool(len(found.records) or found.missing or walked.missing)

    def _catch_up(self, question: Question) -> tuple[str, ...]:
        """Wait until the journal has what has just left L1; says so where it does not come."""
        if not question.left_l1_ns or self._block is None:
            return ()
        deadline_s = time.monotonic() + CATCH_UP_S
        while True:
            late = self._late(question)
            if not late:
                return ()
            if time.monotonic() > deadline_s:
                return (f"L2 journal: the recorder has not written yet what ring {late[0]} had",)
            time.sleep(_CATCH_UP_POLL_S)

    def _late(self, question: Question) -> list[int]:
        """Rings of which something that has left L1 may not be in the journal yet."""
        recorder = self._block.process("recorder") if self._block is not None else None
        counters = recorder.counters if recorder is not None else {}
        late = [ring for ring, upto in question.applied.items() if counters.get(f"recorded.{ring}", 0) < upto]
        try:
            return [ring for ring in late if not self.journal.holds(ring, question.left_l1_ns)]
        except OSError:  # the journal can't be read at all: it says so itself when it is asked
            return []


def _redis(settings: HistorianSettings) -> Tier:
    from workers.redis_tier import RedisTier

    url = with_password(settings.redis_url, settings.redis_password)
    tier: Tier = RedisTier(url, settings.engine, settings.store_timeout_s)
    return tier


def _postgres(settings: HistorianSettings) -> Tier:
    from workers.postgres_tier import PostgresTier

    dsn = with_password(settings.postgres_dsn, settings.postgres_password)
    tier: Tier = PostgresTier(dsn, settings.engine, settings.store_timeout_s)
    return tier


class Desk:
    """Where questions come in and answers go out; the main thread's."""

    def __init__(self, runtime: Runtime[HistorianSettings]) -> None:
        """Listen."""
        settings, status = runtime.settings, runtime.status
        self._runtime = runtime
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(settings.endpoint)
        self._answered: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        self._answered.bind(_WAKE)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._answered, zmq.POLLIN)
        self._waiting: queue.Queue[tuple[bytes, Question] | None] = queue.Queue(settings.max_waiting)
        self._questions = status.counter("questions")
        self._refused = status.counter("questions_refused")
        self._expired = status.counter("questions_expired")
        self._failed = status.counter("questions_failed")
        self._damaged = status.counter("blocks_damaged")
        self._latency = status.histogram("answer_latency")
        self._thread = threading.Thread(target=self._answer_all, name="answers", daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """Sleep until there is something to do, at most WAIT_MS; do it."""
        for socket, _ in self._poller.poll(WAIT_MS):
            while True:
                try:
                    frames: list[Any] = socket.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    break
                if socket is self._answered:
                    self._send(frames)
                elif len(frames) == 2:
                    self._take(frames[0], frames[1])

    def close(self) -> None:
        """Answer no more. A question at work is left where it is: the process ends."""
        self._socket.close()
        self._answered.close()

    def _take(self, asker: bytes, frame: bytes) -> None:
        try:
            question = decode_question(frame)
        except msgspec.DecodeError as error:
            log.warning("not a question: %s", error)
            return
        self._questions.add()
        try:
            self._waiting.put_nowait((asker, question))
        except queue.Full:
            self._refused.add()
            found = Found(number=question.number, refused=f"{self._waiting.maxsize} questions wait", busy=True)
            self._send([asker, encode_found(found), b""])

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:
            log.warning("answer dropped: %s", error)

    def _answer_all(self) -> None:
        """The thread's life. A question that fails is answered as refused and counted; the thread goes on."""
        out: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        out.linger = 0
        out.connect(_WAKE)
        historian: Historian | None = None
        while (item := self._waiting.get()) is not None:
            asker, question = item
            if time.monotonic_ns() > question.deadline_ns:
                self._expired.add()
                continue
            start_ns = time.monotonic_ns()
            try:
                if historian is None:
                    historian = Historian(self._runtime.settings, self._runtime.block)
                found, body = historian.answer(question)
                self._damaged.set(historian.journal.damaged)
            except Exception as error:  # the thread's outer loop: counted, said, and the next question is answered
                log.exception("question about %r failed", question.symbol)
                self._failed.add()
                found, body = Found(number=question.number, refused=f"failed ({type(error).__name__})"), b""
            self._latency.record(time.monotonic_ns() - start_ns)
            out.send_multipart([asker, encode_found(found), body])


def run(runtime: Runtime[HistorianSettings]) -> None:
    """Answer until asked to stop."""
    desk = Desk(runtime)
    try:
        runtime.ready()
        while not runtime.stopping:
            desk.turn()
            runtime.beat(time.time_ns())
    finally:
        desk.close()


if __name__ == "__main__":
    main("historian", HistorianSettings, run)
