"""Patterns of topics: which records `tickengine tail` prints.

    tick.AAPL   one symbol's ticks        quote.*   all quotes           *.AAPL   everything of one symbol
    trade       short for trade.*         AAPL      short for *.AAPL     status   status records, status.AAPL halts

`*`, `?` and `[...]` are globs; a leading `marketdata.` is allowed, as the topics on the wire have it. Symbols may hold
dots: only the first dot parts type from symbol. Pure; called by tools/tail.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shm.layout import NO_INSTRUMENT, TYPE_NAMES

_PREFIX: Final = "marketdata."
_TYPES: Final = TYPE_NAMES[1:]
_GLOB: Final = re.compile(r"[*?\[]")


class PatternError(ValueError):
    """A pattern that can match nothing; the message says why and what was perhaps meant."""


@dataclass(frozen=True)
class Pattern:
    """One pattern: record types by name, and a glob for the symbol."""

    types: frozenset[str]
    symbol: str

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read one pattern. Raises PatternError."""
        body = text.removeprefix(_PREFIX)
        if body in ("feed.status", "feed.status.*"):
            body = "status"
        kind, dot, symbol = body.partition(".")
        if not body or (dot and not (kind and symbol)):
            raise PatternError(f"pattern {text!r}: expected TYPE.SYMBOL, e.g. 'tick.AAPL', 'quote.*', '*.AAPL'")
        types = frozenset(name for name in _TYPES if fnmatchcase(name, kind))
        if not dot:
            if types:
                return cls(types, "*")
            nearest = difflib.get_close_matches(kind, _TYPES, n=1, cutoff=0.75)
            if nearest and kind.islower():
                raise PatternError(f"pattern {text!r}: there is no type {kind!r}; did you mean {nearest[0]!r}?")
            return cls(frozenset(_TYPES), kind)
        if not types:
            raise PatternError(
                f"pattern {text!r}: there is no type {kind!r}, types are {', '.join(_TYPES)}; "
                f"for a symbol with a dot write '*.{body}'"
            )
        return cls(types, symbol)

    @property
    def every_symbol(self) -> bool:
        """Whether it takes records of any symbol, and those of none."""
        return self.symbol == "*"


class TopicFilter:
    """Several patterns together: a record passes if one of them matches."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """No pattern = everything passes. Raises PatternError."""
        self.patterns = [Pattern.parse(text) for text in patterns] or [Pattern(frozenset(_TYPES), "*")]
        self._globs = [re.compile(translate(pattern.symbol)) for pattern in self.patterns]
        self._types = [
            np.array([name in pattern.types for name in ("", *_TYPES)] + [False] * (256 - len(TYPE_NAMES)))
            for pattern in self.patterns
        ]
        # Per pattern, by instrument id: whether the symbol matches. Grown as new instruments come.
        self._matches: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_) for _ in self.patterns]

    def matches(self, kind: str, symbol: str) -> bool:
        """Whether a record of that type name and symbol passes."""
        return any(
            kind in pattern.types and (pattern.every_symbol or glob.match(symbol) is not None)
            for pattern, glob in zip(self.patterns, self._globs, strict=True)
        )

    def select(self, records: np.ndarray, symbol_of: Callable[[int], str]) -> NDArray[np.bool_]:
        """Which of `records` (shape (n,), dtype RECORD) pass: bool, shape (n,)."""
        chosen = np.zeros(len(records), dtype=np.bool_)
        instruments = records["instrument_id"]
        for number, pattern in enumerate(self.patterns):
            mine = self._types[number][records["record_type"]]
            if not pattern.every_symbol:
                mine &= self._by_instrument(number, instruments, symbol_of)
            chosen |= mine
        return chosen

    def topics(self) -> list[str]:
        """Topics to subscribe to on ZeroMQ, exact or with a trailing `*`, so that everything which may pass comes."""
        found = set()
        for pattern in self.patterns:
            fixed = _GLOB.split(pattern.symbol, maxsplit=1)[0]
            star = "" if fixed == pattern.symbol else "*"
            for kind in pattern.types:
                found.add("marketdata.feed.status" if kind == "status" else f"{_PREFIX}{kind}.{fixed}{star}")
        return sorted(found)

    def _by_instrument(
        self, number: int, instruments: NDArray[np.uint32], symbol_of: Callable[[int], str]
    ) -> NDArray[np.bool_]:
        known = self._matches[number]
        real = instruments[instruments != NO_INSTRUMENT]
        highest = int(real.max(initial=0)) + 1 if len(real) else 0
        if highest > len(known):
            glob = self._globs[number]
            more = [glob.match(symbol_of(number)) is not None for number in range(len(known), highest)]
            known = self._matches[number] = np.concatenate([known, np.array(more, dtype=np.bool_)])
        if not len(known):
            return np.zeros(len(instruments), dtype=np.bool_)
        chosen: NDArray[np.bool_] = known[np.minimum(instruments, len(known) - 1)] & (instruments != NO_INSTRUMENT)
        return chosen
