"""What the numbered messages of TWS mean to a feed: a table, and how a number that is not in it is taken.

TWS says everything that goes wrong, and much that does not, as (request, code, text). `effect_of` gives what a feed
does about it; workers/sources/ibkr.py does it. Pure. Codes and meanings: TWS API reference, "Message Codes"; the
table for people is in IBKR.md, and a test holds the two together.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

PACING_WAIT_S: Final = 600.0  # the window of the historical limits
COMPETING_WAIT_S: Final = 60.0
SLOW_DOWN_WAIT_S: Final = 15.0


class Effect(enum.Enum):
    """What a message does to the feed, or to the one stream whose request it names."""

    CUT = "cut"  # TWS has lost the servers: nothing comes until CUT is lifted
    RESTORED_LOST = "restored, subscriptions lost"  # everything is asked for again
    RESTORED_KEPT = "restored, subscriptions kept"
    FARM_DOWN = "farm down"
    FARM_UP = "farm up"
    LOGIN = "login refused"  # the connection is of no use
    LEAVE = "connection ends"
    REFUSED = "refused"  # the stream is given up, the others go on
    LATER = "later"  # the stream is asked for again after `wait_s`
    AGAIN = "again"  # the stream has ended and is asked for again now
    BOOK_RESET = "book reset"
    PARTLY = "partly"  # the stream goes on, with less than was asked for
    NOTED = "noted"


class Meaning(NamedTuple):
    """An effect, in words for people, and how long to wait where the effect is LATER or CUT."""

    effect: Effect
    text: str
    wait_s: float = 0.0


CODES: Final[dict[int, Meaning]] = {
    # the connection between TWS and IBKR
    1100: Meaning(Effect.CUT, "TWS has lost its connection to IBKR"),
    2110: Meaning(Effect.CUT, "TWS is cut off from its server"),
    1101: Meaning(Effect.RESTORED_LOST, "TWS is connected to IBKR again, subscriptions are lost"),
    1102: Meaning(Effect.RESTORED_KEPT, "TWS is connected to IBKR again, subscriptions are kept"),
    2103: Meaning(Effect.FARM_DOWN, "a market data farm is down"),
    2105: Meaning(Effect.FARM_DOWN, "a historical data farm is down"),
    2157: Meaning(Effect.FARM_DOWN, "a security definition farm is down"),
    2104: Meaning(Effect.FARM_UP, "a market data farm is up"),
    2106: Meaning(Effect.FARM_UP, "a historical data farm is up"),
    2107: Meaning(Effect.FARM_UP, "a historical data farm is inactive, there on demand"),
    2108: Meaning(Effect.FARM_UP, "a market data farm is inactive, there on demand"),
    2119: Meaning(Effect.NOTED, "a market data farm is connecting"),
    2158: Meaning(Effect.FARM_UP, "a security definition farm is up"),
    # the connection between us and TWS
    326: Meaning(Effect.LOGIN, "the client id is in use"),
    1300: Meaning(Effect.LEAVE, "TWS has moved to another port"),
    503: Meaning(Effect.LOGIN, "this TWS is too old"),
    100: Meaning(Effect.NOTED, "more than 50 messages a second"),
    # one request
    200: Meaning(Effect.REFUSED, "no such contract, or several"),
    203: Meaning(Effect.REFUSED, "not allowed for this account"),
    101: Meaning(Effect.REFUSED, "no market data line is left"),
    309: Meaning(Effect.REFUSED, "no market depth line is left"),
    321: Meaning(Effect.REFUSED, "the request is not valid"),
    354: Meaning(Effect.REFUSED, "not subscribed"),
    10089: Meaning(Effect.REFUSED, "not subscribed for the API"),
    10092: Meaning(Effect.REFUSED, "this exchange has no market depth"),
    10168: Meaning(Effect.REFUSED, "not subscribed, and delayed data is not enabled"),
    10186: Meaning(Effect.REFUSED, "not subscribed, and delayed data is not enabled"),
    10189: Meaning(Effect.REFUSED, "no tick-by-tick data"),
    10190: Meaning(Effect.REFUSED, "no tick-by-tick line is left"),
    10090: Meaning(Effect.PARTLY, "subscribed in part"),
    10167: Meaning(Effect.PARTLY, "not subscribed: delayed data"),
    10197: Meaning(Effect.LATER, "a competing session has the market data", COMPETING_WAIT_S),
    162: Meaning(Effect.REFUSED, "historical data refused"),
    420: Meaning(Effect.REFUSED, "real-time query refused"),
    316: Meaning(Effect.AGAIN, "market depth has been halted"),
    317: Meaning(Effect.BOOK_RESET, "market depth has been reset"),
    10182: Meaning(Effect.AGAIN, "live bars have ended"),
    10225: Meaning(Effect.AGAIN, "live bars have ended after a bust"),
    # nothing to do
    165: Meaning(Effect.NOTED, "historical data service"),
    300: Meaning(Effect.NOTED, "a request that is not known"),
    310: Meaning(Effect.NOTED, "a market depth request that is not known"),
    366: Meaning(Effect.NOTED, "a historical request that is not known"),
    2152: Meaning(Effect.NOTED, "exchanges of the market depth"),
}

_PACING_CODES: Final = (162, 420)  # which say in words whether it was too much
_WARNINGS: Final = range(2100, 2200)
# What a request's end means when nothing is known but that there was an error.
_UNKNOWN_OF_REQUEST: Final = Meaning(Effect.REFUSED, "refused")
_UNKNOWN: Final = Meaning(Effect.NOTED, "a message of TWS")


def effect_of(code: int, text: str, *, of_request: bool) -> Meaning:
    """What a message means; `of_request`: it names a request of ours."""
    if code in _PACING_CODES and "pacing" in text.lower():
        return Meaning(Effect.LATER, "too many historical requests", PACING_WAIT_S)
    found = CODES.get(code)
    if found is not None:
        return found
    if code in _WARNINGS or not of_request:
        return _UNKNOWN
    return _UNKNOWN_OF_REQUEST


def farm_of(text: str) -> str:
    """The farm that a message names, which stands after the last colon: "...connection is broken:usfarm"."""
    return text.rpartition(":")[2].strip()[:32] or "?"
