"""The parts of the device benchmark: what each is called, how long it may take, and where its function is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """Where a part runs: the device, at the smallest sizes or not, and a folder for its files."""

    device: str
    small: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Row:
    """One line of the table: what was looked at, what came out, what is asked of it, and whether it holds."""

    what: str
    value: float | int | str
    unit: str = ""
    goal: str = ""
    ok: bool | None = None


class Skipped(Exception):
    """Raised by a part that cannot run here; the message says why."""


@dataclass(frozen=True)
class Part:
    """One part.

    seconds
        Longest time on a card; `--small` has its own.
    alone
        Whether it changes its process, and has one for itself.
    door
        Whether it needs SpatialData.
    """

    title: str
    kind: str
    module: str
    seconds: float
    alone: bool = False
    door: bool = False

    def function(self, name: str) -> Callable[[Setting], list[Row]]:
        """What does the work."""
        return getattr(importlib.import_module(self.module), name)


RIGHT, FAST = "right", "fast"
PARTS: dict[str, Part] = {
    "ceilings": Part("What the device can do", FAST, "_device_fast", 30),
    "every_model": Part("Every model against the CPU", RIGHT, "_device_right", 90),
    "raster": Part("Raster and read-out against the CPU", RIGHT, "_device_right", 40),
    "small": Part("PixNet, small", FAST, "_device_fast", 40),
    "published": Part("PixNet, published (UNI2-h's architecture)", FAST, "_device_published", 80),
    "gigapixel": Part("A slide of 1 Gpx", FAST, "_device_fast", 60),
    "tissue": Part("A slide of 3 Gpx, tissue on a third", FAST, "_device_fast", 75),
    "million_bins": Part("A million bins", FAST, "_device_fast", 45),
    "gene_query": Part("GeneQuery", FAST, "_device_fast", 45),
    "patches": Part("Patches of spot models", FAST, "_device_fast", 40),
    "two_processes": Part("Two predictions in two processes", RIGHT, "_device_right", 60),
    "through_spatialdata": Part("tl.predict on a store", RIGHT, "_device_door", 60, door=True),
    "compiled": Part("torch.compile", RIGHT, "_device_right", 90),
    "steps": Part("Training steps", FAST, "_device_train", 45),
    "training": Part("Training of two epochs, and resumed", RIGHT, "_device_train", 60),
    "out_of_memory": Part("Out of memory", RIGHT, "_device_right", 40, alone=True),
}
START_SECONDS = 45.0  # that a process may take to begin its first part
SMALL_SECONDS = 300.0  # of every part; a busy machine may take this long
