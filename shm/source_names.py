"""Names of sources that other packages bring: which code in a record's `source` stands for which name.

The control process gives every plug-in a code (64 to 255) that stays its own for ever, and says so in its slot of the
status block, as a counter `source.NAME` whose value is the code. Whoever turns records into words asks here: fan-out,
gateway, webhooks, mirrors, HTTP, `tickengine tail`. Only looked at for codes that are not built in, so that engines
without plug-ins pay nothing. It never gives a code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from shm.errors import ShmError
from shm.layout import Source
from shm.status import ProcessStatus, StatusBlock

FIRST_CODE: Final = int(Source.PLUGIN)
LAST_CODE: Final = 255
LOOK_AGAIN_S: Final = 1.0
_PREFIX: Final = "source."
_CONTROL: Final = "control"


class SourceNames(dict[int, str]):
    """Code -> name, as far as it is known; `get` looks again for one that is not, once a second at most."""

    def __init__(self, block: StatusBlock, clock: Callable[[], float] = time.monotonic) -> None:
        """Of the engine whose status block this is; `clock` gives seconds."""
        super().__init__()
        self._block = block
        self._clock = clock
        self._next_s = 0.0
        self.look()

    def look(self) -> None:
        """Read what the control process says now."""
        try:
            control = self._block.process(_CONTROL)
        except ShmError:  # no descriptor left to look with; what is known stays
            return
        if control is not None:
            names = control.counters.items()
            self.update({code: name.removeprefix(_PREFIX) for name, code in names if name.startswith(_PREFIX)})

    def get(self, code: int, default: Any = None) -> Any:
        """The name of a code; `default` if it has none."""
        found = super().get(code)
        if found is None and code >= FIRST_CODE and (now_s := self._clock()) >= self._next_s:
            self._next_s = now_s + LOOK_AGAIN_S
            self.look()
            found = super().get(code)
        return default if found is None else found


def tell(control: ProcessStatus, name: str, code: int) -> None:
    """Control process: from now on `code` means `name`."""
    control.counter(f"{_PREFIX}{name}").set(code)
