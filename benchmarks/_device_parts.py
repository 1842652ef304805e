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
class PartialSum:
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
PARTS: dict[str, PartialSum] = {
    "ceilings": PartialSum("What the device can do", FAST, "_device_fast", 30),
    "every_model": PartialSum("Every model against the CPU", RIGHT, "_device_right", 90),
    "raster": PartialSum("Raster and read-out against the CPU", RIGHT, "_device_right", 40),
    "small": PartialSum("PixNet, small", FAST, "_device_fast", 40),
    "published": PartialSum("PixNet, published (UNI2-h's architecture)", FAST, "_device_published", 80),
    "gigapixel": PartialSum("A slide of 1 Gpx", FAST, "_device_fast", 60),
    "tissue": PartialSum("A slide of 3 Gpx, tissue on a third", FAST, "_device_fast", 75),
    "million_bins": PartialSum("A million bins", FAST, "_device_fast", 45),
    "gene_query": PartialSum("GeneQuery", FAST, "_device_fast", 45),
    "patches": PartialSum("Patches of spot models", FAST, "_device_fast", 40),
    "two_processes": PartialSum("Two predictions in two processes", RIGHT, "_device_right", 60),
    "through_spatialdata": PartialSum("tl.predict on a store", RIGHT, "_device_door", 60, door=True),
    "compiled": PartialSum("torch.compile", RIGHT, "_device_right", 90),
    "steps": PartialSum("Training steps", FAST, "_device_train", 45),
    "training": PartialSum("Training of two epochs, and resumed", RIGHT, "_device_train", 60),
    "out_of_memory": PartialSum("Out of memory", RIGHT, "_device_right", 40, alone=True),
}
START_SECONDS = 45.0  # that a process may take to begin its first part
SMALL_SECONDS = 300.0  # of every part; a busy machine may take this long
