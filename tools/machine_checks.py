"""What of a machine matters to an engine in shared memory: each thing found, judged, with the command that changes it.

Called by tools/doctor.py. A `Host` says where to look, so that tests can show any machine; a check that has nothing to
look at on this system (macOS has no /sys) gives nothing. It changes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tools.console import bytes_text
from workers.placement import performance_cores, quota

_WORKERS: Final = 3  # of an engine as it comes: ingest, cache, fan-out
_ENGINE_BYTES: Final = 256 << 20  # its segments, and some room for symbols to come
_SHM_COMFORT_BYTES: Final = 1 << 30
_UDP_BYTES: Final = 4 << 20
_FAST_CLOCKS: Final = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")
_NATIVE: Final = (
    "shm._ring",
    "shm._status",
    "shm._latest",
    "workers._route",
    "workers._cache",
    "workers._quality",
    "workers._crc32c",
)
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283, "arm64": 283}
_FUTEX_WAITV: Final = 449  # on every architecture
_CAP_IPC_LOCK: Final = 14
_CAP_SYS_NICE: Final = 23
_LIMITS: Final = {"memlock": "Max locked memory", "nofile": "Max open files", "rtprio": "Max realtime priority"}


@dataclass(frozen=True)
class Check:
    """One thing: `verdict` is "ok", "warn" or "fail"; `found` says what is; `change` what to do, "" = nothing."""

    name: str
    verdict: str
    found: str
    change: str = ""


def _known_to_kernel(number: int) -> bool:
    """Whether the kernel (and seccomp) lets a system call through; called with arguments that do nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), None, 0, 0, None, 0)
    return result >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


def _room(path: Path) -> tuple[int, int]:
    """(size, free) of a file system in bytes."""
    stat = os.statvfs(path)
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


