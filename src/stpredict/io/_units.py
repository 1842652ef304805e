"""The micrometre coordinate system of elements that spatialdata-io read."""

from __future__ import annotations

from typing import Any

from spatialdata.transformations import Identity, Scale, Sequence, get_transformation, set_transformation

from stpredict.io._image import MICROMETERS


def add_micrometers(element: Any, *, system: str, unit_um: float) -> None:
    """Map an element to "micrometers" as well, through a coordinate system of which one unit is `unit_um`."""
    to_system: Any = get_transformation(element, system)
    scale = Scale([unit_um, unit_um], axes=("x", "y"))
    set_transformation(element, scale if to_system == Identity() else Sequence([to_system, scale]), MICROMETERS)
