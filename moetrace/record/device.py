"""The machine that ran the model: what a trace does not say of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SMI_S = 10.0
_CLOCKS = {
    "sm_mhz": "clocks.sm",
    "mem_mhz": "clocks.mem",
    "max_sm_mhz": "clocks.max.sm",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
NO_KERNELS = (
    "the profiler saw no kernel of the GPU: CUPTI is missing, or the driver keeps it from ordinary users "
    "(NVreg_RestrictProfilingToAdminUsers=1)"
)


def device_facts(device: torch.device | None) -> dict[str, Any]:
    """What ran the model: type, name, CPU model, threads, SMs, memory in bytes, a GPU's clocks now. No host name."""
    import torch

    cpu = cpu_model()
    facts: dict[str, Any] = {"type": "cpu", "name": cpu, "cpu": cpu, "threads": torch.get_num_threads()}
    if device is not None and device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "type": "cuda",
            "name": card.name,
            "multiprocessors": card.multi_processor_count,
            "memory_bytes": card.total_memory,
            "capability": f"{card.major}.{card.minor}",
            "clock_khz": getattr(card, "clock_rate", None),
            "memory_clock_khz": getattr(card, "memory_clock_rate", None),
            "clocks": clocks_now(getattr(card, "uuid", None)),
            "count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
        return facts
    facts["memory_bytes"] = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    )
    facts["cpus"] = os.cpu_count()
    return facts


def clocks_now(card: object = None) -> dict[str, float] | None:
    """A GPU's clocks, power limit and temperature as nvidia-smi tells them, `card` being its UUID; None where it does not."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    which = [f"--id=GPU-{card}"] if card else []
    ask = [f"--query-gpu={','.join(_CLOCKS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603 - the program that PATH says, with arguments of ours
            [smi, *which, *ask], capture_output=True, text=True, check=False, timeout=_SMI_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = {}
    for name, text in zip(_CLOCKS, done.stdout.partition("\n")[0].split(","), strict=False):
        try:
            found[name] = float(text)
        except ValueError:  # [N/A]
            continue
    return found or None


def saw_no_kernel(recording: dict[str, Any]) -> bool:
    """Whether torch.profiler recorded a GPU and no kernel of it."""
    trace = recording.get("trace")
    on_gpu = recording.get("device", {}).get("type") == "cuda"
    return on_gpu and isinstance(trace, dict) and trace.get("kernels") == 0


def cpu_model() -> str:
    """The processor's model name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