@dataclass(frozen=True)
class Host:
    """Where to look. The defaults are this machine.

    Attributes:
        root: where `proc/`, `sys/` and `dev/` are.
        system: "linux" or "darwin", as sys.platform.
        machine: architecture, as platform.machine().
        cpus: CPU numbers that may be used; None = this process's affinity mask.
        has_syscall: whether the kernel has the system call of a number.
        room: (size, free) bytes of the file system at a path.
    """

    root: Path = Path("/")
    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)
    cpus: Collection[int] | None = None
    has_syscall: Callable[[int], bool] = _known_to_kernel
    room: Callable[[Path], tuple[int, int]] = _room

    def read(self, path: str) -> str | None:
        """Stripped text of a file below the root; None where there is none."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return None

    def limit(self, name: str) -> int | None:
        """Soft limit of this process; -1 = unlimited, None = unknown here. Names are those of limits.conf."""
        text = self.read("proc/self/limits")
        if text is not None:
            found = re.search(rf"^{_LIMITS[name]}\s+(\d+|unlimited)", text, re.MULTILINE)
            return None if found is None else -1 if found[1] == "unlimited" else int(found[1])
        import resource

        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            return None
        soft = resource.getrlimit(number)[0]
        return -1 if soft == resource.RLIM_INFINITY else soft


def check_all(host: Host) -> list[Check]:
    """Every check that this system has something for."""
    checks = (_software, _cores, _isolation, _governor, _clock, _shm, _pages, _swap, _limits, _kernel, _udp)
    return [found for check in checks for found in check(host)]


def _software(_: Host) -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())  # an older one cannot even read this file
    missing = [name for name in _NATIVE if not _imports(name)]
    if missing:
        yield Check("native core", "fail", f"cannot be loaded: {' '.join(missing)}", "make build")
    else:
        yield Check("native core", "ok", f"{len(_NATIVE)} extensions load")
    try:
        import zmq
    except ImportError as error:
        yield Check("zeromq", "fail", str(error), "pip install pyzmq")
    else:
        yield Check("zeromq", "ok", f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}")
    absent = [name for name in ("pyarrow", "duckdb") if find_spec(name) is None]
    if absent:
        found = f"without {' and '.join(absent)}: a journal is kept, but no Parquet; no export, no query"
        yield Check("storage", "warn", found, "pip install 'tickengine[storage]'")
    else:
        yield Check("storage", "ok", "pyarrow and duckdb are here: past hours go into Parquet")
    absent = [name for name in ("zstandard", "databento_dbn") if not _imports(name)]
    if absent:
        change = "pip install 'tickengine[replay]'"
        yield Check("replay", "warn", f"some captured files cannot be read without {' '.join(absent)}", change)
    else:
        yield Check("replay", "ok", "zstd and DBN can be read")
    yield _time_zones()


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _time_zones() -> Check:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:
        change = "pip install tzdata, or: sudo apt-get install tzdata"
        return Check("time zones", "fail", "America/New_York is unknown: no session times", change)
    return Check("time zones", "ok", "America/New_York is known")


def _cores(host: Host) -> Iterator[Check]:
    cores = performance_cores(host.root, host.cpus)
    fast = [core for core in cores if core.kind != "efficiency"]
    limit = quota(host.root)
    where = _ranges([core.cpu for core in fast])
    text = f"{len(fast)} physical cores may be used ({where})"
    if len(cores) > len(fast):
        text = f"{len(fast)} performance cores ({where}), {len(cores) - len(fast)} efficiency cores"
    if len(fast) < _WORKERS:
        change = f"give it {_WORKERS + 1} cores (container: --cpuset-cpus=0-{_WORKERS})"
        yield Check("cores", "warn", f"{text}: {_WORKERS} workers share them, none is pinned", change)
    elif limit is not None and limit < _WORKERS:
        change = f"raise the quota of the container: --cpus={_WORKERS + 1}"
        yield Check(
            "cores", "warn", f"{text}, but a CPU quota of {limit:g}: workers are halted when it is used", change
        )
    else:
        yield Check("cores", "ok", text)


def _isolation(host: Host) -> Iterator[Check]:
    text = host.read("sys/devices/system/cpu/isolated")
    if text is None:
        return
    name = "isolated cores"
    usable = set(host.cpus if host.cpus is not None else _affinity())
    isolated = set(_numbers(text))
    if isolated and not isolated <= usable:
        every = _ranges(sorted(usable | isolated))
        change = f"taskset -c {every} tickengine run ..., or under systemd: AllowedCPUs={every}"
        yield Check(name, "warn", f"{text}, but this process may not run there", change)
    elif isolated:
        yield Check(name, "ok", text)
    elif len(usable) <= _WORKERS + 1:
        yield Check(name, "ok", "none; there are too few cores to set any apart")
    else:
        cores = [core.cpu for core in performance_cores(host.root, usable)][:_WORKERS]
        wanted = _ranges(sorted(cores))
        change = f"kernel command line: isolcpus={wanted} nohz_full={wanted} rcu_nocbs={wanted}, then reboot"
        yield Check(name, "warn", "none: other programs run on the workers' cores", change)


def _governor(host: Host) -> Iterator[Check]:
    if host.read("sys/devices/system/cpu/online") is None:
        return
    cpus = [core.cpu for core in performance_cores(host.root, host.cpus)]
    found = {host.read(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus} - {None}
    words = ", ".join(sorted(word for word in found if word))
    if not found:
        yield Check("governor", "ok", "frequency is not ours to set here (virtual machine or firmware)")
    elif found == {"performance"}:
        yield Check("governor", "ok", words)
    else:
        change = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield Check("governor", "warn", f"{words}: cores slow down when idle, and wake up late", change)


def _clock(host: Host) -> Iterator[Check]:
    base = "sys/devices/system/clocksource/clocksource0"
    current = host.read(f"{base}/current_clocksource")
    if current is None:
        return
    if current in _FAST_CLOCKS:
        yield Check("clock source", "ok", f"{current}, read without a system call")
        return
    available = (host.read(f"{base}/available_clocksource") or "").split()
    better = next((name for name in _FAST_CLOCKS if name in available), None)
    change = f"echo {better} | sudo tee /{base}/current_clocksource" if better else "kernel command line: tsc=reliable"
    yield Check("clock source", "warn", f"{current}: every time stamp is a system call", change)


def _shm(host: Host) -> Iterator[Check]:
    if host.system != "linux":
        return
    path = host.root / "dev/shm"
    change = "sudo mount -o remount,size=4G /dev/shm (container: --shm-size=4g)"
    if not path.is_dir():
        yield Check("/dev/shm", "fail", "is missing", "sudo mount -t tmpfs -o mode=1777,size=4G tmpfs /dev/shm")
        return
    if not os.access(path, os.W_OK | os.X_OK):
        yield Check("/dev/shm", "fail", "may not be written by this user", "sudo chmod 1777 /dev/shm")
        return
    size, free = host.room(path)
    text = f"{bytes_text(free)} free of {bytes_text(size)}"
    if free < _ENGINE_BYTES:
        yield Check("/dev/shm", "fail", f"{text}, an engine takes up to {bytes_text(_ENGINE_BYTES)}", change)
    elif free < _SHM_COMFORT_BYTES:
        yield Check("/dev/shm", "warn", f"{text}: room for one engine with few feeds", change)
    else:
        yield Check("/dev/shm", "ok", text)
    left = _left_behind() if host.root == Path("/") else []
    if left:
        yield Check("dead engines", "warn", f"{' '.join(left)} left segments behind", "tickengine shm clean")


def _left_behind() -> list[str]:
    from tools.liveness import engine_alive, find_segments

    segments = find_segments()
    names = sorted({item.engine for item in segments})
    return [name for name in names if engine_alive([i for i in segments if i.engine == name]) is False]


def _pages(host: Host) -> Iterator[Check]:
    text = host.read("sys/kernel/mm/transparent_hugepage/enabled")
    if text is not None:
        chosen = _bracketed(text)
        if chosen == "always":
            change = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
            yield Check("huge pages", "warn", "transparent: always; khugepaged stalls processes at times", change)
        else:
            yield Check("huge pages", "ok", f"transparent: {chosen}")
    memory = host.read("proc/meminfo") or ""
    reserved = re.search(r"^HugePages_Free:\s+(\d+)", memory, re.MULTILINE)
    if reserved and int(reserved[1]):
        change = "sudo sysctl -w vm.nr_hugepages=0, unless another program uses them"
        yield Check("reserved pages", "warn", f"{reserved[1]} huge pages lie idle; the engine uses none", change)


def _swap(host: Host) -> Iterator[Check]:
    text = host.read("proc/swaps")
    if text is None:
        return
    areas = [line.split() for line in text.splitlines()[1:]]
    used = sum(int(area[3]) for area in areas if len(area) > 3) * 1024
    if not areas:
        yield Check("swap", "ok", "none")
    elif host.read("proc/sys/vm/swappiness") in ("0", "1"):
        yield Check("swap", "ok", f"{bytes_text(used)} used, only when memory runs out")
    else:
        change = "sudo swapoff -a, or: sudo sysctl -w vm.swappiness=1, or [placement] lock_memory = true"
        yield Check("swap", "warn", f"{bytes_text(used)} used: rings may be swapped out", change)


def _limits(host: Host) -> Iterator[Check]:
    files = host.limit("nofile")
    if files is not None:
        change = "ulimit -n 65536 (systemd: LimitNOFILE=65536)"
        text = "unlimited" if files < 0 else str(files)
        if 0 <= files < 256:
            yield Check("open files", "fail", f"{text}, an engine needs 256", change)
        elif 0 <= files < 4096:
            yield Check("open files", "warn", f"{text}: each subscriber takes one", change)
        else:
            yield Check("open files", "ok", text)
    locked = host.limit("memlock")
    if locked is not None:
        text = "unlimited" if locked < 0 else bytes_text(locked)
        if 0 <= locked < _SHM_COMFORT_BYTES and not _may(host, _CAP_IPC_LOCK):
            change = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)"
            yield Check("locked memory", "warn", f"{text}: [placement] lock_memory will be refused", change)
        else:
            yield Check("locked memory", "ok", "any" if _may(host, _CAP_IPC_LOCK) else text)
    priority = host.limit("rtprio")
    if priority is not None:
        if priority == 0 and not _may(host, _CAP_SYS_NICE):
            change = "ulimit -r 50 (systemd: LimitRTPRIO=50)"
            yield Check("real time", "warn", "0: [placement] realtime_priority will be refused", change)
        else:
            yield Check("real time", "ok", "allowed" if priority <= 0 else f"up to priority {priority}")


def _may(host: Host, capability: int) -> bool:
    """Whether a capability (capabilities(7)) is in effect, which makes the limit of its kind moot."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", host.read("proc/self/status") or "", re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> capability & 1)


