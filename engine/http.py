"""The HTTP interface: routes over the observer, and the Litestar application made of them.

Imported late, in the running event loop, because Litestar takes a quarter of a second: workers are spawned before.
Routes here read what the observer has sampled and the latest-value table; they never touch a ring, never wait for a
worker, and hold no state; feeds and ingest are in modules of their own. Errors are problem details
(engine/problems.py), types are in engine/*_bodies.py.
"""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Annotated, Any, Final

from litestar import Litestar, Request, Response, get, post
from litestar.config.response_cache import ResponseCacheConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import Parameter

from engine import data_bodies, replies, status_bodies
from engine.exposition import render
from engine.front import PASSED
from engine.health import Verdict
from engine.http_data import JSON, Symbol, data
from engine.http_feeds import FEED_ROUTES
from engine.http_ingest import ingest
from engine.http_schema import complete_schema
from engine.http_subscriptions import SUBSCRIPTION_ROUTES
from engine.intake import Intake
from engine.observer import Observer
from engine.problems import Refusal, on_bug, on_http_error
from engine.symbol_scores import symbol_scores
from shm.errors import ShmError

_TEXT_FORMATS: Final = ("text/plain", "application/openmetrics-text")
_PAGE: Final = (files("engine") / "static" / "index.html").read_bytes()
_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


