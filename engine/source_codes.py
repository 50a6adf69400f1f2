"""The codes of plug-in sources: what stands in the `source` byte of their records, one a name, for ever.

A code once given stays the name's own (engine/store.py), so that journal and archive stay readable when a plug-in is
removed and another comes. Made by engine/control.py; engine/feeds.py asks for the code of a feed that is added. Looks
for a plug-in only where a source is not built in. Readers learn the names from the status block
(shm/source_names.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from engine.errors import ConfigError, FeedConflict, StoreError
from engine.store import Store
from shm.source_names import FIRST_CODE, LAST_CODE
from workers.plugins import find, is_built_in

_FULL: Final = f"all {LAST_CODE - FIRST_CODE + 1} codes for plug-in sources have been given"


class SourceCodes:
    """Name -> code, of all plug-ins that have ever been used."""

    def __init__(self, store: Store) -> None:
        """Read what has been given. Raises ConfigError if the file can't be read."""
        self._store = store
        self._codes = store.source_codes()
        self._told: list[Callable[[str, int], None]] = []

    def tell(self, listener: Callable[[str, int], None]) -> None:
        """Call this for every name, those given later too."""
        self._told.append(listener)
        for name, code in self._codes.items():
            listener(name, code)

    def for_start(self, sources: Iterable[str]) -> dict[str, int]:
        """The codes of those among `sources` that are plug-ins, installed and usable. Raises ConfigError."""
        wanted = sorted({name for name in sources if not is_built_in(name)})
        try:
            return {name: code for name in wanted if (code := self.code_of(name))}
        except (StoreError, FeedConflict) as error:
            raise ConfigError(str(error)) from error

    def code_of(self, source: str) -> int:
        """The code of a plug-in, given now if it is new; 0 = there is no usable plug-in of that name. May block.

        Raises:
            StoreError: it can't be kept.
            FeedConflict: there is none left.
        """
        found = find(source)
        if found is None or found.refused:
            return 0
        if source not in self._codes:
            code = next((n for n in range(FIRST_CODE, LAST_CODE + 1) if n not in self._codes.values()), 0)
            if not code:
                raise FeedConflict(_FULL)
            self._store.put_source_code(source, code)
            self._codes[source] = code
            for told in self._told:
                told(source, code)
        return self._codes[source]