def _kernel(host: Host) -> Iterator[Check]:
    release = host.read("proc/sys/kernel/osrelease")
    if release is None:
        return
    lacks = []
    if not host.has_syscall(_FUTEX_WAITV):
        lacks.append("futex_waitv (5.16): waiting for several rings at once naps and polls instead")
    barrier = _MEMBARRIER.get(host.machine)
    if barrier is not None and not host.has_syscall(barrier):
        lacks.append("membarrier (4.16): every publish pays for a fence")
    if lacks:
        change = "a kernel of 5.16 or later; in a container, a seccomp profile that allows these calls"
        yield Check("kernel", "warn", f"{release} lacks {'; '.join(lacks)}", change)
    else:
        yield Check("kernel", "ok", f"{release}, with futex_waitv and membarrier")


def _udp(host: Host) -> Iterator[Check]:
    text = host.read("proc/sys/net/core/rmem_max")
    if text is None:
        return
    size = int(text)
    if size < _UDP_BYTES:
        change = "sudo sysctl -w net.core.rmem_max=16777216"
        yield Check("UDP buffers", "warn", f"at most {bytes_text(size)}: bursts of multicast will be lost", change)
    else:
        yield Check("UDP buffers", "ok", f"up to {bytes_text(size)}")


def _affinity() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _bracketed(text: str) -> str:
    """The chosen word of the kernel's "a [b] c"."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else text


def _numbers(text: str) -> list[int]:
    """CPU numbers of the kernel's list format, "0-3,8"."""
    spans = [part.partition("-") for part in text.split(",") if part]
    return [cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)]


def _ranges(cpus: list[int]) -> str:
    """CPU numbers in the kernel's list format, for taskset and the command line."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][-1] + 1:
            spans[-1].append(cpu)
        else:
            spans.append([cpu])
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
