"""Who wants which topic: from patterns with wildcards to the clients of one topic, and fast to say that there is none.

Pure: it knows clients as objects that can be keys of a dict, and symbols through a table's `find` and `symbol`. Used by
`gateway.py` and `webhooks.py` for each record: `choose` says which records concern anybody, without a look at clients;
`clients(key)` are those of one topic, each once.

A topic's key: (record type - 1) * INSTRUMENTS + instrument id; STATUS_KEY, ERROR_KEY, ALERT_KEY for the special ones.
An instrument's trading status goes out on the topic of all status records, and all the same has a key of its own,
TRADING_KEY + instrument id: it may be wanted of some symbols alone, and a slow client gets the newest of each.
Clients with the same pattern share one group, so a client more or less changes nothing for the topics that its groups
are resolved for; only the first and the last client of a pattern do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np

from shm.errors import BadArgument
from shm.layout import RecordType, StatusCode
from workers.stream import ANY_TYPE, EVERYTHING, SPECIAL, Pattern
from workers.wire import ALERT_TOPIC, ERROR_TOPIC, STATUS_TOPIC, SYMBOL_TYPES, symbol_topic

INSTRUMENTS: Final = 65536
TYPES: Final = len(SYMBOL_TYPES)  # record types 1 to TYPES
STATUS_KEY: Final = TYPES * INSTRUMENTS
ERROR_KEY: Final = STATUS_KEY + 1
ALERT_KEY: Final = STATUS_KEY + 2
NO_KEY: Final = STATUS_KEY + 3  # records that no topic can be given: an instrument id beyond INSTRUMENTS
TRADING_KEY: Final = STATUS_KEY + 4
KEYS: Final = TRADING_KEY + INSTRUMENTS

UNRESOLVED: Final = 0
NOBODY: Final = 1
SOMEBODY: Final = 2

SPECIAL_NAMES: Final = {STATUS_KEY: STATUS_TOPIC, ERROR_KEY: ERROR_TOPIC, ALERT_KEY: ALERT_TOPIC}

ClientT = TypeVar("ClientT")


class Symbols(Protocol):
    """The part of shm.instruments.InstrumentTable that is needed."""

    def find(self, symbol: str) -> int | None:
        """Number of a symbol."""

    def symbol(self, instrument_id: int) -> str:
        """Symbol of a number; BadArgument for one that is none."""


def topic_keys(records: np.ndarray) -> np.ndarray:
    """Key of each record's topic: shape as `records` (dtype RECORD), int64."""
    kinds = records["record_type"].astype(np.int64)
    instruments = records["instrument_id"].astype(np.int64)
    keys: np.ndarray = (kinds - 1) * INSTRUMENTS + instruments
    odd = (kinds == RecordType.STATUS) | (kinds < 1) | (kinds > TYPES) | (instruments >= INSTRUMENTS)
    if not odd.any():
        return keys
    trading = (
        (kinds == RecordType.STATUS) & (records["code"] == StatusCode.TRADING_STATUS) & (instruments < INSTRUMENTS)
    )
    keys[trading] = TRADING_KEY + instruments[trading]
    for index in np.flatnonzero(odd & ~trading).tolist():
        if kinds[index] != RecordType.STATUS:
            keys[index] = NO_KEY
        else:
            code = int(records["code"][index])
            keys[index] = {StatusCode.REJECTED: ERROR_KEY, StatusCode.LATENCY_ALERT: ALERT_KEY}.get(
                StatusCode(code) if code in StatusCode._value2member_map_ else StatusCode.GAP, STATUS_KEY
            )
    return keys


def key_parts(key: int, symbols: Symbols) -> tuple[int, str]:
    """(record type, symbol) of a topic's key, (SPECIAL, topic) for the special ones. BadArgument: nobody's number."""
    if key >= TRADING_KEY:
        return RecordType.STATUS, symbols.symbol(key - TRADING_KEY)
    if key >= STATUS_KEY:
        return SPECIAL, SPECIAL_NAMES.get(key, "")
    return key // INSTRUMENTS + 1, symbols.symbol(key % INSTRUMENTS)


