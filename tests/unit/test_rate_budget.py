"""The rate budget of an API key: exact limits, shared by processes, outliving them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workers.errors import SettingsError, SourceError
from workers.rate_budget import LOCK_RETRY_NS, MAX_REQUESTS, Limit, RateBudget

S = 1_000_000_000
NOW = 1_700_000_000 * S
FIVE_A_MINUTE = (Limit(5, 60.0),)

# Takes what it may until a file appears; prints the times of what it took.
TAKER = """
import sys, time
from pathlib import Path
from workers.rate_budget import Limit, RateBudget
budget = RateBudget(Path(sys.argv[1]), "vendor", "key", [Limit(20, 0.5), Limit(100, 3600.0)])
taken = []
print("ready", flush=True)
sys.stdin.readline()
while True:
    now = time.time_ns()
    wait = budget.try_take(now)
    if not wait:
        taken.append(now)
        print(now, flush=True)
    elif wait > 60e9:
        break
    else:
        time.sleep(min(wait / 1e9, 0.005))
"""


def budget(folder: Path, *limits: Limit, key: str = "key") -> RateBudget:
    return RateBudget(folder, "vendor", key, limits or FIVE_A_MINUTE)


def test_a_limit_holds_over_any_period(tmp_path: Path) -> None:
    one = budget(tmp_path)
    assert [one.try_take(NOW + i * S) for i in range(5)] == [0] * 5
    assert one.try_take(NOW + 10 * S) == 50 * S
    assert one.used(one.limits[0], NOW + 10 * S) == 5
    assert one.try_take(NOW + 60 * S) == 0
    assert one.try_take(NOW + 60 * S) == S  # the second of the five is 59 s old


def test_the_tightest_of_several_limits_decides(tmp_path: Path) -> None:
    one = budget(tmp_path, Limit(1, 1.0), Limit(3, 86_400.0))
    assert one.try_take(NOW) == 0
    assert one.try_take(NOW + S // 2) == S // 2
    assert one.try_take(NOW + S) == 0
    assert one.try_take(NOW + 2 * S) == 0
    assert one.try_take(NOW + 3 * S) == 86_397 * S


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    one = budget(tmp_path)
    for _ in range(5):
        assert one.try_take(NOW) == 0
    one.block(NOW + 90 * S)
    one.close()
    again = budget(tmp_path)
    assert again.try_take(NOW + S) == 89 * S
    assert again.blocked_until_ns() == NOW + 90 * S
    assert again.try_take(NOW + 90 * S) == 0


def test_two_keys_have_two_budgets_and_no_file_tells_a_key(tmp_path: Path) -> None:
    one, other = budget(tmp_path, key="SECRETKEY1"), budget(tmp_path, key="SECRETKEY2")
    for _ in range(5):
        assert one.try_take(NOW) == 0
    assert one.try_take(NOW) == 60 * S
    assert other.try_take(NOW) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for file in files:
        assert b"SECRETKEY" not in file.name.encode() + file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0


def test_what_never_reached_the_vendor_does_not_count(tmp_path: Path) -> None:
    one = budget(tmp_path, Limit(2, 60.0))
    assert one.try_take(NOW) == 0
    assert one.try_take(NOW + S) == 0
    one.give_back(NOW + S)
    assert one.used(one.limits[0], NOW + S) == 1
    assert one.try_take(NOW + 2 * S) == 0
    assert one.try_take(NOW + 3 * S) == 57 * S


def test_a_block_is_never_shortened(tmp_path: Path) -> None:
    one, other = budget(tmp_path), budget(tmp_path)
    one.block(NOW + 100 * S)
    other.block(NOW + 10 * S)
    assert one.try_take(NOW) == other.try_take(NOW) == 100 * S


def test_a_clock_set_back_delays_by_one_period_at_most(tmp_path: Path) -> None:
    one = budget(tmp_path)
    for _ in range(5):
        one.try_take(NOW + 10**9 * S)
    assert one.try_take(NOW) == 60 * S
    assert one.try_take(NOW + 60 * S) == 0


def test_a_lock_held_elsewhere_costs_a_moment_and_no_block_is_lost(tmp_path: Path) -> None:
    one = budget(tmp_path)
    holder = os.open(one.path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert one.try_take(NOW) == LOCK_RETRY_NS
    one.block(NOW + 30 * S)
    assert one.try_take(NOW) == 30 * S
    os.close(holder)
    assert one.try_take(NOW) == 30 * S
    assert budget(tmp_path).try_take(NOW) == 30 * S


def test_a_foreign_file_is_refused_and_a_half_made_one_completed(tmp_path: Path) -> None:
    path = budget(tmp_path).path
    path.write_bytes(b"TKBUDGET" + bytes(100))
    assert budget(tmp_path).try_take(NOW) == 0
    path.write_bytes(b"something else altogether" * 1000)
    with pytest.raises(SourceError, match="remove it"):
        budget(tmp_path)
    with pytest.raises(SettingsError, match=str(MAX_REQUESTS)):
        budget(tmp_path, Limit(MAX_REQUESTS + 1, 1.0))


def test_more_requests_than_are_kept_leave_the_limits_exact(tmp_path: Path) -> None:
    one = budget(tmp_path, Limit(MAX_REQUESTS, 10.0))
    for i in range(3 * MAX_REQUESTS):
        assert one.try_take(NOW + i * S // 100) == 0
    one = budget(tmp_path, Limit(1, 5.0))
    assert one.try_take(NOW + (3 * MAX_REQUESTS - 1) * S // 100 + S) == 4 * S


def test_processes_share_one_budget_even_if_one_is_killed(tmp_path: Path) -> None:
    """Four real processes take 100 requests between them, never more than 20 in half a second."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    victim = children[0]
    assert victim.stdout is not None
    first: list[int] = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        first = first or [int(victim.stdout.readline())]  # before the others take everything
    victim.send_signal(signal.SIGKILL)
    taken = first + [int(line) for line in victim.stdout if line.endswith("\n")]
    for child in children[1:]:
        assert child.stdout is not None
        taken += [int(line) for line in child.stdout]
        assert child.wait() == 0
    victim.wait()
    taken.sort()
    assert 99 <= len(taken) <= 100  # the victim may have died between taking one and saying so
    for early, late in zip(taken, taken[20:], strict=False):
        assert late - early >= S // 2
    assert budget(tmp_path, Limit(100, 3600.0)).try_take(time.time_ns()) > 0
