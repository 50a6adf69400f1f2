"""The host of a plug-in: a source that another package brings, with everything it may do wrong kept to its own feed.

    import    in a thread, while the process goes on beating: importing takes as long as it takes, up to `open_s`
    open      the class is called with a SourceContext, in the worker's thread as every poll is
    poll      into an array of its own; what comes back is checked (workers/plugin_checks.py), stamped, handed on

    it raises             told with its reason; closed, made anew by the rules of workers/session.py
    a record is wrong     left out, counted as an error of the feed, told; the rest goes on
    it returns nonsense   as if it had raised
    it blocks, or kills   the worker hosts nothing else (engine/plan.py); the supervisor ends and restarts it. What was
    its process           being done stands in a counter that outlives the process, so that the next one can say so,
                          and after BLOCKS_TO_FAIL in a row lets it rest
    it floods             `limits.max_rate`: it gets less room in `out`, then is not polled; it has a ring of its own

Made by workers.source.open_source for a name that is not built in. It knows no ring and no other feed.
"""

from __future__ import annotations

import logging
import random
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from shm.errors import ShmError
from shm.layout import RECORD, RecordType, StatusCode, empty
from shm.ring import status_record
from shm.status import Counter
from workers import plugins
from workers.cadence import Cadence
from workers.errors import SettingsError, SourceError, WorkerError
from workers.plugin_checks import Fault, Interned, examine
from workers.plugin_limits import KEY, read_limits
from workers.session import Do, Limits, Session, State, Verdict
from workers.source import SourceContext, check_source
from workers.spec import FeedReport

BATCH: Final = 2048  # records of one poll at most
BLOCKS_TO_FAIL: Final = 3  # ends of the process within the plug-in, one after the other
FORGET_BLOCKS_NS: Final = 30_000_000_000
FAILED_S: Final = 60.0  # a plug-in that blocks again and again rests so long, then twice as long, ...
LONGEST_FAILED_S: Final = 600.0
REPORT_EVERY_NS: Final = 1_000_000_000
TELL_FAULTS_EVERY_NS: Final = 10_000_000_000
IMPORT_LOOK_NS: Final = 5_000_000
IDLE_NS: Final = 1_000_000  # until the next poll of one that had nothing and names no time
BURST_S: Final = 0.1  # of `max_rate` may come at once
_DAY_NS: Final = 86_400_000_000_000

NOWHERE: Final = 0  # values of the counter `plugin.FEED.inside`
DOING: Final = ("", "its import", "its constructor", "poll()", "close()")

log = logging.getLogger("plugin")


class Told(NamedTuple):
    """A status record that is still to be handed out."""

    code: StatusCode
    text: str


class _Import(threading.Thread):
    """Imports a plug-in's class; a thread that never ends is left to the end of the process."""

    def __init__(self, plugin: plugins.Plugin) -> None:
        super().__init__(name=f"import {plugin.name}", daemon=True)
        self.made: Callable[[SourceContext], Any] | None = None
        self.error: BaseException | None = None
        self._plugin = plugin
        self.start()

    def run(self) -> None:
        try:
            self.made = self._plugin.entry.load()
        except BaseException as error:  # noqa: BLE001  whatever a foreign module raises, it is told by the main thread
            self.error = error


