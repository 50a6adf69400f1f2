"""An asyncio loop that is run by turns, inside the ingest worker's own loop: no thread, no queue between threads.

`turn` runs what is ready and returns; `fd` is readable when a socket has something, so that the worker sleeps on it
together with everything else it waits for. Between two turns bytes wait in the kernel's socket buffers: what the worker
does not take, TCP holds back, and nothing is dropped on this host.

Chosen over a loop in a thread with a queue: a turn costs 5 µs, while waking a thread and passing the interpreter lock
back costs several times that for each message, and needs a queue with a policy of its own. The price: timers of the
loop are as precise as the turns are frequent (MAX_PAUSE_NS).

Used by live sources. Not thread-safe.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final

MAX_PAUSE_NS: Final = 50_000_000  # timers of the loop wait no longer than this for a turn
_CLOSING_TURNS: Final = 20


class _Selector(selectors.DefaultSelector):
    """The system's own; `found`: whether anything was ready when it was last asked."""

    found = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector`."""
        ready = super().select(timeout)
        self.found = bool(ready)
        return ready


class PolledLoop:
    """See the module."""

    def __init__(self) -> None:
        """Make the loop; nothing runs yet."""
        self._selector = _Selector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._loop.set_exception_handler(lambda _loop, _context: None)  # tasks report what concerns them
        self._tasks: set[asyncio.Task[None]] = set()
        self.fd: int = self._selector.fileno()  # epoll and kqueue have one

    def turn(self) -> None:
        """Run what is ready now, and once more if sockets had something; never waits.

        The second round is for the end of a connection, which is read in one and told in the next, although no
        descriptor is readable any more. `unfinished` says that the second one has read something too.
        """
        self._round()
        if self._selector.found:
            self._round()

    def _round(self) -> None:
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()

    @property
    def unfinished(self) -> bool:
        """Whether another turn is due at once, readable or not."""
        return self._selector.found

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine; it runs in the turns that follow."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def busy(self) -> bool:
        """Whether a coroutine is under way, whose timers want turns."""
        return bool(self._tasks)

    def close(self) -> None:
        """Cancel what runs, and close. Safe to call twice."""
        if self._loop.is_closed():
            return
        for task in list(self._tasks):
            task.cancel()
        for _ in range(_CLOSING_TURNS):
            self.turn()
        self._loop.close()