class Audience(Generic[ClientT]):
    """All subscriptions of all clients."""

    def __init__(self, symbols: Symbols) -> None:
        """Nobody wants anything."""
        self._symbols = symbols
        self._groups: dict[Pattern, dict[ClientT, None]] = {}
        self._resolved: dict[int, tuple[dict[ClientT, None], ...]] = {}
        self.wanted: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros(KEYS, dtype=np.uint8)
        self.wanted[NO_KEY] = NOBODY
        self.names: dict[int, bytes] = {}  # topic of each resolved key
        self.symbol_of: dict[int, str | None] = {}
        self.subscriptions = 0

    def add(self, client: ClientT, pattern: Pattern) -> None:
        """A client wants what `pattern` means; a second time changes nothing."""
        group = self._groups.get(pattern)
        if group is None:
            group = self._groups[pattern] = {}
            self._forget(pattern)
        self.subscriptions += client not in group
        group[client] = None

    def remove(self, client: ClientT, pattern: Pattern) -> None:
        """It no longer does."""
        group = self._groups.get(pattern)
        if group is None or client not in group:
            return
        del group[client]
        self.subscriptions -= 1
        if not group:
            del self._groups[pattern]
            self._forget(pattern)

    def _forget(self, pattern: Pattern) -> None:
        """Topics that the pattern may mean have to be resolved anew."""
        if pattern.kind not in (EVERYTHING, SPECIAL) and not pattern.is_prefix:
            instrument = self._symbols.find(pattern.text)
            if instrument is None:
                return  # a symbol of the future: its topics are unresolved
            kinds = range(1, TYPES + 1) if pattern.kind == ANY_TYPE else (pattern.kind,)
            for kind in kinds:
                if kind <= TYPES:
                    self.wanted[(kind - 1) * INSTRUMENTS + instrument] = UNRESOLVED
            if pattern.kind in (ANY_TYPE, RecordType.STATUS) and instrument < INSTRUMENTS:
                self.wanted[TRADING_KEY + instrument] = UNRESOLVED
            return
        self.wanted[:NO_KEY] = UNRESOLVED
        self.wanted[TRADING_KEY:] = UNRESOLVED

    def resolve(self, key: int) -> None:
        """Decide who gets a topic that is UNRESOLVED."""
        try:
            kind, symbol = key_parts(key, self._symbols)
        except BadArgument:
            return  # a number that nobody interned stays unresolved
        found = [self._groups.get(Pattern(EVERYTHING, "", True))]
        if kind == SPECIAL:
            found.append(self._groups.get(Pattern(SPECIAL, symbol)))
            self.names[key], self.symbol_of[key] = symbol.encode(), None
        else:
            for wanted_kind in (kind, ANY_TYPE):
                found.append(self._groups.get(Pattern(wanted_kind, symbol)))
                found += [self._groups.get(Pattern(wanted_kind, symbol[:n], True)) for n in range(len(symbol) + 1)]
            if kind == RecordType.STATUS:
                found.append(self._groups.get(Pattern(SPECIAL, STATUS_TOPIC)))
            topic = STATUS_TOPIC if kind == RecordType.STATUS else symbol_topic(kind, symbol)
            self.names[key], self.symbol_of[key] = topic.encode(), symbol
        groups = tuple(group for group in found if group)
        self._resolved[key] = groups
        self.wanted[key] = SOMEBODY if groups else NOBODY

    def choose(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(key of each record's topic, indices of the records that somebody wants), both int64. Once a batch; hot."""
        keys = topic_keys(records)
        wanted = self.wanted[keys]
        if not wanted.all():
            for key in np.unique(keys[wanted == UNRESOLVED]).tolist():
                self.resolve(key)
            wanted = self.wanted[keys]
        return keys, np.flatnonzero(wanted == SOMEBODY)

    def clients(self, key: int) -> Collection[ClientT]:
        """The clients of a resolved topic, each once; do not change subscriptions while going through them."""
        groups = self._resolved.get(key, ())
        if len(groups) == 1:
            return groups[0]
        return {client: None for group in groups for client in group}
