"""The machine that figures were taken on: a figure without it means nothing.

Read from the system's own files; asks nothing of the network, changes nothing.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """Processor, cores allowed to this process, kernel, Python, frequency governor, load at the start."""

    processor: str
    architecture: str
    cores: int
    virtual: bool
    kernel: str
    python: str
    governor: str
    load: float

    def __str__(self) -> str:
        virtual = " (virtual)" if self.virtual else ""
        return (
            f"{self.processor}{virtual}, {self.cores} cores, {self.kernel}, Python {self.python}, "
            f"governor {self.governor}, load {self.load:.1f}"
        )

    def as_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self)


def this_machine() -> Machine:
    """Describe the machine we run on."""
    processor, virtual = _processor()
    return Machine(
        processor=processor,
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        virtual=virtual,
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_version()}{'' if _has_gil() else ' free-threaded'}",
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.exists() else "unknown",
        load=os.getloadavg()[0],
    )


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _processor() -> tuple[str, bool]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), False
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    name = values.get("model name") or values.get("Model") or platform.machine()
    return name, "hypervisor" in values.get("flags", "").split()
