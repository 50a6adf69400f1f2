"""`run`: a checked configuration in, a running engine, an exit status out. Called by `tickengine run`.

Everything that can be told in a sentence ends here as one line on standard error and the exit status of its class
(engine/errors.py); what can not is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from engine.console import Console
from engine.errors import EngineError
from engine.settings import Config


def run(config: Config, env: Mapping[str, str] | None = None) -> int:
    """Run the engine in the foreground until it is told to stop; returns the exit status (engine/errors.py)."""
    environment = os.environ if env is None else env
    console = Console(environment, sys.stdout, sys.stderr)
    try:
        return _run(config, environment, console)
    except EngineError as error:
        console.error(str(error))
        return error.exit_status


def _run(config: Config, env: Mapping[str, str], console: Console) -> int:
    import asyncio

    import uvloop

    from engine.control import Control, raise_file_limit

    raise_file_limit()

    async def main() -> int:
        return await Control(config, env, console).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
