"""`python -m engine`: the engine with the options of `tickengine run`, for work on the engine itself."""

from __future__ import annotations

import argparse
import os
import sys

from engine.config import load
from engine.errors import EngineError
from engine.main import run

_KEYS = {
    "name": "engine.name",
    "simulate": "simulate.enabled",
    "replay": "replay.files",
    "speed": "replay.speed",
    "loop": "replay.loop",
    "start_delay": "engine.start_delay_s",
    "http_port": "http.port",
    "zmq_port": "zmq.base_port",
    "data_dir": "engine.data_dir",
    "exit_when_done": "engine.exit_when_done",
}


def main() -> int:
    """Read options, load, run."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    parser.add_argument("--config")
    parser.add_argument("--name")
    parser.add_argument("--simulate", action="store_const", const=True)
    parser.add_argument("--replay", nargs="+")
    parser.add_argument("--speed")
    parser.add_argument("--loop", action="store_const", const=True)
    parser.add_argument("--start-delay")
    parser.add_argument("--http-port")
    parser.add_argument("--zmq-port")
    parser.add_argument("--data-dir")
    parser.add_argument("--exit-when-done", action="store_const", const=True)
    args = vars(parser.parse_args())
    overrides = {key: args[option] for option, key in _KEYS.items() if args[option] is not None}
    try:
        config = load(args["config"], os.environ, overrides)
    except EngineError as error:
        print(f"tickengine: {error}", file=sys.stderr)
        return error.exit_status
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
