"""The scale that a picture shows by itself, in a few windows of tissue; each picture is read once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from stpredict import _caches
from stpredict._section import ImageView
from stpredict._spatialdata._elements import image_levels
from stpredict._spatialdata._nuclei import RESOLVED_PX, haematoxylin, nuclear_diameter_px
from stpredict._spatialdata._transformations import level_scale
from stpredict._window import Window

if TYPE_CHECKING:
    from spatialdata import SpatialData

NUCLEUS_UM = 5.4  # as `nuclear_diameter_px` sees it: 4.6 in her2st, 6.5 in mouse colon
WORK_MPP = 0.5  # finer pictures are averaged down: nuclei are then some 11 px wide
SIDE, N_WINDOWS = 384, 4  # px of the windows, and how many
PROBE, N_PROBES = 128, 6  # px of what is read to choose them, and how many along each side
MIN_TISSUE = 0.6  # of a probe

_kept: dict[tuple[str, tuple[float, float]], float | None] = {}
_lock = threading.Lock()


def picture_mpp(sdata: SpatialData, image_key: str, mpp: float) -> float | None:
    """Micrometres per pixel at which the nuclei of an image would have the usual size; None where they tell nothing.

    Parameters
    ----------
    mpp : float
        What is said to be the size of a pixel. It decides at which resolution the image is read, not what is found.

    Notes
    -----
    Nuclei of other tissue, species and preparation differ by some tens of per cent. Where they are too small to be
    resolved, they can show that the pixels are larger than is said, but not that they are smaller.
    """
    levels = image_levels(sdata, image_key)
    at_mpp = max(WORK_MPP, mpp)
    step = at_mpp / mpp
    best, scale = level_scale([(level.sizes["y"], level.sizes["x"]) for level in levels], step)
    view = ImageView(pixels=levels[best].data, scale=scale, mpp=at_mpp)
    diameter = _diameter_px(view)
    if diameter is None or (diameter < RESOLVED_PX and diameter * at_mpp > NUCLEUS_UM):
        return None
    return mpp * NUCLEUS_UM / (diameter * at_mpp)


def _diameter_px(view: ImageView) -> float | None:
    name = getattr(view.pixels, "name", None)  # of a dask array: a token of what it is made of
    if name is None:
        return nuclear_diameter_px(view.read_all(_windows(view)))
    with _lock:
        if (name, view.scale) not in _kept:
            _kept[name, view.scale] = nuclear_diameter_px(view.read_all(_windows(view)))
        return _kept[name, view.scale]


def _windows(view: ImageView) -> list[Window]:
    """The windows, of a grid over the image, whose middles are tissue and vary most in haematoxylin."""
    corners = [np.unique(np.linspace(0, max(n - SIDE, 0), N_PROBES).astype(int)) for n in (view.height, view.width)]
    windows = [
        Window(int(y), int(x), min(SIDE, view.height), min(SIDE, view.width)) for y in corners[0] for x in corners[1]
    ]
    probes = [_middle(window) for window in windows]
    varied = []
    for window, probe in zip(windows, view.read_all(probes), strict=True):
        amount, tissue = haematoxylin(probe)
        if tissue.mean() >= MIN_TISSUE:
            varied.append((float(amount[tissue].std()), window))
    varied.sort(key=lambda each: each[0], reverse=True)
    return [window for _, window in varied[:N_WINDOWS]]


def _middle(window: Window) -> Window:
    height, width = (min(PROBE, n) for n in window.shape)
    return Window(window.y0 + (window.height - height) // 2, window.x0 + (window.width - width) // 2, height, width)


_caches.register("sizes of nuclei", _kept.clear)
