"""A redundancy group without feeds: a test says who delivers what when, and sees what is published."""

from __future__ import annotations

from typing import Any

import numpy as np

from shm.layout import RecordType, empty
from workers.group_member import Condition
from workers.redundancy import Limits, Redundancy, Takeover

MS = 1_000_000
S = 1_000_000_000
START = 1_700_000_000 * S
LIMITS = Limits(stale_ns=200 * MS, hold_ns=10 * S, margin=0.25, per_minute=3, backlog_records=256)


def batch(
    *events: int, instrument: int = 0, kind: RecordType = RecordType.TRADE, ids: bool = False, **fields: Any
) -> Any:
    """One record an event, whose time is START + that many ms; with `ids` that is its trade id too."""
    records = empty(len(events))
    for record, event in zip(records, events, strict=True):
        record["record_type"] = kind
        record["instrument_id"] = instrument
        record["ts_event"] = START + event * MS
        record["ts_receive"] = START + event * MS
        record["venue"] = b"XTST"
        if ids:
            record["trade_id"] = event
        for name, value in fields.items():
            record[name] = value
    return records


def events_of(records: np.ndarray) -> list[int]:
    return [(int(ts) - START) // MS for ts in records["ts_event"]]


class Scene:
    """A group, its clock in ms, and what it has published, as (feed, event) in order."""

    def __init__(self, *ranks: int, limits: Limits = LIMITS, up: bool = True) -> None:
        self.now_ms = 0
        self.group = Redundancy("g", limits)
        self.members = [self.group.join(10 + number, f"f{number}", rank) for number, rank in enumerate(ranks)]
        self.published: list[tuple[int, int]] = []
        self.records: list[np.ndarray] = []
        self.takeovers: list[Takeover] = []
        if up:
            for member in self.members:
                self.group.up(member, self.now_ns)
            self.step()

    @property
    def now_ns(self) -> int:
        return START + self.now_ms * MS

    def at(self, now_ms: int) -> Scene:
        """Look at every due time until then."""
        while (due_ms := -(-(self.group.due_ns - START) // MS)) <= now_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self.step()
        self.now_ms = now_ms
        return self

    def hear(self, number: int, records: np.ndarray) -> list[int]:
        """A member delivers; what of it is published at once."""
        kept = self.group.filter(records, len(records), self.members[number], self.now_ns)
        self._publish(self.members[number].feed_id, records[:kept])
        self.step()
        return events_of(records[:kept])

    def say(self, number: int, *events: int, **fields: Any) -> list[int]:
        return self.hear(number, batch(*events, **fields))

    def both(self, *events: int, **fields: Any) -> None:
        """Every member delivers each event, a little later than it happened."""
        for event in events:
            self.at(event + 1)
            for number in range(len(self.members)):
                self.say(number, event, **fields)

    def step(self) -> None:
        for takeover in self.group.step(self.now_ns):
            self.takeovers.append(takeover)
            self._publish(takeover.to_feed, takeover.records)

    def _publish(self, feed: int, records: np.ndarray) -> None:
        self.published += [(feed, event) for event in events_of(records)]
        self.records.append(records.copy())

    @property
    def switches(self) -> list[tuple[int, int]]:
        return [(one.from_feed, one.to_feed) for one in self.takeovers]

    def condition(self, number: int) -> Condition:
        return self.members[number].condition
