"""/subscriptions: make one or many, list, look at, change, remove. Called by engine/http.py.

What a change does is engine/subscriptions.py's; secrets are taken and never given. A batch is made whole or not at all.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, cast

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from msgspec import Meta

from engine import subscription_bodies
from engine.audit import note
from engine.errors import SubscriptionConflict, SubscriptionError, SubscriptionRefused
from engine.observer import Observer
from engine.problems import Refusal
from engine.store import StoredSubscription
from engine.subscriptions import MAX_SYMBOLS, check_symbols, topics_of
from shm.layout import TYPE_NAMES, RecordType
from shm.ledger import DeliveryState, Failure
from shm.message import iso_time

MAX_BATCH: Final = 100
MAX_BATCH_BYTES: Final = 1 << 20
DATA_TYPES: Final = tuple(TYPE_NAMES[kind] for kind in RecordType)

SubscriptionId = Annotated[
    str, Parameter(min_length=1, max_length=64, description="subscription_id, as in GET /subscriptions")
]
SubscriptionList = Annotated[list[subscription_bodies.CreateSubscription], Meta(min_length=1, max_length=MAX_BATCH)]

_FAILURES: Final = {
    Failure.NONE: "",
    Failure.REFUSED_TARGET: "its address is not public: see [webhooks] allow_networks",
    Failure.NO_ADDRESS: "its name has no address",
    Failure.NO_CONNECTION: "no connection",
    Failure.TLS: "TLS failed",
    Failure.TIMEOUT: "no answer in time",
    Failure.CLOSED: "the connection ended before the answer",
    Failure.PROTOCOL: "the answer is not HTTP",
}


@get("/subscriptions", tags=["subscriptions"], summary="Every subscription: what it wants, how its deliveries go")
async def subscriptions(observer: Observer) -> subscription_bodies.SubscriptionsAnswer:
    """In order of creation."""
    listed = [
        subscription_bodies.SubscriptionAnswer(**_fields(observer, item))
        for item in observer.subscriptions.entries.values()
    ]
    return subscription_bodies.SubscriptionsAnswer(subscriptions=listed, count=len(listed))


@post("/subscriptions", tags=["subscriptions"], summary="Subscribe; with a callback_url, have messages delivered there")
async def create_subscription(
    request: Request[Any, Any, Any], observer: Observer, data: subscription_bodies.CreateSubscription
) -> subscription_bodies.SubscriptionCreated:
    """Every record from now on; see workers/WEBHOOKS.md for what a receiver gets, and how to verify it."""
    return (await _create(request, observer, [data]))[0]


@post(
    "/subscriptions/batch",
    tags=["subscriptions"],
    summary="Subscribe many times: all of them or, with an error that names the first that can't be, none",
    request_max_body_size=MAX_BATCH_BYTES,
)
async def create_subscriptions(
    request: Request[Any, Any, Any], observer: Observer, data: SubscriptionList
) -> subscription_bodies.SubscriptionsCreated:
    """A list of what POST /subscriptions takes."""
    if not 1 <= len(data) <= MAX_BATCH:  # the schema says so; nobody holds a list at the top to it
        raise Refusal(422, f"the body must be a list of 1 to {MAX_BATCH} subscriptions, it has {len(data)}")
    made = await _create(request, observer, data)
    return subscription_bodies.SubscriptionsCreated(subscriptions=made, count=len(made))


@get("/subscriptions/{subscription_id:str}", tags=["subscriptions"], summary="One subscription, and its topics")
async def one_subscription(
    observer: Observer, subscription_id: SubscriptionId
) -> subscription_bodies.SubscriptionDetail:
    """404 if there is none of that id."""
    return _detail(observer, _entry(observer, subscription_id))


@patch(
    "/subscriptions/{subscription_id:str}",
    tags=["subscriptions"],
    summary="Add and remove symbols and types; pause, go on, unpark; other priority, address, secret",
)
async def change_subscription(
    request: Request[Any, Any, Any],
    observer: Observer,
    subscription_id: SubscriptionId,
    data: subscription_bodies.ChangeSubscription,
) -> subscription_bodies.SubscriptionDetail:
    """What is there already is not added twice, what is not there need not be removed."""
    before = _entry(observer, subscription_id)
    try:
        check_symbols(data.add_symbols, "add_symbols")
        after = changed(before, data)
        again = bool(data.is_active or data.callback_url)
        await observer.subscriptions.change(before, after, unpark=again and after.is_active)
    except SubscriptionError as error:
        raise _refusal(error) from error
    note(
        request.scope,
        symbols=len(after.symbols),
        data_types=after.data_types,
        is_active=data.is_active,
        priority=data.priority,
        callback=data.callback_url is not None,
        secret=data.secret is not None,
    )
    return _detail(observer, after)


@delete("/subscriptions/{subscription_id:str}", tags=["subscriptions"], summary="Unsubscribe", status_code=200)
async def remove_subscription(
    observer: Observer, subscription_id: SubscriptionId
) -> subscription_bodies.SubscriptionRemoved:
    """What is queued for it is not delivered."""
    try:
        await observer.subscriptions.remove(_entry(observer, subscription_id))
    except SubscriptionError as error:
        raise _refusal(error) from error
    return subscription_bodies.SubscriptionRemoved(subscription_id=subscription_id)


SUBSCRIPTION_ROUTES: Final[tuple[HTTPRouteHandler, ...]] = (
    subscriptions,
    create_subscription,
    create_subscriptions,
    one_subscription,
    change_subscription,
    remove_subscription,
)


def changed(before: StoredSubscription, data: subscription_bodies.ChangeSubscription) -> StoredSubscription:
    """A subscription as a PATCH wants it. SubscriptionRefused: it would have no symbols, no types, or too many."""
    gone = set(data.remove_symbols)
    symbols = tuple(dict.fromkeys([*(s for s in before.symbols if s not in gone), *data.add_symbols]))
    if not symbols:
        raise SubscriptionRefused("remove_symbols: no symbol would be left; DELETE ends a subscription")
    if len(symbols) > MAX_SYMBOLS:
        raise SubscriptionRefused(f"add_symbols: there would be {len(symbols)} symbols, the most is {MAX_SYMBOLS}")
    types = before.data_types
    if data.remove_data_types:
        types = tuple(name for name in types or DATA_TYPES if name not in data.remove_data_types)
        if not types and not data.add_data_types:
            raise SubscriptionRefused("remove_data_types: no type would be left; DELETE ends a subscription")
    if types or data.remove_data_types:
        types = tuple(dict.fromkeys([*types, *data.add_data_types]))
    return msgspec.structs.replace(
        before,
        symbols=symbols,
        data_types=types,
        callback_url=before.callback_url if data.callback_url is None else data.callback_url,
        secret=before.secret if data.secret is None else data.secret,
        priority=data.priority or before.priority,
        is_active=before.is_active if data.is_active is None else data.is_active,
    )


async def _create(
    request: Request[Any, Any, Any], observer: Observer, wanted: list[subscription_bodies.CreateSubscription]
) -> list[subscription_bodies.SubscriptionCreated]:
    now_ns = time.time_ns()
    try:
        made = await observer.subscriptions.create(
            [
                StoredSubscription(
                    subscription_id="",
                    key=0,
                    symbols=tuple(dict.fromkeys(item.symbols)),
                    data_types=tuple(dict.fromkeys(item.data_types)),
                    callback_url=item.callback_url or "",
                    secret=item.secret or "",
                    priority=item.priority,
                    created_ns=now_ns,
                )
                for item in wanted
            ]
        )
    except SubscriptionError as error:
        raise _refusal(error) from error
    note(
        request.scope,
        subscription_ids=[item.subscription_id for item in made],
        callbacks=sum(bool(item.callback_url) for item in made),
    )
    return [
        subscription_bodies.SubscriptionCreated(
            subscription_id=item.subscription_id, symbols=list(item.symbols), data_types=list(item.data_types)
        )
        for item in made
    ]


def _entry(observer: Observer, subscription_id: str) -> StoredSubscription:
    entry = observer.subscriptions.entries.get(subscription_id)
    if entry is None:
        raise Refusal(404, f"there is no subscription {subscription_id!r}; GET /subscriptions lists those that are")
    return entry


def _detail(observer: Observer, item: StoredSubscription) -> subscription_bodies.SubscriptionDetail:
    return subscription_bodies.SubscriptionDetail(**_fields(observer, item), topics=list(topics_of(item)))


def _fields(observer: Observer, item: StoredSubscription) -> dict[str, Any]:
    view = observer.subscriptions.delivery(item)
    return {
        "subscription_id": item.subscription_id,
        "symbols": list(item.symbols),
        "data_types": list(item.data_types),
        "callback_url": item.callback_url or None,
        "priority": item.priority,
        "is_active": item.is_active,
        "state": state_word(item, view.state if view else DeliveryState.DELIVERING),
        "created_at": iso_time(item.created_ns),
        "delivered": view.delivered if view else 0,
        "failed": view.failed if view else 0,
        "queued": view.queued if view else 0,
        "lost": view.lost if view else 0,
        "last_failure": failure_words(view.last_failure) if view else "",
        "last_delivery": iso_time(view.last_answer_ns) if view and view.last_answer_ns else None,
        "next_attempt": iso_time(view.next_attempt_ns) if view and view.next_attempt_ns else None,
    }


def state_word(item: StoredSubscription, state: DeliveryState) -> str:
    """What a subscription does, for people: its owner's wish goes before what the worker does."""
    if not item.is_active:
        return "paused"
    if not item.callback_url:
        return "no callback"
    return "delivering" if state is DeliveryState.PAUSED else state.name.lower()


def failure_words(failure: int) -> str:
    """A failure of the ledger in words."""
    if failure in _FAILURES:
        return _FAILURES[cast(Failure, failure)]
    hint = "; redirects are not followed" if 300 <= failure < 400 else ""
    return f"answered {failure}{hint}"


def _refusal(error: SubscriptionError) -> Refusal:
    if isinstance(error, SubscriptionRefused):
        return Refusal(422, str(error))
    if isinstance(error, SubscriptionConflict):
        return Refusal(409, str(error))
    return Refusal(503, str(error), {"Retry-After": "1"})
