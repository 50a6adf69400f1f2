"""Which core a worker runs on, and with what priority: found, asked for, and reported as it was got.

Called once by each worker at start (workers/runtime.py) and by `tickengine doctor`. Linux: performance cores are found
from `cpu_capacity` (arm64), `/sys/devices/cpu_core/cpus` (hybrid x86) or the highest `cpuinfo_max_freq`; the worker is
bound to one of them by sched_setaffinity, and gets SCHED_FIFO and locked memory where settings ask for it and the
system permits. macOS has no core affinity on Apple silicon; QoS class USER_INTERACTIVE is the one lever. Nothing here
fails a worker: what could not be had is said in the report.

The rules of choice:

- Only CPUs that this process may use count (its affinity mask, which the kernel keeps within the cgroup's cpuset), and
  of these only one per physical core: two spinning workers on sibling threads would halve each other.
- Fastest cores first. CPU 0 comes last among its equals, because most interrupts land there.
- Fewer cores than workers, or a CPU quota below the number of workers: nobody is pinned. Pinning some would let the
  scheduler put the others on their cores and take away their way out.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.spec import Placement

_PR_SET_NAME: Final = 15
_MCL_CURRENT_AND_FUTURE: Final = 3
_QOS_CLASS_USER_INTERACTIVE: Final = 0x21
_SYSTEM_ROOT: Final = Path("/")

REPORT_MAX_CHARS: Final = 31


@dataclass(frozen=True)
class Core:
    """One physical core that this process may use. `speed` compares cores of one machine only; larger is faster."""

    cpu: int
    speed: int
    kind: str  # "performance", "efficiency" or, where all are alike, "core"


@dataclass(frozen=True)
class Report:
    """What placement a worker got: `core` -1 = unpinned; `short` fits the status block; `detail` is for the log."""

    core: int
    short: str
    detail: str


def performance_cores(root: Path = _SYSTEM_ROOT, allowed: Collection[int] | None = None) -> list[Core]:
    """Physical cores in the order in which workers should take them.

    Args:
        root: where `sys/` is, for tests.
        allowed: CPU numbers that may be used; None = this process's affinity mask.
    """
    usable = sorted(_allowed_cpus() if allowed is None else allowed)
    cpus = root / "sys/devices/system/cpu"
    speeds, how = _speeds(root, usable)
    # Turbo bins make a few of a server's like cores 1-5 % "faster": still the same kind.
    slow = {cpu for cpu in usable if speeds[cpu] * 100 < max(speeds.values()) * 90}
    fast_kind = "performance" if slow or how == "hybrid" else "core"
    seen: set[frozenset[int]] = set()
    cores = []
    for cpu in usable:
        siblings = frozenset(_cpu_list(_read(cpus / f"cpu{cpu}/topology/thread_siblings_list"))) or frozenset({cpu})
        if siblings not in seen:
            seen.add(siblings)
            cores.append(Core(cpu, speeds[cpu], "efficiency" if cpu in slow else fast_kind))
    return sorted(cores, key=lambda core: (core.kind == "efficiency", core.cpu == 0, -core.speed, core.cpu))


def choose(wanted: Placement, cores: list[Core], quota_cores: float | None = None) -> tuple[Core | None, str]:
    """The core for one worker and, if it gets none, why not (at most 31 characters).

    Every worker of the engine comes to the same plan from the same inputs, so no two get one core.
    """
    if wanted.policy == "none":
        return None, "unpinned: as configured"
    if wanted.policy == "core":
        for core in cores:
            if core.cpu == wanted.core:
                return core, ""
        return None, f"unpinned: core {wanted.core} not usable"[:REPORT_MAX_CHARS]
    if wanted.rank < 0 or wanted.workers < 1 or wanted.rank >= wanted.workers:
        return None, "unpinned: no rank given"
    if len(cores) < wanted.workers:
        return None, f"unpinned: {wanted.workers} workers {len(cores)} cores"[:REPORT_MAX_CHARS]
    if quota_cores is not None and quota_cores < wanted.workers:
        return None, f"unpinned: CPU quota {quota_cores:.1f} cores"[:REPORT_MAX_CHARS]
    return cores[wanted.rank], ""


def place(wanted: Placement, root: Path = _SYSTEM_ROOT) -> Report:
    """Put the calling process where `wanted` says, as far as the system allows, and report what it got."""
    if sys.platform == "darwin":
        return _place_macos(wanted)
    return _place_linux(wanted, root)


def name_process(name: str) -> None:
    """Name that ps, top and perf show for this process (Linux; 15 bytes)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def quota(root: Path = _SYSTEM_ROOT) -> float | None:
    """CPU quota of this cgroup in cores (cgroup v2 `cpu.max`); None = no limit, or none that can be seen."""
    limit, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not limit.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(limit) / int(period)


