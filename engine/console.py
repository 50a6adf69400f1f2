"""What the engine prints: a line per process, the ready line, what workers say, the stop. For people, on one terminal.

Colours only on a terminal and without NO_COLOR; under systemd each line carries its level (sd-daemon(3)) and no colour.
Called by engine/control.py and through it by the supervisor; it decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from engine.plan import Plan
from engine.settings import Config

_DIM, _BOLD, _GREEN, _YELLOW, _OFF = "\033[2m", "\033[1m", "\033[32m", "\033[33m", "\033[0m"
_WARNING = "<4>"  # syslog level, understood by the journal


class Console:
    """The output of one control process."""

    def __init__(self, env: Mapping[str, str], out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        """`env` tells of NO_COLOR and of the journal."""
        self._out = out
        self._err = err
        self._colour = out.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        self._journal = bool(env.get("JOURNAL_STREAM")) and not out.isatty()
        self._width = 10

    def begin(self, config: Config, plan: Plan, *, adopted: bool) -> None:
        """First line."""
        self._width = max(len(worker.label) for worker in plan.workers)
        name = self._paint(_BOLD, config.engine.name)
        print(
            f"tickengine {name}" + (": goes on with the rings of a crashed engine" if adopted else ""), file=self._out
        )
        for file in config.replay.files:
            print(
                f"  replay {file} at {config.replay.speed}{'' if config.replay.speed == 'max' else 'x'}", file=self._out
            )
        self._out.flush()

    def process(self, label: str, pid: int, placement: str, does: str) -> None:
        """One process is ready."""
        where = placement or "any core"
        line = f"  {label:<{self._width}}  {self._paint(_DIM, f'pid {pid:<7}')} {where:<16}  {does}"
        print(line.rstrip(), file=self._out, flush=True)

    def ready(self, plan: Plan, pid: int) -> None:
        """The engine serves."""
        raw, msgpack, json = (plan.endpoints[kind][0] for kind in ("raw", "msgpack", "json"))
        self.process("control", pid, "", "supervises, serves HTTP")
        word = self._paint(_GREEN, "ready")
        ws = f"  {plan.ws_url}" if plan.ws_url else ""
        print(
            f"{word}  {self._paint(_BOLD, plan.http_url)}{ws}  zmq raw {raw}  msgpack {msgpack}  json {json}",
            file=self._out,
        )
        print(self._paint(_DIM, "       Ctrl-C stops it"), file=self._out, flush=True)

    def worker_line(self, label: str, line: str) -> None:
        """A line that a worker wrote, or that the supervisor says about it."""
        if not line:
            return
        if self._journal:
            print(f"{_WARNING}{label}: {line}", file=self._err, flush=True)
        else:
            print(f"  {self._paint(_YELLOW, f'{label:<{self._width}}')}  {line}", file=self._err, flush=True)

    def error(self, text: str) -> None:
        """The engine ends because of this."""
        print(f"{_WARNING if self._journal else ''}tickengine: {text}", file=self._err, flush=True)

    def stopping(self, why: str) -> None:
        """The stop has begun."""
        print(f"stopping ({why})", file=self._out, flush=True)

    def stopped(self, published: int, seconds: float) -> None:
        """The stop is over."""
        print(f"stopped after {published:,} records, in {seconds:.1f} s", file=self._out, flush=True)

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_OFF}" if self._colour else text
