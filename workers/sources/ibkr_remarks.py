"""What there is to say about an IBKR feed besides its state: who is refused, waits, is delayed or silent, in one line.

Used by workers/sources/ibkr.py for the report of GET /feeds; reads the requests, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from workers.sources.ibkr_requests import Requests
from workers.sources.ibkr_silence import Silence
from workers.sources.ibkr_streams import Step

MAX_NAMED: Final = 3


class Remarks(NamedTuple):
    """`text` goes behind the reason; `serious`: the feed is degraded; `share` of what it wants that it has, 0 to 1."""

    text: str
    serious: bool
    share: float

    @classmethod
    def of(cls, requests: Requests, farms: Iterable[str], silence: Silence, *, live: bool) -> Remarks:
        """As things stand; `farms` are those that are down."""
        streams = requests.streams
        serious = [
            _named("refused", [f"{what}: {why}" for what, why in requests.refused.items()]),
            _named("waits", [f"{one}: {one.note}" for one in streams if one.note and one.step is not Step.REFUSED]),
            _named("delayed data", [str(stream) for stream in streams if stream.delayed]),
            _named("down", sorted(farms)),
        ]
        others = []
        if live:
            others = [
                _named("silent", silence.names),
                _named("no data yet", [str(stream) for stream in streams if stream.step is Step.ASKED]),
                _named("in its turn", [str(one) for one in streams if one.step is Step.WAITS and not one.note]),
            ]
        refused = sum(stream.step is Step.REFUSED for stream in streams)
        share = silence.fresh_share * (1.0 - refused / len(streams))
        return cls("".join([*serious, *others]), any(serious), share)


def _named(what: str, found: list[str]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"; {what}: {', '.join(found[:MAX_NAMED])}{more}"
