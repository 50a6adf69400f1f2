"""Errors of the engine package, and the exit status of the control process that each leads to.

    EngineError                exit 1   our fault: something that should not happen
    |-- ConfigError            exit 2   the configuration is unusable; names file, key, value, what is allowed
    |-- SharedMemoryError      exit 3   the machine's: shared memory is full, not permitted, or of another layout
    |-- PortBusy               exit 4   a port that the engine needs is taken
    |-- WorkerNeverStarted     exit 5   a worker did not become ready at start
    |-- AlreadyRunning         exit 6   a live engine has this name
    |-- StoreError             exit 1   the machine's: what must outlive the engine can't be written
    |-- FeedError              a change of feeds that was asked for over HTTP and not made; never ends the process
    |   |-- FeedRefused        the asker's: it can't work; says what to do
    |   |-- FeedConflict       the asker's: not as things are
    |   `-- Unavailable        the machine's: not now
    `-- SubscriptionError      the same for subscriptions
        |-- SubscriptionRefused
        |-- SubscriptionConflict
        `-- SubscriptionUnavailable

Exit 0 is a clean stop (SIGTERM, SIGINT, or a replay that ended under `exit_when_done`), and 130 a second Ctrl-C that
cut the stop short.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_CLEAN: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2
EXIT_SHM: Final = 3
EXIT_PORT: Final = 4
EXIT_WORKER: Final = 5
EXIT_RUNNING: Final = 6
EXIT_INTERRUPTED: Final = 130


class EngineError(Exception):
    """Base of every error of this package; `exit_status` is what the control process ends with."""

    exit_status: ClassVar[int] = EXIT_FAILED


class ConfigError(EngineError, ValueError):
    """A file, environment variable or option that can't be used."""

    exit_status = EXIT_CONFIG


class SharedMemoryError(EngineError):
    """A segment could not be made, adopted or removed."""

    exit_status = EXIT_SHM


class PortBusy(EngineError):
    """Something else listens where the engine shall listen."""

    exit_status = EXIT_PORT


class WorkerNeverStarted(EngineError):
    """A worker failed or stayed silent before it was ready for the first time."""

    exit_status = EXIT_WORKER


class AlreadyRunning(EngineError):
    """A live control process has this engine name."""

    exit_status = EXIT_RUNNING


class StoreError(EngineError):
    """The file under the data folder can't be written."""


class FeedError(EngineError):
    """Feeds are as they were before."""


class FeedRefused(FeedError, ValueError):
    """Asked for again it will not work either."""


class FeedConflict(FeedError):
    """It could work if something else were changed first."""


class Unavailable(FeedError):
    """It may work in a moment."""


class SubscriptionError(EngineError):
    """Subscriptions are as they were before."""


class SubscriptionRefused(SubscriptionError, ValueError):
    """Asked for again it will not work either; the message begins with the field."""


class SubscriptionConflict(SubscriptionError):
    """It could work if something else were changed first."""


class SubscriptionUnavailable(SubscriptionError):
    """It may work in a moment."""
