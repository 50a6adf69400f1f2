"""What every test may ask for: the samples folder, and an engine name of its own that leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts the tests in the background ignores SIGINT for them, and what is ignored stays so in every child:
# the engines and tools under test shall see Ctrl-C as in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something about the machine, and nothing about what is tested.
settings.register_profile("tickengine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tickengine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under emulation of another processor some of the kernel's interface is missing (tests/arm64/run.sh)."""
    if os.environ.get("TICKENGINE_EMULATED"):
        skip = pytest.mark.skip(reason="qemu-user does not pass on what this needs of the kernel")
        for item in items:
            if item.get_closest_marker("bare_kernel"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of captured market data: `$TICKENGINE_SAMPLES` or `../shared/samples`; the test is skipped without it."""
    folder = Path(os.environ.get("TICKENGINE_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip(f"no captured samples at {folder} (set TICKENGINE_SAMPLES)")
    return folder


@pytest.fixture
def engine_name() -> Iterator[str]:
    """A name no other test uses; segments of that name that a failed test leaves behind are removed."""
    name = f"t{secrets.token_hex(5)}"
    yield name
    from shm.segment import list_segments, unlink_segment

    for segment in list_segments(name):
        unlink_segment(segment)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[object]:
    """A redis-server for tests that do not disturb it."""
    from tests.servers import RedisServer

    server = RedisServer("--appendonly", "no")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[object]:
    """A PostgreSQL for tests that do not disturb it; what they leave in it must not matter to others."""
    from tests.servers import PostgresServer

    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_timescale() -> Iterator[object]:
    """The same with TimescaleDB."""
    from tests.servers import PostgresServer

    server = PostgresServer(timescale=True)
    server.start()
    yield server
    server.close()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last line says how many tests were skipped, and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    if skipped:
        reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
        print(f"{len(skipped)} skipped: " + "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common()))
