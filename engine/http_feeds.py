"""/feeds: list, add, look at, change, remove. Called by engine/http.py; what a change does is engine/feeds.py's."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import Parameter

from engine import feed_bodies, replies
from engine.audit import note
from engine.errors import FeedConflict, FeedError, FeedRefused
from engine.feeds import ALL_SYMBOLS, Entry
from engine.observer import FeedView, Observer
from engine.problems import Refusal
from engine.store import StoredFeed
from shm.errors import BadArgument
from shm.instruments import check_symbol

MAX_OPTIONS_BYTES: Final = 8192
FAILED_STATES: Final = ("down", "recovering", "failed", "stale")  # asked for again, such a feed is started anew

FeedId = Annotated[str, Parameter(min_length=1, max_length=64, description="feed_id, as in GET /feeds")]


@get("/feeds", tags=["feeds"], summary="Every feed: state, counts, why")
async def feeds(observer: Observer) -> feed_bodies.FeedsAnswer:
    """The configured feeds, and those added here."""
    listed = [replies.feed(view) for view in observer.feeds()]
    return feed_bodies.FeedsAnswer(
        feeds=listed, count=len(listed), total_messages=sum(feed.message_count for feed in listed)
    )


@post(
    "/feeds",
    tags=["feeds"],
    summary="Add a feed; the same request again starts it again if it has failed",
    responses={200: ResponseSpec(feed_bodies.FeedCreated, description="it was there", generate_examples=False)},
)
async def create_feed(
    request: Request[Any, Any, Any], observer: Observer, data: feed_bodies.CreateFeed
) -> Response[feed_bodies.FeedCreated]:
    """201, or 200 for a feed that was asked for before. A source that can't be had now keeps trying; see its state."""
    try:
        if data.symbol != ALL_SYMBOLS:
            check_symbol(data.symbol)
    except BadArgument as error:
        raise Refusal(422, str(error)) from error
    if len(msgspec.json.encode(data.options)) > MAX_OPTIONS_BYTES:
        raise Refusal(422, f"options: more than {MAX_OPTIONS_BYTES} bytes")
    if (number := _too_long(data.options)) is not None:
        raise Refusal(422, f"options: {number} is no 64-bit integer")
    wanted = StoredFeed(
        feed_id="",
        number=0,
        symbol=data.symbol,
        data_source=data.data_source,
        data_types=tuple(dict.fromkeys(data.data_types)),
        group=data.group,
        rank=data.rank,
        options=data.options,
    )
    failed = [view.spec.name for view in observer.feeds() if view.state in FAILED_STATES]
    try:
        entry, status = await observer.book.create(wanted, failed=failed)
    except FeedError as error:
        raise _refusal(error) from error
    note(request.scope, feed_id=entry.spec.name, did=status, source=data.data_source, symbol=data.symbol)
    if status != "exists":
        observer.feeds_changed(fresh=entry.spec.feed_id)
    answer = feed_bodies.FeedCreated(
        status=status,  # type: ignore[arg-type]  # create gives no other words
        feed_id=entry.spec.name,
        symbol=data.symbol,
        data_source=data.data_source,
    )
    return Response(answer, status_code=201 if status == "created" else 200)


@get("/feeds/{feed_id:str}", tags=["feeds"], summary="One feed")
async def one_feed(observer: Observer, feed_id: FeedId) -> feed_bodies.FeedAnswer:
    """404 if there is none of that id."""
    return replies.feed(_view(observer, feed_id))


@patch("/feeds/{feed_id:str}", tags=["feeds"], summary="Pause or resume a feed, change its data types")
async def change_feed(
    request: Request[Any, Any, Any], observer: Observer, feed_id: FeedId, data: feed_bodies.ChangeFeed
) -> feed_bodies.FeedAnswer:
    """Only what is given changes; of a configured feed only the pause, until the engine ends."""
    entry = _entry(observer, feed_id)
    types = tuple(dict.fromkeys(data.data_types)) if data.data_types is not None else None
    try:
        await observer.book.change(entry, data_types=types, paused=data.paused)
    except FeedError as error:
        raise _refusal(error) from error
    note(request.scope, paused=data.paused, data_types=data.data_types)
    observer.feeds_changed()
    return replies.feed(_view(observer, feed_id))


@delete("/feeds/{feed_id:str}", tags=["feeds"], summary="Remove a feed", status_code=200)
async def remove_feed(observer: Observer, feed_id: FeedId) -> feed_bodies.FeedRemoved:
    """What it has delivered stays. 422 for a configured feed."""
    entry = _entry(observer, feed_id)
    try:
        await observer.book.remove(entry)
    except FeedError as error:
        raise _refusal(error) from error
    observer.feeds_changed()
    return feed_bodies.FeedRemoved(feed_id=feed_id)


FEED_ROUTES: Final[tuple[HTTPRouteHandler, ...]] = (feeds, create_feed, one_feed, change_feed, remove_feed)


def _entry(observer: Observer, feed_id: str) -> Entry:
    entry = observer.book.get(feed_id)
    if entry is None:
        raise Refusal(404, f"there is no feed {feed_id!r}; GET /feeds lists those that are")
    return entry


def _view(observer: Observer, feed_id: str) -> FeedView:
    _entry(observer, feed_id)
    return next(view for view in observer.feeds() if view.spec.name == feed_id)


def _refusal(error: FeedError) -> Refusal:
    if isinstance(error, FeedRefused):
        return Refusal(422, str(error))
    if isinstance(error, FeedConflict):
        return Refusal(409, str(error))
    return Refusal(503, str(error), {"Retry-After": "1"})


def _too_long(value: Any) -> int | None:
    """An integer in options, however deep, that no worker can be sent."""
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 63 else value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := _too_long(part)) is not None), None)
