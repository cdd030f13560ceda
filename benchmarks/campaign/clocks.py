"""The GPU's clocks and power while points run, as nvidia-smi tells them five times a second."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections import deque
from statistics import median
from types import TracebackType

import torch

_COLUMNS = {"sm_mhz": "clocks.sm", "mem_mhz": "clocks.mem", "power_w": "power.draw"}


class Clocks:
    """Runs nvidia-smi beside the campaign; tells nothing where there is none."""

    def __init__(self, device: torch.device, smi: str | None = None) -> None:
        self._seen: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=20_000)
        self._process: subprocess.Popen[str] | None = None
        smi = smi or (shutil.which("nvidia-smi") if device.type == "cuda" else None)
        if smi is None:
            return
        card = (
            getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
        )
        which = [f"--id=GPU-{card}"] if card else []
        ask = [f"--query-gpu={','.join(_COLUMNS.values())}", "--format=csv,noheader,nounits", "-lms", "200"]
        self._process = subprocess.Popen(
            [smi, *which, *ask], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def since(self, began: float) -> dict[str, float]:
        """Medians of what was seen since a time of the monotonic clock, else what was seen last; empty without either."""
        if not self._seen:
            return {}
        seen = list(self._seen)
        lately = [values for at, values in seen if at >= began] or [seen[-1][1]]
        return dict(zip(_COLUMNS, map(median, zip(*lately, strict=True)), strict=True))

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            try:
                values = tuple(float(text) for text in line.split(","))
            except ValueError:  # [N/A]
                continue
            if len(values) == len(_COLUMNS):
                self._seen.append((time.monotonic(), values))

    def __enter__(self) -> Clocks:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
