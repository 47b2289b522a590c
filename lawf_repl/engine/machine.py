"""The machine as torch and the system show it: devices, the number type that auto takes there, and memory. Loads no model."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lawf_repl.config import Settings
from lawf_repl.engine.base import pick_device, pick_dtype
from lawf_repl.errors import ModelError

CGROUP = Path("/sys/fs/cgroup")  # a container's own limit, version 2 and 1
LIMITS = (("memory.max", "memory.current", "memory.stat", "inactive_file"),
          ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"))


@dataclass(frozen=True)
class Device:
    """A device that torch can use. Memory in bytes; None where it is not told."""

    device: str        # cpu, cuda:0, mps
    name: str
    dtype: str         # that the settings take there
    free: int | None
    total: int | None
    chosen: bool       # by the settings, for the next model


def devices(settings: Settings) -> tuple[Device, ...]:
    """All devices. None of them is chosen where the settings ask for one that is not there; `device_trouble` says so."""
    found: list[tuple[str, str, int | None, int | None]] = [("cpu", platform.processor() or platform.machine(), *host_memory())]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = _cuda_memory(number)
        found.append((f"cuda:{number}", torch.cuda.get_device_name(number), free, total))
    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        found.append(("mps", "Apple GPU", total - int(torch.mps.driver_allocated_memory()), total))
    try:
        wanted = pick_device(settings.device)
    except ModelError:
        chosen = None
    else:
        chosen = "cuda:0" if wanted == torch.device("cuda") else str(wanted)
    return tuple(Device(device, name, str(pick_dtype(settings.dtype, torch.device(device))).removeprefix("torch."), free, total, device == chosen)
                 for device, name, free, total in found)


def device_trouble(settings: Settings) -> str | None:
    """Why the device that the settings ask for cannot be used, if so."""
    try:
        pick_device(settings.device)
    except ModelError as error:
        return str(error)
    return None


def host_memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Free and total bytes of the host; of the container where that has less."""
    host = psutil.virtual_memory()
    free, total = int(host.available), int(host.total)
    for limit, used, statistics, reclaimed in LIMITS:
        with suppress(OSError, ValueError, StopIteration):  # not there, or "max"
            most = int((cgroup / limit).read_text())
            # pages of files that nobody needs are given back before memory runs out
            lines = (line.split() for line in (cgroup / statistics).read_text().splitlines())
            spare = int(next(line[1] for line in lines if line[0] == reclaimed))
            inside = most - int((cgroup / used).read_text()) + spare
            free, total = min(free, max(0, inside)), min(total, most)
    return free, total


def threads() -> dict[str, int | str | None]:
    """Processors, the threads torch takes for one operation, and what the environment says of it; a small model takes one (engine/threads.py)."""
    return {"processors": os.cpu_count(), "torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def _cuda_memory(number: int) -> tuple[int | None, int | None]:
    try:
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError:  # a device that another process holds for itself
        return None, None
    return int(free), int(total)
