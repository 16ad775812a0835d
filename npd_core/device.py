"""Choose the device and the precision."""

from __future__ import annotations

import contextlib
import platform
import sys
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from npd_core.errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` is the first CUDA device if there is one, otherwise the CPU.
    Raises ConfigError when this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}: use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"This machine has no device {name!r}: use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = f"cuda:{torch.cuda.device_count() - 1}"
        raise ConfigError(
            f"This machine has no device {name!r}, its last one is {last}: use auto or one up to that."
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Device {name!r} is not supported: use auto, cpu or cuda.")
    return device


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware (AMX or AVX512-BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def use_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Return whether to autocast to bfloat16; with `auto`, where the hardware is faster with it."""
    if precision != "auto":
        return precision == "bf16"
    return (
        torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    )


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """Return a context in which a forward pass runs in this precision; the backward pass follows it."""
    if use_bf16(device, precision):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what a result depends on besides the code: versions, device, threads."""
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "bf16": use_bf16(device),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "cpu"