def _place_linux(wanted: Placement, root: Path) -> Report:
    cores = performance_cores(root)
    if wanted.policy == "core":
        # One asked for by number may be any allowed thread, not only the first of its core.
        cores = cores + [Core(cpu, 0, "core") for cpu in sorted(_allowed_cpus()) if cpu not in {c.cpu for c in cores}]
    core, why_not = choose(wanted, cores, quota(root))
    if core is not None:
        try:
            os.sched_setaffinity(0, {core.cpu})
        except OSError as error:
            core, why_not = None, f"unpinned: {error.strerror}"[:REPORT_MAX_CHARS]
    short = f"core {core.cpu}" if core is not None else why_not
    if core is not None and core.kind != "core":
        short = f"core {core.cpu} {core.kind}"
    notes = []
    if wanted.realtime_priority:
        notes.append(_realtime(wanted.realtime_priority))
    if wanted.lock_memory:
        notes.append(_lock_memory())
    granted = [note for note in notes if ":" not in note]
    return Report(
        core=core.cpu if core is not None else -1,
        short=" ".join([short, *granted])[:REPORT_MAX_CHARS],
        detail="; ".join([short, *notes]),
    )


def _place_macos(wanted: Placement) -> Report:
    asked = " (a core was asked for)" if wanted.policy == "core" else ""
    if wanted.policy == "none":
        return Report(-1, "unpinned: as configured", "unpinned, default QoS: as configured")
    code = ctypes.CDLL(None).pthread_set_qos_class_self_np(_QOS_CLASS_USER_INTERACTIVE, 0)
    if code != 0:
        return Report(-1, "unpinned, default QoS", f"QoS class refused ({os.strerror(code)}); no core affinity{asked}")
    return Report(
        -1, "qos user-interactive, unpinned", f"qos user-interactive; no core affinity on Apple silicon{asked}"
    )


def _realtime(priority: int) -> str:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"no SCHED_FIFO: {error.strerror} (LimitRTPRIO or CAP_SYS_NICE)"
    return f"fifo {priority}"


def _lock_memory() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        return f"memory not locked: {os.strerror(ctypes.get_errno())} (LimitMEMLOCK)"
    return "mlock"


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _speeds(root: Path, usable: list[int]) -> tuple[dict[int, int], str]:
    """A speed per CPU and where it was found. Equal speeds where the system says nothing (most virtual machines)."""
    cpus = root / "sys/devices/system/cpu"
    capacities = {cpu: _number(cpus / f"cpu{cpu}/cpu_capacity") for cpu in usable}
    if usable and all(capacities.values()):
        return capacities, "capacity"
    hybrid = _cpu_list(_read(root / "sys/devices/cpu_core/cpus"))
    if hybrid:
        return {cpu: 2 if cpu in hybrid else 1 for cpu in usable}, "hybrid"
    frequencies = {cpu: _number(cpus / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in usable}
    if usable and all(frequencies.values()):
        return frequencies, "frequency"
    return dict.fromkeys(usable, 1), "unknown"


def _cpu_list(text: str) -> set[int]:
    """CPU numbers of the kernel's list format, such as "0-3,8,10-11" (Documentation/admin-guide/cputopology.rst)."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            found.update(range(int(first), int(last or first) + 1))
    return found


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