@get("/", include_in_schema=False, media_type="text/html")
async def page() -> Response[bytes]:
    """The live page."""
    headers = {
        "Content-Security-Policy": _PAGE_POLICY,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(_PAGE, media_type="text/html; charset=utf-8", headers=headers)


@get(
    "/health",
    tags=["state"],
    summary="Is it doing its work, and if not, why",
    responses={503: ResponseSpec(status_bodies.HealthAnswer, description="unhealthy", generate_examples=False)},
)
async def health(observer: Observer) -> Response[status_bodies.HealthAnswer]:
    """`status` is the worst of `checks`; 503 when unhealthy."""
    sample, verdict = observer.current(), observer.health()
    fanout = [p for p in sample.processes if p.role == "fanout"]
    answer = status_bodies.HealthAnswer(
        status=replies.word(verdict.verdict),
        engine=observer.config.engine.name,
        messages_processed=sample.published,
        data_points_stored=sample.stored,
        subscriptions_served=sample.total("subscriptions", "fanout") + observer.subscriptions.active,
        active_feeds=verdict.active_feeds,
        symbols_tracked=sample.symbols,
        uptime_seconds=round(time.monotonic() - observer.started_s, 3),
        messagebus_connected=bool(fanout) and all(p.alive and p.state.name == "READY" for p in fanout),
        checks=[
            status_bodies.CheckAnswer(name=check.name, status=replies.word(check.verdict), why=check.why)
            for check in verdict.checks
        ],
    )
    return Response(answer, status_code=503 if verdict.verdict is Verdict.UNHEALTHY else 200)


@get("/live", tags=["state"], summary="Does the control process turn")
async def live() -> status_bodies.LiveAnswer:
    """200 as long as anybody answers."""
    return status_bodies.LiveAnswer()


@get(
    "/ready",
    tags=["state"],
    summary="Are all processes ready",
    responses={503: ResponseSpec(status_bodies.ReadyAnswer, description="not ready", generate_examples=False)},
)
async def ready(observer: Observer) -> Response[status_bodies.ReadyAnswer]:
    """503 while a process is starting, waiting for its restart, or stopping."""
    workers = observer.supervisor.workers
    waiting = [label for label, worker in workers.items() if worker.life.phase.value != "running"]
    if observer.stopping and not waiting:
        waiting = ["engine"]
    answer = status_bodies.ReadyAnswer(status="not ready" if waiting else "ready", waiting_for=waiting)
    return Response(answer, status_code=503 if waiting else 200)


@get("/metrics", tags=["metrics"], summary="Rates, totals, latencies")
async def metrics(request: Request[Any, Any, Any], observer: Observer) -> Response[status_bodies.MetricsAnswer]:
    """JSON; with an Accept of text/plain or openmetrics the Prometheus exposition."""
    accept = request.headers.get("accept", "")
    if any(name in accept for name in _TEXT_FORMATS) and "application/json" not in accept:
        return _exposition(observer, accept)
    return Response(replies.metrics(observer), headers={"Vary": "Accept"})


@get("/metrics/prometheus", tags=["metrics"], summary="The Prometheus exposition", media_type="text/plain")
async def metrics_prometheus(request: Request[Any, Any, Any], observer: Observer) -> Response[Any]:
    """Text format, or OpenMetrics if the Accept header names it."""
    return _exposition(observer, request.headers.get("accept", ""))


@get("/processes", tags=["state"], summary="Every process: core, state, heartbeat, lag, rates")
async def processes(observer: Observer) -> status_bodies.ProcessesAnswer:
    """Control process and workers, in order of registration."""
    sample = observer.current()
    listed = [replies.process(observer, sample, view.label) for view in sample.processes]
    return status_bodies.ProcessesAnswer(processes=listed, count=len(listed))


@get("/readers", tags=["state"], summary="Every attached reader: lag and losses")
async def readers(observer: Observer) -> status_bodies.ReadersAnswer:
    """Readers that registered, the engine's own and others, and the rings they read."""
    sample = observer.current()
    own = {process.pid: process.label for process in sample.processes if process.alive}
    listed = [
        status_bodies.ReaderAnswer(
            ring=ring_id,
            label=reader.label,
            pid=reader.pid,
            process=own.get(reader.pid, ""),
            alive=reader.alive,
            cursor=reader.cursor,
            lag=reader.lag,
            lost=reader.lost,
            overruns=reader.overruns_polling + reader.overruns_reading,
            reliable=reader.reliable,
            demoted=reader.demoted,
        )
        for ring_id, found in sample.readers.items()
        for reader in found
    ]
    before = observer.history.oldest
    rings = []
    for ring_id, info in sample.rings.items():
        entry = sample.entries.get(ring_id)
        earlier = before.rings.get(ring_id) if before is not None else None
        rings.append(
            status_bodies.RingAnswer(
                ring=ring_id,
                writer=entry.label if entry else "",
                role=entry.role if entry else "",
                writer_pid=info.writer_pid,
                writer_alive=info.writer_alive,
                epoch=info.epoch,
                published=info.published,
                depth_slots=info.depth_slots,
                rate=observer.history.rate(sample, info.published, earlier.published if earlier else 0),
            )
        )
    return status_bodies.ReadersAnswer(readers=listed, rings=rings, count=len(listed))


@get("/symbols", tags=["data"], summary="Every symbol seen")
async def symbols(
    observer: Observer,
    *,
    detail: Annotated[bool, Parameter(description="with the score of each, and what it follows from")] = False,
) -> data_bodies.SymbolsAnswer:
    """In order of first sight."""
    known = observer.segments.instruments.symbols()
    scores = symbol_scores(known, observer.segments.ranks) if detail else None
    return data_bodies.SymbolsAnswer(symbols=known, count=len(known), scores=scores)


@post("/symbols/{symbol:str}/snapshot", tags=["data"], summary="What is known of a symbol now", status_code=200)
async def snapshot(observer: Observer, symbol: Symbol) -> Response[data_bodies.SnapshotAnswer]:
    """`as_of` lets a reader of the rings go on from here without gap or duplicate. 404 for a symbol never seen."""
    instrument_id = _instrument(observer, symbol)
    try:
        found = observer.latest().snapshot(instrument_id)
    except ShmError as error:
        raise Refusal(503, f"L1 can not be read now: {error}", {"Retry-After": "1"}) from error
    observer.tiers.count_snapshot(found is not None)
    if found is None:
        raise Refusal(404, f"symbol {symbol!r} has been named, but no record of it has been seen")
    body: Any = replies.snapshot_body(symbol, found, time.time_ns())  # the annotation is for the schema
    return Response(body, media_type=JSON)


def make_app(observer: Observer, intake: Intake) -> Litestar:
    """The application, for engine/front.py, which has asked the gate before."""

    def before(request: Request[Any, Any, Any]) -> None:
        denial = request.scope[PASSED]  # type: ignore[typeddict-item]  # engine/front.py's
        if denial is not None:
            raise Refusal(denial.status, denial.detail, denial.headers)

    reading = [
        page,
        health,
        live,
        ready,
        metrics,
        metrics_prometheus,
        processes,
        readers,
        symbols,
        data,
        snapshot,
    ]
    app = Litestar(
        [*reading, *FEED_ROUTES, *SUBSCRIPTION_ROUTES, ingest],
        dependencies={
            "observer": Provide(lambda: observer, sync_to_thread=False),
            "intake": Provide(lambda: intake, sync_to_thread=False),
        },
        before_request=before,
        exception_handlers={HTTPException: on_http_error, Exception: on_bug},
        openapi_config=OpenAPIConfig(
            title="tickengine",
            version="1",
            description="A market-data engine in shared memory: health, metrics and data of one engine.",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
            use_handler_docstrings=True,
        ),
        logging_config=None,
        request_max_body_size=64 * 1024,
        response_cache_config=ResponseCacheConfig(default_expiration=None),
        debug=False,
    )
    complete_schema(app, observer.config.http)
    return app


def _exposition(observer: Observer, accept: str) -> Response[Any]:
    body, content_type = render(observer.collector(), accept)
    return Response(body, media_type=content_type, headers={"Vary": "Accept"})


def _instrument(observer: Observer, symbol: str) -> int:
    instrument_id = observer.segments.instruments.find(symbol)
    if instrument_id is None:
        raise Refusal(404, f"symbol {symbol!r} has never been seen; GET /symbols lists those that have")
    return instrument_id
