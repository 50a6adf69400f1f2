"""Bodies of the calls on /subscriptions, asked and answered.

Types only: the schema at /schema is made from these; routes are in engine/http_subscriptions.py. Field names are fixed
by the interface document: clients of an existing system use them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from engine.body_types import Count, Time
from engine.feed_settings import FeedDataType

SubscribedSymbol = Annotated[
    str, Meta(min_length=1, max_length=33, description="a symbol, the start of some and *, or *")
]
SubscribedSymbols = Annotated[list[SubscribedSymbol], Meta(max_length=256)]
SubscribedDataType = FeedDataType | Literal["status"]  # status: of an instrument's trading
Priority = Literal["high", "normal", "low"]
CallbackUrl = Annotated[str, Meta(max_length=2048)]
Secret = Annotated[str, Meta(min_length=16, max_length=256)]


class CreateSubscription(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /subscriptions."""

    symbols: Annotated[list[SubscribedSymbol], Meta(min_length=1, max_length=256)]
    data_types: Annotated[
        list[SubscribedDataType], Meta(max_length=7, description="empty = all; status: halts, pauses, resumptions")
    ] = field(default_factory=list)
    callback_url: Annotated[
        CallbackUrl | None,
        Meta(description="http or https; without it nothing is delivered: stream `topics` of GET /subscriptions/{id}"),
    ] = None
    priority: Annotated[
        Priority, Meta(description="who is served first, and whose queue is shortened last, when there is too much")
    ] = "normal"
    secret: Annotated[
        Secret | None, Meta(description="signs the deliveries; never answered. Without it the engine's own")
    ] = None


class ChangeSubscription(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /subscriptions/{subscription_id}: only what is given changes; removals come first."""

    add_symbols: SubscribedSymbols = field(default_factory=list)
    remove_symbols: SubscribedSymbols = field(default_factory=list)
    add_data_types: Annotated[list[SubscribedDataType], Meta(max_length=7)] = field(default_factory=list)
    remove_data_types: Annotated[list[SubscribedDataType], Meta(max_length=7)] = field(default_factory=list)
    is_active: Annotated[
        bool | None, Meta(description="false: pause, and drop what is queued; true: go on, also if it is parked")
    ] = None
    priority: Priority | None = None
    callback_url: Annotated[CallbackUrl | None, Meta(description="empty: deliver nothing any more")] = None
    secret: Secret | None = None


class SubscriptionCreated(Struct, kw_only=True):
    """POST /subscriptions."""

    status: Literal["created"] = "created"
    subscription_id: str
    symbols: list[str]
    data_types: list[str]


class SubscriptionsCreated(Struct, kw_only=True):
    """POST /subscriptions/batch."""

    status: Literal["created"] = "created"
    subscriptions: list[SubscriptionCreated]
    count: Count


class SubscriptionAnswer(Struct, kw_only=True):
    """One subscription."""

    subscription_id: str
    symbols: list[str]
    data_types: Annotated[list[str], Meta(description="empty = all")]
    callback_url: str | None
    priority: Priority
    is_active: Annotated[bool, Meta(description="as its owner wants it")]
    state: Annotated[
        Literal["delivering", "waiting", "parked", "paused", "no callback"],
        Meta(description="waiting: for the next attempt; parked: after many that failed"),
    ]
    created_at: Time
    delivered: Annotated[Count, Meta(description="messages that the receiver has acknowledged")]
    failed: Annotated[Count, Meta(description="deliveries that it has not; they are repeated")]
    queued: Annotated[Count, Meta(description="messages that wait or are under way")]
    lost: Annotated[Count, Meta(description="messages never delivered, told in the next delivery, as far as counted")]
    last_failure: Annotated[str, Meta(description="why the last delivery failed; empty if it did not")]
    last_delivery: Annotated[Time | None, Meta(description="when one was acknowledged last")]
    next_attempt: Time | None


class SubscriptionDetail(SubscriptionAnswer, kw_only=True):
    """GET and PATCH /subscriptions/{subscription_id}."""

    topics: Annotated[list[str], Meta(description="as WebSocket clients subscribe to them")]


class SubscriptionsAnswer(Struct, kw_only=True):
    """GET /subscriptions."""

    subscriptions: list[SubscriptionAnswer]
    count: Count


class SubscriptionRemoved(Struct, kw_only=True):
    """DELETE /subscriptions/{subscription_id}."""

    status: Literal["removed"] = "removed"
    subscription_id: str
