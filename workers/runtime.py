"""What every worker process does the same way: settings in, heartbeat out, orderly end.

`main(role, settings_type, run)` is the whole of a worker's entry point:

    settings   first line of standard input (workers.spec.encode); bad ones are named on standard error, exit code 2
    status     its slot of the engine's status block: state, pid, core, placement, counters
    placement  core or QoS class before anything is allocated, reported as it was got (workers.placement)
    end        SIGTERM, a Drain command, or the end of standard input (the control process is gone, however it went)
               set `stopping`; `run` finishes what is in hand and returns. SIGINT is ignored: Ctrl-C in a terminal
               reaches every process of the group, and stopping in order is the control process's to do.

    STARTING --run calls ready()--> READY --stopping--> DRAINING --run returns--> STOPPED
        \\------------------------------- run raises -------------------------------> FAILED

Everything happens on the main thread, in `beat`: a worker whose loop hangs stops beating, which is how it is found out.
`run` calls `beat(now_ns)` each turn and never waits longer than MAX_WAIT_S elsewhere. Nothing here runs per record.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec

from shm.errors import ShmError
from shm.status import ProcessState, ProcessStatus, StatusBlock
from workers.errors import SettingsError
from workers.placement import name_process, place
from workers.spec import (
    EXIT_BAD_SETTINGS,
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_SHM,
    AnyCommand,
    Done,
    Drain,
    Hello,
    Ping,
    Refused,
    Reply,
    WorkerSettings,
    decode,
    decode_command,
    encode_reply,
)

MAX_WAIT_S: Final = 0.2  # an idle worker wakes five times a second
BEAT_NS: Final = 50_000_000
MAX_SETTINGS_BYTES: Final = 4 << 20

SettingsT = TypeVar("SettingsT", bound=WorkerSettings)

log = logging.getLogger("worker")


class Runtime(Generic[SettingsT]):
    """One worker process as its `run` function sees it; made by `main`.

    Attributes:
        settings: what the control process sent.
        block: the engine's status block, attached for writing.
        status: this process's slot in it.
        stopping: True once the worker should finish; never goes back to False.
    """

    def __init__(self, settings: SettingsT, block: StatusBlock, status: ProcessStatus, stdin_fd: int = 0) -> None:
        """Take charge of SIGTERM and of `stdin_fd`, from which the settings line has been read already."""
        self.settings = settings
        self.block = block
        self.status = status
        self.stopping = False
        self._stdin_fd = stdin_fd
        self._next_beat_ns = 0
        self._commands: list[AnyCommand] = []
        self._socket: Any = None
        self._wake_fd, self._signal_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._signal_fd, False)
        signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self.stop("SIGTERM"))
        self._fds = [stdin_fd, self._wake_fd]
        if settings.control_endpoint:
            self._connect(settings.control_endpoint)

    def _connect(self, endpoint: str) -> None:
        import zmq

        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.identity = self.settings.label.encode()
        self._socket.linger = 100
        self._socket.connect(endpoint)
        self._fds.append(self._socket.getsockopt(zmq.FD))
        self.reply(Hello(label=self.settings.label, pid=os.getpid()))

    def ready(self) -> None:
        """Say that the worker does its work from now on. What start-up allocated is never again scanned for garbage."""
        gc.collect()
        gc.freeze()
        if not self.stopping:
            self.status.state = ProcessState.READY
        self.beat(time.time_ns())

    def stop(self, why: str) -> None:
        """Ask the worker to finish; `why` goes to the log."""
        if not self.stopping:
            self.stopping = True
            self.status.state = ProcessState.DRAINING
            log.info("stopping: %s", why)

    def beat(self, now_ns: int) -> None:
        """Heartbeat, and a look at standard input and the control socket; does so every 50 ms, else returns at once."""
        if now_ns < self._next_beat_ns and self._next_beat_ns - now_ns <= BEAT_NS:  # the clock may have been set back
            return
        self._next_beat_ns = now_ns + BEAT_NS
        self.status.heartbeat(now_ns)
        self._look(0.0)

    def wait(self, timeout_s: float, fds: Sequence[int] = ()) -> list[int]:
        """Sleep up to `timeout_s` seconds, at most MAX_WAIT_S; a signal, a command or one of `fds` ends it sooner.

        Returns those of `fds` that are readable.
        """
        return self._look(min(timeout_s, MAX_WAIT_S), fds)

    def commands(self) -> list[AnyCommand]:
        """Commands not yet handed out, oldest first; answer each with `reply`. Ping and Drain are dealt with here."""
        if not self._commands:
            return []
        pending, self._commands = self._commands, []
        return pending

    def reply(self, reply: Reply) -> None:
        """Send a reply to the control process; dropped if it does not take it."""
        if self._socket is not None:
            import zmq

            try:
                self._socket.send(encode_reply(reply), zmq.DONTWAIT)
            except zmq.Again:
                log.warning("the control process takes no messages: reply dropped")

    def _look(self, timeout_s: float, fds: Sequence[int] = ()) -> list[int]:
        readable, _, _ = select.select([*self._fds, *fds] if fds else self._fds, (), (), max(0.0, timeout_s))
        if self._wake_fd in readable:
            os.read(self._wake_fd, 512)
        if self._stdin_fd in readable and not os.read(self._stdin_fd, 4096):
            self._fds.remove(self._stdin_fd)
            self.stop("the control process is gone (end of standard input)")
        if self._socket is not None:
            self._receive()
        return [fd for fd in fds if fd in readable]

    def _receive(self) -> None:
        import zmq

        while True:
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                command = decode_command(frame)
            except msgspec.DecodeError as error:
                log.warning("not a command: %s", error)
                self.reply(Refused(error=f"not a command: {error}"))
                continue
            if isinstance(command, Ping):
                self.reply(Done(request_id=command.request_id))
            elif isinstance(command, Drain):
                self.reply(Done(request_id=command.request_id))
                self.stop("drain command")
            else:
                self._commands.append(command)

    def close(self) -> None:
        """Give back the signal handling and the control socket."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake_fd)
        os.close(self._signal_fd)
        if self._socket is not None:
            self._socket.close()


