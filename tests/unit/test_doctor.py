"""`tickengine doctor` on machines made of files: what is found, judged, and proposed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.console import Paint
from tools.doctor import text_lines
from tools.machine_checks import Check, Host, check_all

GIB = 1 << 30
GOOD = {
    "sys/devices/system/cpu/online": "0-7",
    "sys/devices/system/cpu/isolated": "2-7",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "proc/meminfo": "MemTotal: 1 kB\nHugePages_Free:        0\n",
    "proc/swaps": "Filename Type Size Used Priority\n",
    "proc/sys/vm/swappiness": "60",
    "proc/sys/kernel/osrelease": "6.8.0",
    "proc/sys/net/core/rmem_max": str(16 << 20),
    "proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000\n",
    "proc/self/limits": "Max open files            65536   65536   files\n"
    "Max locked memory         unlimited   unlimited   bytes\n"
    "Max realtime priority     50   50\n",
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor": "performance" for cpu in range(8)},
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Root of a machine on which nothing needs to be changed."""
    (tmp_path / "dev/shm").mkdir(parents=True)
    for name, text in GOOD.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


def look(
    root: Path, *, cpus: range = range(8), free: int = 8 * GIB, lacking: tuple[int, ...] = (), system: str = "linux"
) -> dict[str, Check]:
    """Checks by name."""
    host = Host(
        root=root,
        system=system,
        machine="x86_64",
        cpus=cpus,
        has_syscall=lambda number: number not in lacking,
        room=lambda _: (8 * GIB, free),
    )
    return {check.name: check for check in check_all(host)}


def test_good_machine_has_nothing_to_change(machine: Path) -> None:
    for check in look(machine).values():
        assert (check.verdict, check.change) == ("ok", ""), check


@pytest.mark.parametrize(
    ("file", "text", "name", "change"),
    [
        ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave", "governor", "tee /sys/devices"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", "clock source", "echo tsc"),
        ("sys/devices/system/cpu/isolated", "", "isolated cores", "isolcpus=1-3"),
        ("sys/devices/system/cpu/isolated", "8-9", "isolated cores", "taskset -c 0-9"),
        ("sys/fs/cgroup/cpu.max", "150000 100000", "cores", "--cpus=4"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "huge pages", "echo madvise"),
        ("proc/meminfo", "HugePages_Free:      512", "reserved pages", "vm.nr_hugepages=0"),
        ("proc/swaps", "Filename Type Size Used\n/swap file 1000 5 -2", "swap", "swapoff"),
        ("proc/sys/net/core/rmem_max", "212992", "UDP buffers", "net.core.rmem_max=16777216"),
        ("proc/self/limits", "Max open files   1024  4096  files", "open files", "ulimit -n"),
        ("proc/self/limits", "Max locked memory   65536  65536  bytes", "locked memory", "ulimit -l"),
        ("proc/self/limits", "Max realtime priority   0  0", "real time", "ulimit -r"),
    ],
)
def test_what_costs_latency_is_a_warning_with_its_command(
    machine: Path, file: str, text: str, name: str, change: str
) -> None:
    path = machine / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    check = look(machine)[name]
    assert check.verdict == "warn"
    assert change in check.change


def test_few_cores_are_a_warning_and_not_asked_to_be_isolated(machine: Path) -> None:
    (machine / "sys/devices/system/cpu/isolated").write_text("\n")
    checks = look(machine, cpus=range(2))
    assert checks["cores"].verdict == "warn"
    assert checks["isolated cores"].verdict == "ok"


def test_performance_cores_are_told_from_efficiency_cores(machine: Path) -> None:
    for cpu in range(8):
        path = machine / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"
        path.write_text("1024" if cpu < 4 else "400")
    assert look(machine)["cores"].found == "4 performance cores (0-3), 4 efficiency cores"


@pytest.mark.parametrize(("free", "verdict"), [(8 * GIB, "ok"), (GIB // 2, "warn"), (64 << 20, "fail")])
def test_room_for_segments(machine: Path, free: int, verdict: str) -> None:
    check = look(machine, free=free)["/dev/shm"]
    assert check.verdict == verdict
    assert ("--shm-size" in check.change) is (verdict != "ok")


def test_machine_without_shared_memory_fails(machine: Path) -> None:
    (machine / "dev/shm").rmdir()
    assert look(machine)["/dev/shm"].verdict == "fail"


@pytest.mark.parametrize(("number", "word"), [(449, "futex_waitv"), (324, "membarrier")])
def test_missing_system_call_is_named(machine: Path, number: int, word: str) -> None:
    check = look(machine, lacking=(number,))["kernel"]
    assert check.verdict == "warn"
    assert f"lacks {word}" in check.found


def test_capabilities_make_limits_moot(machine: Path) -> None:
    (machine / "proc/self/limits").write_text("Max locked memory  65536 65536 bytes\nMax realtime priority 0 0\n")
    (machine / "proc/self/status").write_text("CapEff:\t000001ffffffffff\n")
    checks = look(machine)
    assert checks["locked memory"].verdict == checks["real time"].verdict == "ok"


def test_what_a_system_lacks_is_not_judged(tmp_path: Path) -> None:
    names = set(look(tmp_path, system="darwin"))
    assert {"python", "native core", "zeromq", "time zones", "cores", "open files"} <= names
    assert not names & {"governor", "/dev/shm", "kernel", "swap", "clock source", "UDP buffers"}


def test_text_shows_each_check_and_what_to_change() -> None:
    checks = [Check("swap", "warn", "in use", "sudo swapoff -a"), Check("python", "ok", "3.11")]
    lines = text_lines(checks, Paint(enabled=False))
    assert lines[0].split() == ["warn", "swap", "in", "use"]
    assert lines[1].strip() == "-> sudo swapoff -a"
    assert lines[-1] == "1 ok, 1 warn, 0 fail"