class HostedSource:
    """See the module and `workers.source.LiveSource`."""

    tells = True

    def __init__(self, context: SourceContext) -> None:
        """Check that there is such a plug-in, and its limits. Nothing of it is imported yet. Raises SettingsError."""
        check_source(context.spec)
        found = plugins.find(context.spec.source)
        assert found is not None, context.spec.source
        spec = context.spec
        self._plugin = found
        self._limits = read_limits(spec)
        options = {key: value for key, value in spec.options.items() if key != KEY}
        self._context = SourceContext(
            msgspec.structs.replace(spec, options=options), self._intern, context.epoch, context.counter
        )
        self._give_id = context.intern
        self._ids: dict[str, int] = {}
        self._interned = Interned()
        self.errors = self.gaps = self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self._page = empty(BATCH)
        self._used = 0  # rows of the page that are not zero
        self._source: Any = None
        self._fd: int | None = None
        self._importing: _Import | None = None
        self._make: Callable[[SourceContext], Any] | None = None
        self._seen = (0, 0, 0)
        self._told: deque[Told] = deque()
        self._tokens = self._limits.max_rate * BURST_S
        self._filled_ns = 0
        self._last_fault = ""
        self._next_fault_ns = 0
        self._next_look_ns = 0
        self._reported: tuple[State, str] | None = None
        self._cadence = Cadence(factor=self._limits.stale_factor, floor_s=self._limits.stale_floor_s)
        dice = random.Random(f"{spec.name} {context.epoch}")
        self.session = Session(dice, limits=Limits(connect_s=self._limits.open_s), acknowledged=False)
        self.report = FeedReport(feed_id=spec.feed_id, state=State.RECOVER.value, why="not opened yet")
        self._selector = selectors.DefaultSelector()
        self.fd: int = self._selector.fileno()

        def counter(name: str) -> Counter:
            return (context.counter or _uncounted)(f"plugin.{spec.feed_id}.{name}")

        self._inside, self._blocked = counter("inside"), counter("blocked")
        self._in_a_row, self._held_back = counter("blocked_in_a_row"), counter("held_back")
        self._refused = counter("refused")
        self._died_in = DOING[min(self._inside.value, len(DOING) - 1)]  # of the process before this one
        if self._died_in:
            self._inside.set(NOWHERE)
            self._in_a_row.add()
            self._blocked.add()

    # -- the source

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        if self._died_in:
            self._heed_the_dead(now_ns)
        else:
            self._do(self.session.tick(now_ns, expected=False), now_ns)
        if self.session.state is State.CONNECT:
            self._open(now_ns)
        count = self._tell(out, now_ns)
        polled = False
        if self._source is not None and count < len(out) and (room := self._room(len(out) - count, now_ns)):
            count += self._take(out[count:], room, now_ns)
            polled = True
            count += self._tell(out[count:], now_ns)
        self._note(now_ns)
        self._set_due(now_ns, polled=polled)
        return count

    def skip(self, records: int) -> None:
        """Not possible: what a plug-in has given is gone."""
        raise NotImplementedError(f"a plug-in has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """Nothing to do: a paused plug-in is closed, and opened anew."""

    def close(self) -> None:
        """See `Source.close`."""
        self._shut()
        self._selector.close()

    # -- import, open, close

    def _heed_the_dead(self, now_ns: int) -> None:
        """The process before this one ended within the plug-in."""
        row = self._in_a_row.value
        why = f"{self._named} blocked or crashed in {self._died_in}, and its process was ended"
        self._died_in = ""
        if row > 1:
            why += f", {row} times in a row"
        lasting = row >= BLOCKS_TO_FAIL
        wait_s = min(LONGEST_FAILED_S, FAILED_S * 2.0 ** (row - BLOCKS_TO_FAIL)) if lasting else 0.0
        self.session.tick(now_ns, expected=False)
        self._lost(now_ns, Verdict(why, retry_after_s=wait_s, lasting=lasting))

    def _open(self, now_ns: int) -> None:
        """Import and construct; called again until that is done."""
        if self._make is None:
            if self._importing is None:
                self._inside.set(DOING.index("its import"))
                self._importing = _Import(self._plugin)
            thread = self._importing
            if thread.is_alive():
                return
            self._inside.set(NOWHERE)
            self._importing = None
            if thread.error is not None or not callable(thread.made):
                error = thread.error or TypeError(f"{self._plugin.entry.value} is no class")
                self._lost(now_ns, Verdict(f"{self._named} can't be imported: {_words(error)}"))
                return
            self._make = thread.made
        returned, source = self._call("its constructor", self._make, self._context, now_ns=now_ns)
        if not returned:
            return
        self._source, self._seen = source, (0, 0, 0)
        if not callable(getattr(source, "poll", None)):
            self._lost(now_ns, Verdict(f"{self._named}: {type(source).__name__} has no poll()", lasting=True))
            return
        self._do(self.session.opened(now_ns), now_ns)

    def _shut(self) -> None:
        source, self._source = self._source, None
        self._watch(None)
        if source is not None and callable(getattr(source, "close", None)):
            self._inside.set(DOING.index("close()"))
            try:
                source.close()
            except (Exception, SystemExit) as error:  # noqa: BLE001  it is being closed because of its faults
                log.warning("feed %s: %s: close(): %s", self._context.spec.name, self._named, _words(error))
            self._inside.set(NOWHERE)

    def _watch(self, fd: object) -> None:
        """Be woken by this descriptor and by no other."""
        if fd == self._fd:
            return
        if self._fd is not None:
            try:
                self._selector.unregister(self._fd)
            except (KeyError, OSError, ValueError):
                pass  # closed meanwhile
        self._fd = None
        if isinstance(fd, int) and fd >= 0:
            try:
                self._selector.register(fd, selectors.EVENT_READ)
                self._fd = fd
            except (KeyError, OSError, ValueError) as error:
                log.warning("feed %s: %s: fd %s: %s", self._context.spec.name, self._named, fd, error)

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any, now_ns: int) -> tuple[bool, Any]:
        """Call into the plug-in: (True, what it returned); (False, None) if it raised, which ends its session."""
        self._inside.set(DOING.index(doing))
        try:
            return True, function(*arguments)
        except (Exception, SystemExit) as error:  # a plug-in's fault harms its own feed only
            expected = isinstance(error, (SourceError, SettingsError, OSError))
            log.warning("feed %s: %s: %s", self._context.spec.name, self._named, _words(error), exc_info=not expected)
            verdict = Verdict(f"{self._named}: {doing}: {_words(error)}", lasting=isinstance(error, SettingsError))
            self._inside.set(NOWHERE)
            self._lost(now_ns, verdict)
            return False, None
        finally:
            self._inside.set(NOWHERE)

    # -- records

    def _room(self, free: int, now_ns: int) -> int:
        """How many records it may hand out now."""
        rate = self._limits.max_rate
        passed_s = (now_ns - self._filled_ns) / 1e9 if self._filled_ns else 0.0
        self._tokens = min(max(1.0, rate * BURST_S), self._tokens + rate * max(0.0, passed_s))
        self._filled_ns = now_ns
        if self._tokens < 1.0:
            self._held_back.add()
        return min(free, BATCH, int(self._tokens))

    def _take(self, out: np.ndarray, room: int, now_ns: int) -> int:
        """One poll of the plug-in, checked, into `out`."""
        page = self._page[:room]
        self._page[: self._used].view(np.uint8)[:] = 0
        self._used = room  # in case it raises
        returned, count = self._call("poll()", self._source.poll, page, now_ns, now_ns=now_ns)
        if not returned:
            return 0
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 <= count <= room:
            what = f"{count!r} of {room} records" if isinstance(count, int) else f"{type(count).__name__}, not a number"
            self.errors += 1
            self._lost(now_ns, Verdict(f"{self._named}: poll() returned {what}"))
            return 0
        self._used = count = int(count)
        self.session.message(now_ns)
        self._count_source()
        if not count:
            return 0
        self._tokens -= count
        records = page[:count]
        good, faults = examine(records, self._interned, now_ns)
        if good is not None:
            self._refuse(faults, now_ns)
            left = records.view(np.uint8).reshape(count, -1)[good]  # as bytes: numpy would repack overlapping fields
            records = np.frombuffer(bytearray(left.tobytes()), RECORD)
            count = len(records)
            if not count:
                return 0
        spec = self._context.spec
        for field in ("ts_event", "ts_receive"):
            times = records[field]
            times[times == 0] = now_ns
        records["feed_id"], records["source"] = spec.feed_id, spec.source_code
        out[:count].view(np.uint8)[:] = records.view(np.uint8)
        market = records["instrument_id"][records["record_type"] != RecordType.STATUS]
        if len(market):
            self._cadence.heard(set(market.tolist()), now_ns)
            self._do(self.session.heard(now_ns), now_ns)
        return count

    def _refuse(self, faults: list[Fault], now_ns: int) -> None:
        count = sum(fault.records for fault in faults)
        self.errors += count
        self._refused.add(count)
        self._last_fault = str(faults[0])
        if now_ns >= self._next_fault_ns:
            self._next_fault_ns = now_ns + TELL_FAULTS_EVERY_NS
            text = "; ".join(map(str, faults))
            log.warning("feed %s: %s: left out: %s", self._context.spec.name, self._named, text)
            self._told.append(Told(StatusCode.REJECTED, text))

    def _intern(self, symbol: str) -> int:
        """What the plug-in interns with: bounded, and remembered."""
        found = self._ids.get(symbol)
        if found is None:
            if len(self._ids) >= self._limits.max_symbols:
                raise SourceError(f"more than limits.max_symbols, {self._limits.max_symbols}, symbols: {symbol!r}")
            try:
                found = self._give_id(symbol)
            except ShmError as error:
                raise SourceError(str(error)) from error
            self._ids[symbol] = found
            self._interned.add(found)
        return found

    def _count_source(self) -> None:
        """Take over what the plug-in has counted; what is no count is passed over."""
        now = tuple(_count(self._source, name) for name in ("errors", "gaps", "bytes_received"))
        for name, old, new in zip(("errors", "gaps", "bytes_received"), self._seen, now, strict=True):
            setattr(self, name, getattr(self, name) + max(0, new - old))
        self._seen = now  # type: ignore[assignment]  # three of them

    # -- what becomes of it

    @property
    def _named(self) -> str:
        return f"{self._plugin.name} ({self._plugin.package})"

    def _lost(self, now_ns: int, verdict: Verdict) -> None:
        if self.session.state in (State.RECOVER, State.FAILED):
            return
        self.errors += 1
        self._do(self.session.lost(now_ns, verdict), now_ns, always_down=True)

    def _do(self, actions: list[Do], now_ns: int, *, always_down: bool = False) -> None:
        for action in actions:
            if action is Do.CLOSE:
                self._shut()
            elif action is Do.UP:
                self._cadence.restart(now_ns)
                self._told.append(Told(StatusCode.FEED_UP, self._named))
            elif action is Do.DOWN:
                always_down = False
                self._told.append(Told(StatusCode.FEED_DOWN, self.session.why))
        if always_down:
            self._told.append(Told(StatusCode.FEED_DOWN, self.session.why))

    def _tell(self, out: np.ndarray, now_ns: int) -> int:
        """Hand out status records, as far as there is room."""
        count = 0
        spec = self._context.spec
        while self._told and count < len(out):
            told = self._told.popleft()
            row = status_record(told.code, text=told.text, feed_id=spec.feed_id, ts_event=now_ns)
            out[count : count + 1].view(np.uint8)[:] = np.frombuffer(row, np.uint8)
            out["source"][count] = spec.source_code
            count += 1
        return count

    def _note(self, now_ns: int) -> None:
        """Silence, and a new report when something has changed or a second is over."""
        session = self.session
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + REPORT_EVERY_NS
            silent = self._cadence.silent(now_ns)
            if silent and len(silent) == len(self._cadence):
                usual = f"{silent[-1].silent_s:.1f} s; {silent[-1].allowed_s:.1f} s would be usual"
                self._do(session.silent(now_ns, f"every symbol silent for {usual}"), now_ns)
            if self._in_a_row.value and session.up_since_ns and now_ns - session.up_since_ns > FORGET_BLOCKS_NS:
                self._in_a_row.set(0)
            self._watch(None)  # a descriptor that was closed and made anew has the same number
        if self._reported == (session.state, session.why) and now_ns - self.report.at_ns < REPORT_EVERY_NS:
            return
        self._reported = (session.state, session.why)
        live = session.state is State.LIVE
        why = session.why
        if self._importing is not None:
            why = f"importing {self._named}"
        elif session.state is State.SUBSCRIBE:
            why = f"{self._named} is open, waits for the first record"
        elif live and self._last_fault:
            why = f"{why}; {self._refused.value} records left out: {self._named}: {self._last_fault}"
        self.report = FeedReport(
            feed_id=self._context.spec.feed_id,
            state=session.state.value,
            why=why,
            health_score=0.0 if not live else 0.5 if self._last_fault else 1.0,
            degraded=live and bool(self._last_fault),
            breaker=session.breaker.state.value,
            retry_at_ns=session.due_ns if session.state in (State.RECOVER, State.FAILED) else 0,
            reconnects=session.reconnects,
            errors=self.errors,
            at_ns=now_ns,
        )

    def _set_due(self, now_ns: int, *, polled: bool) -> None:
        if self._importing is not None and self.session.state is State.CONNECT:
            self.next_due_ns = now_ns + IMPORT_LOOK_NS
            return
        due_ns = self._next_look_ns
        if self._told:
            due_ns = now_ns
        elif self._source is None:
            due_ns = min(due_ns, self.session.due_ns)
        elif not polled:  # held back
            self._watch(None)
            due_ns = min(due_ns, now_ns + max(IDLE_NS, round(BURST_S / 10 * 1e9)))
        else:
            wanted = getattr(self._source, "next_due_ns", 0)
            if wanted is None:
                self.next_due_ns = None
                return
            if not isinstance(wanted, int | np.integer) or isinstance(wanted, bool):
                self._lost(now_ns, Verdict(f"{self._named}: next_due_ns is {wanted!r}, not a time in ns"))
                wanted = now_ns + IDLE_NS
            else:
                self._watch(getattr(self._source, "fd", None))
            floor_ns = now_ns if self._used else now_ns + IDLE_NS
            due_ns = min(due_ns, max(int(wanted), floor_ns))
        self.next_due_ns = due_ns


class _Uncounted:
    """A counter that nobody reads."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, more: int = 1) -> None:
        self.value += more

    def set(self, value: int) -> None:
        self.value = value


def _uncounted(_: str) -> Any:
    return _Uncounted()


def _count(source: Any, name: str) -> int:
    value = getattr(source, name, 0)
    return int(value) if isinstance(value, int | np.integer) else 0


def _words(error: BaseException) -> str:
    if isinstance(error, WorkerError):
        return str(error)  # the author's own words
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