def main(role: str, settings_type: type[SettingsT], run: Callable[[Runtime[SettingsT]], None]) -> NoReturn:
    """Be a worker process: read settings, register, place, run, and exit with a code of workers.spec.EXIT_*."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_CLEAN))  # until there is something to finish
    sys.exit(_worker(role, settings_type, run))


def _worker(role: str, settings_type: type[SettingsT], run: Callable[[Runtime[SettingsT]], None]) -> int:
    try:
        settings = _read_settings(role, settings_type)
    except (SettingsError, msgspec.DecodeError) as error:
        print(f"workers.{role}: settings: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format=f"%(asctime)s.%(msecs)03d {settings.label} %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    name_process(f"tk-{settings.label}")
    try:
        block = StatusBlock.attach(settings.engine, write=True)
        status = block.register(settings.label, role, os.getpid())
    except ShmError as error:
        log.error("engine %s: status block: %s", settings.engine, error)
        return EXIT_SHM
    return _supervised(settings, block, status, run)


def _supervised(
    settings: SettingsT, block: StatusBlock, status: ProcessStatus, run: Callable[[Runtime[SettingsT]], None]
) -> int:
    """The outer loop of the process: whatever `run` raises ends the worker with a state and an exit code."""
    status.state = ProcessState.STARTING
    placed = place(settings.placement)
    status.core = placed.core
    status.placement = placed.short
    log.info("placement: %s", placed.detail)
    runtime = Runtime(settings, block, status)
    code = EXIT_CLEAN
    try:
        run(runtime)
    except SettingsError as error:
        log.error("settings: %s", error)
        code = EXIT_BAD_SETTINGS
    except ShmError as error:
        log.error("shared memory: %s", error)
        code = EXIT_SHM
    except Exception:  # the process's outer loop: it ends here, the supervisor starts it again
        log.exception("worker failed")
        code = EXIT_FAILED
    status.state = ProcessState.STOPPED if code == EXIT_CLEAN else ProcessState.FAILED
    status.heartbeat(time.time_ns())
    runtime.close()
    return code


def _read_settings(role: str, settings_type: type[SettingsT]) -> SettingsT:
    """The first line of standard input. The protocol has no second one: what follows in the same read is dropped."""
    line = bytearray()
    while b"\n" not in line:
        chunk = os.read(0, 65536)
        if not chunk:
            break
        line += chunk
        if len(line) > MAX_SETTINGS_BYTES:
            raise SettingsError(f"more than {MAX_SETTINGS_BYTES} bytes before the end of the line")
    if not line.strip():
        raise SettingsError("standard input ended before the settings; expected one line of JSON (workers.spec.encode)")
    settings = decode(bytes(line.partition(b"\n")[0]), settings_type)
    if settings.role != role:
        raise SettingsError(f"role is {settings.role!r}, but this is workers.{role}")
    return settings
