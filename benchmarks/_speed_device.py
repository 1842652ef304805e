"""Absolute times on a device, against what it can do at best: its copies and its matrix products, in the same run."""

from __future__ import annotations

import dataclasses
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _speed_predict import MODEL, section, slide
from torch.utils.flop_counter import FlopCounterMode

from stpredict import _infer
from stpredict.models import Model, load
from stpredict.models._samples import Batch


def seconds(call: Callable[[], object], device: str, rounds: int) -> float:
    """Median time of a call, its work on the device included, after one to warm up."""

    def waited() -> None:
        call()
        if device != "cpu":
            torch.cuda.synchronize()

    return float(np.median(timeit.repeat(waited, number=1, repeat=rounds + 1)[1:]))


def ceilings(device: str, rounds: int, *, megabytes: int, side: int) -> dict[str, float]:
    """Copies in GB/s (within the device: read and written), and a product of bf16 matrices in TFLOP/s."""
    there = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    here = torch.empty(megabytes * 2**20, dtype=torch.uint8, pin_memory=device != "cpu")
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    return {
        "copy": 2 * there.nbytes / seconds(there.clone, device, rounds) / 1e9,
        "to the device": here.nbytes / seconds(lambda: there.copy_(here, non_blocking=True), device, rounds) / 1e9,
        "matrices": 2 * side**3 / seconds(lambda: a @ a, device, rounds) / 1e12,
    }


def forward(model: Model, device: str, n: int, rounds: int) -> tuple[float, float]:
    """Seconds of n tiles in bf16, and their floating-point operations."""
    c = model.config
    side = c.core_px + 2 * c.halo_px
    batch = Batch(
        torch.zeros(n, 3, side, side, dtype=torch.uint8, device=device), None, None, (), np.empty((0, 2), int)
    )
    with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16):
        with FlopCounterMode(display=False) as counter:
            model.latent(batch)
        return seconds(lambda: model.latent(batch), device, rounds), counter.get_total_flops()


def table(
    rounds: int,
    device: str = "cuda",
    *,
    megabytes: int = 1024,
    side: int = 8192,
    slide_px: int = 14142,
    n_tiles: tuple[int, ...] = (1, 4, 8),
) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        return "There is no CUDA device."
    best = ceilings(device, rounds, megabytes=megabytes, side=side)
    model = load(MODEL).to(device).eval()
    fast = _infer._folded(model)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    lines = [
        f"{name}: " + ", ".join(f"{k} {v:.1f} {'TFLOP/s' if k == 'matrices' else 'GB/s'}" for k, v in best.items())
    ]
    lines += ["", "| what | seconds | Mpx/s | TFLOP/s | of the matrices |", "|---|---|---|---|---|"]
    for n in n_tiles:
        took, flops = forward(fast, device, n, rounds)
        mpx, rate = n * model.config.core_px**2 / took / 1e6, flops / took / 1e12
        lines.append(f"| {n} tiles, bf16 | {took:.4f} | {mpx:.1f} | {rate:.2f} | {rate / best['matrices']:.1%} |")
    runtime = _infer.settled(_infer.Runtime(device=device, precision="auto", progress=False), "raster")
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", slide_px)
        where = section(Path(folder) / "s.zarr", model.mpp)
        for compiled in (False, True):
            how = dataclasses.replace(runtime, compile=compiled)
            took = seconds(lambda r=how: _infer.predict(model, where, model.genes, runtime=r), device, 1)
            what = f"predict, {where.n_shapes:,} spots" + (", compiled" if compiled else "")
            lines.append(f"| {what} | {took:.2f} | {slide_px**2 / took / 1e6:.1f} | | |")
    return "\n".join(lines)
