"""`tl.predict` on a store, from opening it to the table written into it, against the bare forward pass."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import shapely
import zarr
from _speed_predict import MODEL, forward, interleaved, section, slide, tile_images
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Scale

import stpredict as stp
from stpredict import _inference
from stpredict._malloc import keep_freed_memory
from stpredict.models import Model, load

SIDES = (2048, 4096, 8192)  # of 4, 17 and 67 Mpx


def store(path: Path, model: Model, side: int) -> list:
    """Write a store of H&E with spots, and return the pixels of the model's tiles."""
    pixels = path.with_suffix(".pixels")
    slide(pixels, side)
    where = section(pixels, model.mpp)
    frame = {"um": Scale([model.mpp, model.mpp], axes=("x", "y"))}
    image = Image2DModel.parse(
        zarr.open_array(pixels, mode="r")[:], dims=("c", "y", "x"), transformations=frame, chunks=(3, 1024, 1024)
    )
    spots = ShapesModel.parse(
        shapely.get_coordinates(where.geometry), geometry=0, radius=where.radius[0], transformations=frame
    )
    SpatialData(images={"image": image}, shapes={"spots": spots}).write(path)
    return tile_images(where, model)


def table(rounds: int) -> str:
    """Slides of several sizes: our time against that of the same folded model over the same tiles."""
    model = load(MODEL).eval()
    folded = _inference.fold_batch_norms(model)
    lines = ["| slide, Mpx | precision | tl.predict / bare forward pass |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spatialdata's, about its own dependencies
        for side in SIDES:
            path = Path(folder) / f"{side}.zarr"
            images = store(path, model, side)
            for precision in ("32", "bf16") if side < SIDES[-1] else ("bf16",):

                def bare(precision: str = precision, images: list = images) -> None:
                    with keep_freed_memory():
                        forward(folded, images, precision)

                def whole(precision: str = precision, path: Path = path) -> None:
                    stp.tl.predict(
                        path, model, mpp=model.mpp, table_added="spots_250", overwrite=True, device="cpu",
                        precision=precision, progress=False,
                    )  # fmt: skip

                one, other = interleaved(rounds if side < SIDES[-1] else min(rounds, 2), bare, whole)
                lines.append(f"| {side**2 / 1e6:.0f} | {precision} | {other / one:.2f} |")
    return "\n".join(lines)
