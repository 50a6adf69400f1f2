"""Order books that are had as changes over a WebSocket and a first picture over HTTP: which change follows which
picture.

    WAITING  changes are held; the picture is asked for once the first of them is there, or none has come for a while
       | it comes: changes that end at or before it are old; the first of the others must touch it, or it is too old
    SYNCED   changes pass; a gap among them, or a new connection, begins it all anew

The rule is that of Binance's "How to manage a local order book correctly". Bounded: what is held above MAX_HELD is
let go of, counted, and a new picture asked for. Pure; used by workers/venues/rest_books.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

MAX_HELD: Final = 2000  # messages of one book: minutes
QUIET_NS: Final = 2_000_000_000  # a book that does not change for so long is asked for all the same
FIRST_RETRY_NS: Final = 1_000_000_000
LONGEST_RETRY_NS: Final = 60_000_000_000


@dataclass(frozen=True)
class Change:
    """One message of changes, from update `first` to `final`; `first` 0 = the venue gives times and no numbers."""

    first: int
    final: int
    message: bytes
    ts_receive: int
    connection: int


@dataclass
class _Book:
    synced: bool = False
    asked: bool = False
    not_before_ns: int = 0
    since_ns: int = 0  # when it was first looked at
    least: int = 0  # a picture older than this is of no use
    failures: int = 0
    held: deque[Change] = field(default_factory=deque)


class DepthSync:
    """The books of one feed. `dropped` counts changes let go of."""

    def __init__(self) -> None:
        """No book yet; each is made by its first change."""
        self.dropped = 0
        self._books: dict[str, _Book] = {}

    @property
    def all_synced(self) -> bool:
        """Whether every change can pass: nothing to look at in the messages."""
        return all(book.synced for book in self._books.values())

    def expect(self, symbol: str, least: int = 0) -> None:
        """This book begins anew: connected again, or a change is missing and the next one began at `least`."""
        book = self._books.get(symbol)
        if book is None:
            self._books[symbol] = _Book(least=least)
            return
        book.synced = book.asked = False
        book.least = max(book.least, least)
        book.since_ns = 0
        book.held.clear()

    def is_waiting(self, symbol: str) -> bool:
        """Whether its changes are held."""
        book = self._books.get(symbol)
        return book is not None and not book.synced

    def hold(self, symbol: str, change: Change) -> None:
        """Keep a change of a book that waits."""
        book = self._books[symbol]
        held = book.held
        if not held and not change.first:  # unnumbered: a picture follows on only if it is newer than what was seen
            book.least = max(book.least, change.final)
        held.append(change)
        if len(held) > MAX_HELD:
            self.dropped += len(held)
            held.clear()

    def wanted(self, now_ns: int) -> str | None:
        """A book whose picture is to be asked for now; given once."""
        for symbol, book in self._books.items():
            if book.synced or book.asked or now_ns < book.not_before_ns:
                continue
            book.since_ns = book.since_ns or now_ns
            if book.held or now_ns - book.since_ns >= QUIET_NS:
                book.asked = True
                return symbol
        return None

    def ask(self, symbol: str) -> None:
        """Its picture is asked for, whatever `wanted` would say."""
        book = self._books.get(symbol)
        if book is not None:
            book.asked = True

    def picture(self, symbol: str, update: int, now_ns: int) -> list[Change] | None:
        """A picture as of `update`: the changes to follow it, None = it is too old, or nobody waits for it."""
        book = self._books.get(symbol)
        if book is None or book.synced or not book.asked:
            return None
        while book.held and book.held[0].final <= update:
            book.held.popleft()
        if update < book.least or (book.held and book.held[0].first > update + 1):
            self.failed(symbol, now_ns)
            return None
        changes = list(book.held)
        book.held.clear()
        book.synced, book.asked, book.failures = True, False, 0
        return changes

    def failed(self, symbol: str, now_ns: int, retry_after_s: float = 0.0) -> None:
        """The picture could not be had, or was of no use: ask again, at growing intervals."""
        book = self._books.get(symbol)
        if book is None:
            return
        book.failures += 1
        wait_ns = min(LONGEST_RETRY_NS, FIRST_RETRY_NS << min(book.failures - 1, 8))
        book.not_before_ns = now_ns + max(wait_ns, round(retry_after_s * 1e9))
        book.asked = False
