"""The outline of `stp.pp.tissue` beside squidpy's detection, judged by measured spots, which lie on tissue.

    python benchmarks/tissue.py          # prints Markdown

squidpy sees the picture averaged to about 4 um per pixel, and its defaults.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import stpredict as stp

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SQUIDPY_UM = 4.0


def slides():
    """Name, object and (n, 2) centres (x, y) in pixels of measured spots."""
    folders = {"C2": "her2st", "C3": "her2st", "C4": "her2st", "C5": "her2st", "A1": "her2st_A"}
    for name, folder in folders.items():
        sdata = stp.datasets.her2st([name], path=DATA / folder)[0]
        yield name, sdata, shapely.get_coordinates(sdata.shapes["spots"].geometry.to_numpy()), sdata.attrs.get("mpp")
    others = {
        "mouse colon": ("mouse_colon/d0_he.jpg", "mouse_colon/d0_spots.csv", 0.971),
        "MOB1": ("mob/MOB1_he_2.75um.jpg", "mob/MOB1_spots_2.75um.csv", 2.75),
        "MOB11": ("mob/MOB11_he_2.75um.jpg", "mob/MOB11_spots_2.75um.csv", 2.75),
    }
    for name, (image, spots, mpp) in others.items():
        sdata = stp.io.read_image(DATA / image, mpp=mpp, name=name)
        yield name, sdata, pd.read_csv(DATA / spots)[["x_px", "y_px"]].to_numpy(), mpp


def ours(sdata: SpatialData, mpp: float | None) -> shapely.Geometry:
    """The outline in pixels of the image."""
    stp.pp.tissue(sdata, mpp=mpp, key_added="outline")
    return shapely.union_all(sdata.shapes["outline"].geometry)


def squidpy_mask(sdata: SpatialData, mpp: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Its mask (h, w), and pixels of the image in one of it along (y, x)."""
    import squidpy as sq

    image = sdata.images["image"]
    pixels = np.asarray((image["scale0"].image if hasattr(image, "children") else image).data)
    every = max(1, round(SQUIDPY_UM / mpp))
    h, w = (size // every for size in pixels.shape[1:])
    small = pixels[:, : h * every, : w * every].reshape(3, h, every, w, every).mean(axis=(2, 4)).astype(np.uint8)
    alone = SpatialData(images={"image": Image2DModel.parse(small, dims=("c", "y", "x"), c_coords=["r", "g", "b"])})
    mask = np.asarray(sq.experimental.im.detect_tissue(alone, "image", inplace=False)) > 0
    return mask, (float(every), float(every))


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    print("| picture | spots on the outline | tissue | squidpy: spots on its mask | tissue |")
    print("|---|---|---|---|---|")
    for name, sdata, xy, mpp in slides():
        from stpredict._spatialdata import image_mpp

        mpp = image_mpp(sdata, "image", mpp=mpp)
        outline = ours(sdata, mpp)
        levels = sdata.images["image"]
        full = levels["scale0"].image if hasattr(levels, "children") else levels
        area = outline.area / (full.sizes["y"] * full.sizes["x"])
        mask, (down, right) = squidpy_mask(sdata, mpp)
        x, y = (np.clip((xy[:, i] / step).astype(int), 0, mask.shape[1 - i] - 1) for i, step in ((0, right), (1, down)))
        on = shapely.contains_xy(outline, xy[:, 0], xy[:, 1])
        print(f"| {name} | {on.mean():.1%} | {area:.1%} | {mask[y, x].mean():.1%} | {mask.mean():.1%} |")


if __name__ == "__main__":
    main()
