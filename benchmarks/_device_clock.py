"""Seconds of work on a device, what it can do at best, and the share of time in which it is at work."""

from __future__ import annotations

import contextlib
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from stpredict._malloc import keep_freed_memory
from stpredict.models import Model
from stpredict.models._samples import Batch


def wait(device: str) -> None:
    """Until the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Median time of a call, its work on the device included, after one to warm up."""

    def waited() -> None:
        call()
        wait(device)

    return float(np.median(timeit.repeat(waited, number=1, repeat=rounds + 1)[1:]))


def once(call: Callable[[], object], device: str) -> float:
    """Time of one call, its work on the device included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def matrices(device: str, side: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of a product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device) / 1e12


def bare(model: Model, device: str, n: int, rounds: int = 5) -> tuple[float, float]:
    """Seconds of the forward pass of n tiles in bf16 that are there already, and their floating-point operations."""
    side = model.config.core_px + 2 * model.config.halo_px
    image = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, device=device)
    batch = Batch(image.contiguous(memory_format=torch.channels_last), None, None, (), np.empty((0, 2), np.int64))
    with keep_freed_memory(), torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16):
        with FlopCounterMode(display=False) as counter:
            model.latent(batch)
        return seconds(lambda: model.latent(batch), device, rounds), float(counter.get_total_flops())


class AtWork:
    """Within it, for how long a PixNet's network is at work, and the card at all.

    The network's time is taken by events on the card around its forward passes (by the clock on a CPU); `card` is the
    mean of what NVML says of the card, None where it cannot be asked.
    """

    def __init__(self, model: Any, device: str) -> None:
        last = model.decoder if model.context_map is None else model.context_map
        self.device, self.cuda = device, device.startswith("cuda")
        self._hooks = [
            model.encoder.register_forward_pre_hook(lambda *_: self._begun.append(self._now())),
            last.register_forward_hook(lambda *_: self._ended.append(self._now())),
        ]
        self._begun: list[Any] = []
        self._ended: list[Any] = []
        self._seen: list[float] = []
        self.network, self.wall, self.card = 0.0, 0.0, None

    def __enter__(self) -> AtWork:
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if self.cuda:
            self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wait(self.device)
        self.wall = time.perf_counter() - self._start
        self._stop.set()
        for hook in self._hooks:
            hook.remove()
        if self.cuda:
            self._watcher.join()
            self.network = sum(a.elapsed_time(b) for a, b in zip(self._begun, self._ended, strict=True)) / 1e3
            self.card = float(np.mean(self._seen)) / 100 if self._seen else None
        else:
            self.network = sum(b - a for a, b in zip(self._begun, self._ended, strict=True))

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # without NVML there is nothing to watch
            while not self._stop.wait(0.1):
                self._seen.append(torch.cuda.utilization(self.device))


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """The most that tensors held within it, in GiB: one number, there at the end."""
    found: list[float] = []
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(torch.cuda.max_memory_allocated(device) / 2**30)
