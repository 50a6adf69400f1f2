"""Placement: the right cores, in the right order, from the file trees that four kinds of machine show."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from workers.placement import REPORT_MAX_CHARS, choose, performance_cores, place, quota
from workers.spec import Placement


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n")


def cpu(root: Path, number: int, *, siblings: str = "", capacity: int = 0, max_khz: int = 0) -> None:
    folder = f"sys/devices/system/cpu/cpu{number}"
    write(root, f"{folder}/topology/thread_siblings_list", siblings or str(number))
    if capacity:
        write(root, f"{folder}/cpu_capacity", str(capacity))
    if max_khz:
        write(root, f"{folder}/cpufreq/cpuinfo_max_freq", str(max_khz))


@pytest.fixture
def big_little(tmp_path: Path) -> Path:
    for number in range(4):
        cpu(tmp_path, number, capacity=459)
    for number in range(4, 8):
        cpu(tmp_path, number, capacity=1024)
    return tmp_path


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """4 performance cores of two threads each (0-7) and 4 efficiency cores (8-11)."""
    for number in range(8):
        cpu(tmp_path, number, siblings=f"{number & ~1}-{number | 1}", max_khz=5_000_000)
    for number in range(8, 12):
        cpu(tmp_path, number, max_khz=3_800_000)
    write(tmp_path, "sys/devices/cpu_core/cpus", "0-7")
    write(tmp_path, "sys/devices/cpu_atom/cpus", "8-11")
    return tmp_path


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """8 cores, 16 threads, sibling of n is n + 8; core 5 has a slightly better turbo bin."""
    for number in range(16):
        cpu(
            tmp_path,
            number,
            siblings=f"{number % 8},{number % 8 + 8}",
            max_khz=3_700_000 if number % 8 == 5 else 3_600_000,
        )
    return tmp_path


@pytest.fixture
def small_vm(tmp_path: Path) -> Path:
    for number in range(2):
        cpu(tmp_path, number)
    return tmp_path


def numbers(root: Path, allowed: range | list[int]) -> list[int]:
    return [core.cpu for core in performance_cores(root, allowed)]


def test_big_cores_come_before_little_ones(big_little: Path) -> None:
    cores = performance_cores(big_little, range(8))
    assert [core.cpu for core in cores] == [4, 5, 6, 7, 1, 2, 3, 0]
    assert [core.kind for core in cores] == ["performance"] * 4 + ["efficiency"] * 4


def test_hybrid_takes_one_thread_of_each_performance_core_first(hybrid: Path) -> None:
    assert numbers(hybrid, range(12)) == [2, 4, 6, 0, 8, 9, 10, 11]


def test_server_offers_each_physical_core_once_and_cpu_0_last(server: Path) -> None:
    cores = performance_cores(server, range(16))
    assert [core.cpu for core in cores] == [5, 1, 2, 3, 4, 6, 7, 0]
    assert {core.kind for core in cores} == {"core"}


def test_only_allowed_cpus_are_offered(server: Path) -> None:
    assert numbers(server, [3, 11, 12]) == [3, 12]


def test_two_cores_are_enough_for_two_workers_and_never_shared(small_vm: Path) -> None:
    cores = performance_cores(small_vm, range(2))
    chosen = [choose(Placement(rank=rank, workers=2), cores)[0] for rank in range(2)]
    assert [core.cpu for core in chosen if core is not None] == [1, 0]


def test_more_workers_than_cores_leaves_all_unpinned_and_says_so(small_vm: Path) -> None:
    cores = performance_cores(small_vm, range(2))
    for rank in range(3):
        assert choose(Placement(rank=rank, workers=3), cores) == (None, "unpinned: 3 workers 2 cores")


def test_cpu_quota_below_the_number_of_workers_leaves_them_unpinned(server: Path) -> None:
    write(server, "sys/fs/cgroup/cpu.max", "150000 100000")
    assert quota(server) == 1.5
    cores = performance_cores(server, range(16))
    assert choose(Placement(rank=0, workers=2), cores, quota(server)) == (None, "unpinned: CPU quota 1.5 cores")
    assert choose(Placement(rank=0, workers=1), cores, quota(server))[0] is not None


def test_no_quota_where_the_cgroup_has_none(server: Path) -> None:
    assert quota(server) is None
    write(server, "sys/fs/cgroup/cpu.max", "max 100000")
    assert quota(server) is None


@pytest.mark.parametrize("workers", range(1, 9))
def test_no_two_workers_get_one_core(hybrid: Path, workers: int) -> None:
    cores = performance_cores(hybrid, range(12))
    chosen = [choose(Placement(rank=rank, workers=workers), cores)[0] for rank in range(workers)]
    assert len({core.cpu for core in chosen if core is not None}) == workers


def test_a_worker_without_a_rank_is_not_pinned(server: Path) -> None:
    assert choose(Placement(), performance_cores(server, range(16))) == (None, "unpinned: no rank given")


def test_a_core_that_may_not_be_used_is_refused_by_name(server: Path) -> None:
    core, why_not = choose(Placement(policy="core", core=99), performance_cores(server, range(16)))
    assert core is None
    assert why_not == "unpinned: core 99 not usable"


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity is Linux")
def test_placing_binds_the_process_to_what_the_report_says() -> None:
    before = os.sched_getaffinity(0)
    try:
        report = place(Placement(policy="core", core=min(before)))
        assert report.core == min(before)
        assert os.sched_getaffinity(0) == {min(before)}
        assert report.short.startswith(f"core {min(before)}")
        assert len(report.short) <= REPORT_MAX_CHARS
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity is Linux")
def test_policy_none_changes_nothing() -> None:
    before = os.sched_getaffinity(0)
    report = place(Placement(policy="none"))
    assert (report.core, report.short) == (-1, "unpinned: as configured")
    assert os.sched_getaffinity(0) == before
