"""Resolve devices and precisions; what "auto" means is decided and logged here."""

from __future__ import annotations

import logging
import os
from typing import Literal

import psutil
import torch

logger = logging.getLogger("stpredict")
_forked = False

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_NAMES: dict[str, Precision] = {
    "32": "32-true", "32-true": "32-true", "float32": "32-true", "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed",
    "16": "16-mixed", "16-mixed": "16-mixed",
}  # fmt: skip


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant by "auto" (CUDA, else Apple's MPS, else the CPU), or the one named.

    Raises
    ------
    ValueError
        For a name torch does not know, or a device that is not there; never another one instead.
    """
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        logger.info("device='auto' chose %s", found)
        return torch.device(found)
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no device: use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (named.index or 0) >= there.get(named.type, 0):
        have = [f"{kind} x {n}" for kind, n in there.items() if n]
        raise ValueError(
            f"device={device!r} is not there; this machine has {', '.join(have)}. Pass device='cpu' or 'auto'."
        )
    return named


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """The format of the forward pass meant by "auto" (bf16 where the device has it in hardware), or the one named.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if precision == "auto":
        has_bf16 = _cuda_has_bf16(device) if device.type == "cuda" else _cpu_has_bf16(device)
        chosen: Precision = "bf16-mixed" if has_bf16 else "32-true"
        logger.info("precision='auto' chose %s on %s", chosen, device)
        return chosen
    if precision not in _NAMES:
        raise ValueError(f"precision={precision!r} is unknown: use 'auto', '32', 'bf16' or '16'.")
    return _NAMES[precision]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a forward pass runs at this precision."""
    kind = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=kind, enabled=precision != "32-true")


def same_autocast(device: torch.device) -> torch.autocast:
    """The autocast of the calling thread, to be entered in another one: a thread begins without any."""
    kind = device.type
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


def run_after_fork() -> None:
    """In a forked process, let torch compute in one thread: the others, for which it would wait, are not copied.

    Nothing is done in a process that was started otherwise.
    """
    if _forked and torch.get_num_threads() > 1:
        logger.info("this process was forked: torch computes in one thread. Start processes by 'spawn' to use more.")
        torch.set_num_threads(1)


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on this device can still take: of the CUDA device itself, else of the machine."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, and not in use
    return int(torch.cuda.mem_get_info(device)[0]) + held


def _cuda_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bf16(device: torch.device) -> bool:
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
