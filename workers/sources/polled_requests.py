"""The requests of a polled feed: which is next, whether the key's budget allows it, and one at a time over HTTP.

    job due --budget--> take --> get --> status and body
                 '- waits, and says so

Kept by workers/sources/polled.py, which says when it may ask and what became of an answer, and moves the jobs' times.
Never reads what an answer means, and never asks by itself: the budget is taken, then the request goes out.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from workers.decoders.observations import SlowDown, Unusable
from workers.rate_budget import RateBudget
from workers.source import SourceContext
from workers.sources.channel import retry_after_s
from workers.sources.market_hours import MarketHours
from workers.sources.polled_witness import PolledWitness
from workers.sources.vendor import Job, Vendor, limits_of

MAX_ANSWER_BYTES: Final = 64 << 20
BUSY_WAIT_S: Final = 60.0  # HTTP 429 without Retry-After
LONGEST_WAIT_S: Final = 86_400.0  # longer is not believed: it would be remembered for ever
_CHUNK: Final = 1 << 16


class PolledRequests:
    """See the module.

    Attributes:
        waiting: jobs that are due and wait for the budget.
        slow: what the vendor said when it wanted us slower; "" = nothing since the last request.
        bytes_received: of answers, since the start.
    """

    def __init__(
        self,
        context: SourceContext,
        vendor: Vendor,
        wire: PolledWitness,
        *,
        tls: ssl.SSLContext | None,
        hours: MarketHours | None,
        clock: Callable[[], int],
    ) -> None:
        """Open the key's budget; nothing is asked for. `clock`: ns since the epoch. `hours`: None = always.

        Raises:
            SettingsError: limits that can't be kept.
            SourceError: the budget's file can't be used now.
        """
        self.waiting = 0
        self.slow = ""
        self.bytes_received = 0
        self._vendor = vendor
        self._wire = wire
        self._tls = tls
        self._hours = hours
        self._clock = clock
        self._http: Any = None
        self._budget_due_ns = 0  # when to ask the budget again
        # Budgets stand beside the engines' folders: engines that share a data directory share them.
        budgets = Path(context.budgets) if context.budgets else Path(context.folder).parent / ".budgets"
        key = vendor.key.value if vendor.key else ""
        self._budget = RateBudget(budgets, vendor.NAME, key, limits_of(vendor.options))

    def take(self, now_ns: int) -> Job | None:
        """What to ask for now, its request taken from the budget; None: nothing is due, or it has to wait."""
        if now_ns < self._budget_due_ns:
            return None
        job = self._next_job(now_ns)
        if job is None or job.due_ns > now_ns:
            self.waiting = 0
            return None
        wait_ns = self._budget.try_take(now_ns)
        self._budget_due_ns = now_ns + wait_ns
        if wait_ns:
            self.waiting = sum(job.due_ns <= now_ns for job in self._vendor.jobs)
            return None
        self.waiting, self.slow = 0, ""
        return job

    def due_ns(self, now_ns: int) -> int | None:
        """When `take` has something to do; None = there is nothing to ask for."""
        job = self._next_job(now_ns)
        return max(job.due_ns, self._budget_due_ns) if job is not None else None

    def _next_job(self, now_ns: int) -> Job | None:
        """What is asked for next. While the market is closed: what was never had, and once what its close left."""
        closed = self._hours is not None and not self._hours.is_open(now_ns)
        jobs = (job for job in self._vendor.jobs if not closed or job.was_open or not job.answered_ns or job.offset)
        return min(jobs, key=lambda job: job.due_ns, default=None)

    async def get(self, job: Job) -> tuple[int, bytes]:
        """Ask: HTTP status and body.

        Raises SlowDown, Unusable, TimeoutError, OSError and what aiohttp raises.
        """
        import aiohttp

        vendor, options = self._vendor, self._vendor.options
        if self._http is None:
            self._http = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=options.timeout_s),
                connector=aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True),
                headers={**vendor.headers, **options.headers},
            )
        request = vendor.request(job)
        self._wire.asked(job, request, self._clock())
        # A redirect would carry the key to where the vendor, or somebody in between, points.
        async with self._http.get(request.url, params=request.query, allow_redirects=False) as answer:
            if answer.status in (429, 503):
                asked = answer.headers.get("Retry-After", "").strip()
                wait_s = retry_after_s(asked, self._clock())
                if wait_s or answer.status == 429:
                    self._wire.answered(job, answer.status, b"", self._clock())
                    raise SlowDown(f"HTTP {answer.status}", wait_s or BUSY_WAIT_S)
            if 300 <= answer.status < 400:
                self._wire.answered(job, answer.status, b"", self._clock())
                raise Unusable(f"HTTP {answer.status}: the vendor points elsewhere, which is not followed")
            body = bytearray()
            async for piece in answer.content.iter_chunked(_CHUNK):
                body += piece
                self.bytes_received += len(piece)
                if len(body) > MAX_ANSWER_BYTES:
                    raise Unusable(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
            return answer.status, bytes(body)

    def unsent(self, taken_ns: int) -> None:
        """The request taken at `taken_ns` never reached the vendor: it does not count."""
        self._budget.give_back(taken_ns)

    def slow_down(self, text: str, wait_s: float, now_ns: int) -> str:
        """The vendor wants no request of this key for `wait_s`. Returns that in words."""
        wait_s = min(wait_s, LONGEST_WAIT_S)
        self.slow = f"{text}; waits {wait_s:g} s"
        self._budget.block(now_ns + round(wait_s * 1e9))
        self._budget_due_ns = now_ns
        return self.slow

    def words(self, now_ns: int) -> str:
        """What waits for the budget, and for how long; "" = nothing does."""
        if not self.waiting:
            return ""
        wait_s = max(0, self._budget_due_ns - now_ns) / 1e9
        used = [
            f"{count} of {limit.requests} requests used in {limit.period_s:g} s"
            for limit in self._budget.limits
            if (count := self._budget.used(limit, now_ns)) >= limit.requests
        ]
        if self._budget.blocked_until_ns() > now_ns:
            used.append(f"the vendor wants none{': ' + self.slow if self.slow else ''}")
        return f"{self.waiting} wait for the key's budget, {wait_s:.0f} s: {', '.join(used)}"

    @property
    def connected(self) -> bool:
        """Whether there may be a connection, for `hang_up`."""
        return self._http is not None

    async def hang_up(self) -> None:
        """Close the connection."""
        if self._http is not None:
            await self._http.close()

    def close(self) -> None:
        """Close the budget."""
        self._budget.close()
