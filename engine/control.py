"""The control process from start to exit status: segments, workers, HTTP, signals, systemd.

Called by engine/main.py. Order of start: check what can be wrong (ports, token, budget), take the engine's name (ring
0), spawn the workers, and while these import make the segments and load the HTTP libraries. Order of stop: ingest,
readers, HTTP, segments; 2 s altogether. One event loop, in which nothing runs more often than five times a second.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from engine.access import Gate, read_tokens
from engine.config import gateway_port, is_loopback
from engine.console import Console
from engine.curve import find_keys
from engine.errors import EXIT_CLEAN, EXIT_INTERRUPTED, ConfigError
from engine.feeds import hosted, worker_source
from engine.folders import data_folder, ledger_path, runtime_dir
from engine.notify import Notifier
from engine.plan import CONTROL_LABEL, Plan, make_plan, missing_files
from engine.segments import Segments, make_runtime_dir
from engine.server import HttpServer, bind, check_free
from engine.settings import Config
from engine.source_codes import SourceCodes
from engine.store import Store
from engine.stores import read_passwords
from engine.subscriptions import Subscriptions
from engine.subscriptions import specs as webhook_specs
from engine.supervisor import Supervisor, Worker
from engine.webhook_secret import WebhookSecret
from shm import source_names
from shm.errors import ShmError
from shm.status import ProcessState

if TYPE_CHECKING:
    from engine.audit import Audited, AuditLog
    from engine.commands import CommandChannel
    from engine.intake import Intake
    from engine.observer import Observer

TICK_S: Final = 1.0
STATUS_EVERY_TICKS: Final = 10
_NAMED_FEEDS: Final = 8  # the facts of a status block have 1024 bytes


class Control:
    """One engine's control process."""

    def __init__(self, config: Config, env: Mapping[str, str], console: Console) -> None:
        """Check everything that can be checked without touching anything. Raises EngineError."""
        self._config = config
        self._console = console
        self._notifier = Notifier(env)
        self._stop_wanted = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._stop_why = ""
        self._tokens = read_tokens(config, env)
        self._curve = find_keys(config, env)
        passwords = read_passwords(config, env)
        folder = runtime_dir(env, config.engine.name)
        self._store = Store(data_folder(config))
        self._stored = self._store.feeds()
        self._source_codes = SourceCodes(self._store)
        sources = [feed.source for feed in config.feeds if feed.enabled]
        codes = self._source_codes.for_start(sources + [worker_source(feed.data_source) for feed in self._stored])
        secrets = tuple(token.secret.decode() for token in self._tokens)
        self._webhook_secret = WebhookSecret(config, env, data_folder(config))
        self._subscribed = self._store.subscriptions()
        told = webhook_specs(self._subscribed, self._webhook_secret)
        self._plan: Plan = make_plan(
            config,
            folder,
            hosted(self._stored, codes),
            tokens=secrets,
            subscriptions=told,
            curve=self._curve,
            passwords=passwords,
            source_codes=codes,
        )
        missing = missing_files(self._plan)
        if missing:
            raise ConfigError(
                f"replay file {missing[0]} does not exist" + f", and {len(missing) - 1} more" * (len(missing) > 1)
            )
        make_runtime_dir(folder, shared=config.rings.mode != "0600")
        self._segments: Segments | None = None
        self._listener: socket.socket | None = None
        self._opening: asyncio.Future[None] | None = None
        self._supervisor: Supervisor | None = None
        self._observer: Observer | None = None
        self._server: HttpServer | None = None
        self._commands: CommandChannel | None = None
        self._audit: AuditLog | None = None
        self._intake: Intake | None = None

    async def run(self) -> int:
        """Start, serve until told to stop, stop; returns the exit status. Raises EngineError if the start fails."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        try:
            self._claim()
            starting = asyncio.create_task(self._start())
            stopping = asyncio.create_task(self._stop_wanted.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises what went wrong
                await self._serve(stopping)
            else:
                starting.cancel()
        finally:
            interrupted = await self._shut_down()
        return EXIT_INTERRUPTED if interrupted else EXIT_CLEAN

    def _claim(self) -> None:
        """Name and ports: what another engine may have. The name first: it gives the better error."""
        config, plan = self._config, self._plan
        self._segments = Segments(config, plan)
        self._listener = bind(config.http.host, config.http.port, "HTTP port")
        for kind, addresses in plan.endpoints.items():
            for address in addresses:
                check_free(config.zmq.host, int(address.rpartition(":")[2]), f"ZeroMQ port ({kind})")
        if plan.ws_url:
            check_free(config.gateway.host, gateway_port(config), "WebSocket port ([gateway] port)")

    async def _start(self) -> None:
        config, plan, console = self._config, self._plan, self._console
        segments, listener = self._segments, self._listener
        assert segments is not None, "_claim comes first"
        assert listener is not None, "_claim comes first"
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor = Supervisor(config, plan, segments.ring, console.worker_line)
        await supervisor.spawn()
        self._opening = loop.run_in_executor(None, segments.open)
        await asyncio.shield(self._opening)
        console.begin(config, plan, adopted=segments.adopted)
        from engine.commands import CommandChannel

        self._commands = CommandChannel(plan.control_endpoint)
        self._commands.start()
        segments.status.set_facts(self._facts(segments))
        workers_ready = asyncio.create_task(supervisor.start(segments.status, self._announce))
        # Takes a quarter of a second of one core: in a thread, so that exits are noticed meanwhile.
        observer, app = await loop.run_in_executor(None, self._load_http, segments, supervisor)
        self._observer = observer
        self._server = HttpServer(app, listener)
        await self._server.start()
        await workers_ready
        supervisor.own.state = ProcessState.READY
        observer.tick()
        gc.collect()
        gc.freeze()
        console.ready(plan, os.getpid())
        self._notifier.ready(f"{len(plan.workers)} workers, {len(plan.feeds)} feeds, {plan.http_url}")

    def _load_http(self, segments: Segments, supervisor: Supervisor) -> tuple[Observer, Audited]:
        from engine.audit import Audited, AuditLog
        from engine.feeds import Feeds
        from engine.front import Front
        from engine.http import make_app
        from engine.intake import Intake
        from engine.observer import Observer

        http = self._config.http
        gate = Gate(self._tokens, loopback=is_loopback(http.host), requests_per_second=http.requests_per_second)
        self._intake = intake = Intake(self._config, segments, supervisor)
        self._source_codes.tell(partial(source_names.tell, supervisor.own))
        self._source_codes.tell(intake.composer.sources.__setitem__)
        book = Feeds(
            self._plan,
            self._stored,
            self._store,
            supervisor,
            posted=intake.composer.feeds,
            code_of=self._source_codes.code_of,
        )
        if self._commands is not None:
            book.connect(self._commands)
        subscriptions = Subscriptions(
            self._subscribed,
            self._store,
            self._webhook_secret,
            ledger_path(self._config),
            max_subscriptions=self._config.webhooks.max_subscriptions,
            workers=supervisor if self._config.webhooks.enabled else None,
        )
        if self._commands is not None:
            subscriptions.connect(self._commands)
        observer = Observer(self._config, self._plan, segments, supervisor, book, subscriptions=subscriptions)
        self._audit = AuditLog(data_folder(self._config), on_lost=supervisor.own.counter("audit_lost").add)
        return observer, Audited(Front(make_app(observer, intake), observer, gate), self._audit, gate.caller)

    def _announce(self, worker: Worker) -> None:
        view = self._segments.status.process(worker.plan.label) if self._segments is not None else None
        self._console.process(worker.plan.label, worker.pid, view.placement if view else "", worker.plan.does)

    async def _serve(self, stopping: asyncio.Task[bool]) -> None:
        """One turn a second until the stop: sample, watchdog, the end of replays."""
        assert self._observer is not None
        assert self._supervisor is not None
        ticks = 0
        watchdog_s = self._notifier.watchdog_s
        turn_s = min(TICK_S, watchdog_s) if watchdog_s else TICK_S
        next_s = time.monotonic() + TICK_S
        while not stopping.done():
            await asyncio.wait([stopping], timeout=turn_s)
            if watchdog_s:
                self._notifier.watchdog()
            if time.monotonic() < next_s or stopping.done():
                continue
            next_s = time.monotonic() + TICK_S
            self._supervisor.check()
            ticks += 1
            self._observe()
            if ticks % STATUS_EVERY_TICKS == 0 and self._notifier.active:
                self._notifier.status(self._status_line())
            if self._config.engine.exit_when_done and self._all_sent():
                self._stop_why = "every replay has ended and has been sent"
                self._stop_wanted.set()

    def _observe(self) -> None:
        """The second's sample; one that can't be had, for want of descriptors, is told and does not end the engine."""
        assert self._observer is not None
        try:
            self._observer.tick()
        except (ShmError, OSError) as error:
            self._console.worker_line(CONTROL_LABEL, f"this second could not be observed: {error}")

    def _status_line(self) -> str:
        assert self._observer is not None
        verdict = self._observer.health()
        bad = [check for check in verdict.checks if check.verdict]
        why = f": {bad[0].name} {bad[0].why}" if bad else ""
        return f"{verdict.verdict.word}{why}; {self._observer.current().published} records"

    def _all_sent(self) -> bool:
        """Whether every replay has ended and our own readers have read all of it."""
        assert self._observer is not None
        assert self._supervisor is not None
        return self._observer.replays_ended and not self._supervisor.lag(self._supervisor.reader_pids())

    def _facts(self, segments: Segments) -> dict[str, object]:
        """What tools want to know about a running engine, and a later start about a crashed one."""
        return {
            "http": self._plan.http_url,
            "zmq": {name: list(addresses)[:2] for name, addresses in self._plan.endpoints.items()},
            "ws": self._plan.ws_url,
            "curve": self._curve.public,
            "ipc_dir": self._plan.ipc_dir,
            "shape": segments.shape,
            "feeds": {str(feed.feed_id): feed.name[:24] for feed in self._plan.feeds[:_NAMED_FEEDS]},
        }

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop_wanted.is_set():
            self._stop_now.set()
            return
        self._stop_why = "Ctrl-C" if number == signal.SIGINT else number.name
        self._stop_wanted.set()

    async def _shut_down(self) -> bool:
        """Stop in order; True if a second signal cut it short."""
        begun_s = time.monotonic()
        if self._stop_why:
            self._console.stopping(self._stop_why)
        self._notifier.stopping()
        if self._intake is not None:
            self._intake.close()
        if self._observer is not None:
            self._observer.stopping = True
            self._observer.segments.status.set_shutdown()
        if self._opening is not None:  # a thread that makes segments can't be stopped, and must not do so after unlink
            await asyncio.wait([self._opening])
        if self._segments is not None and self._supervisor is not None:
            order = asyncio.create_task(self._supervisor.stop())
            cut = asyncio.create_task(self._stop_now.wait())
            await asyncio.wait([order, cut], return_when=asyncio.FIRST_COMPLETED)
            if not order.done():
                order.cancel()
                self._supervisor.stop_now()
            cut.cancel()
        if self._server is not None:
            await self._server.stop()
        if self._commands is not None:
            self._commands.close()
        self._store.close()
        if self._audit is not None:
            self._audit.close()
        published = 0
        if self._observer is not None:
            try:
                published = self._observer.current().published
            except (ShmError, OSError) as error:
                self._console.worker_line(CONTROL_LABEL, f"the last sample could not be taken: {error}")
            self._observer.close()
        if self._segments is not None:
            self._segments.unlink()
        self._notifier.close()
        if self._stop_why:
            self._console.stopped(published, time.monotonic() - begun_s)
        return self._stop_now.is_set()


def raise_file_limit() -> None:
    """As many open files as this user may have: each HTTP connection, ring and lock is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
