"""The whole of `tl.predict`, from a SpatialData store to the table in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import shapely
from _device_clock import once
from _device_parts import Row, Setting, Skipped
from _device_right import ALIKE, EXACT, least_correlation, without_tf32, worst
from _device_simulated import slide, tiny

from stpredict import models
from stpredict._window import Window
from stpredict.models import PixNet
from stpredict.models._base import new_card


def through_spatialdata(s: Setting) -> list[Row]:
    try:
        import spatialdata

        from stpredict.tl import predict
    except ImportError as error:
        raise Skipped(f"the door cannot be opened: {error}") from error
    model = tiny(("g0", "g1", "g2")).eval() if s.small else models.load("pixnet-her2st").eval()
    model.card = model.card or new_card(model, sections=("simulated",))
    side = 512 if s.small else 4096
    path = _store(s.folder / "slide.zarr", side, model)
    values, took = {}, 0.0
    how = {"mpp": model.mpp, "overwrite": True, "progress": False, "table_added": "predicted"}
    for device, precision in dict.fromkeys([("cpu", "32"), ("cpu", "bf16"), (s.device, "32"), (s.device, "bf16")]):
        with warnings.catch_warnings(), without_tf32():
            warnings.simplefilter("ignore")  # of packages about one another
            took = once(lambda d=device, p=precision: predict(path, model, device=d, precision=p, **how), device)
            values[device, precision] = np.asarray(spatialdata.read_zarr(path).tables["predicted"].X)
    wanted = values["cpu", "32"]
    apart, _ = worst(values[s.device, "32"], wanted)
    alike = least_correlation(values[s.device, "bf16"], values["cpu", "bf16"])
    return [
        Row(
            f"the table of {len(wanted):,} spots, float32, largest difference",
            apart,
            "sd",
            f"<= {EXACT}",
            apart <= EXACT,
        ),
        Row("bf16, least correlation of a gene with the CPU's bf16", alike, "", f"> {ALIKE}", alike > ALIKE),
        Row(f"from opening the store of {side**2 / 1e6:.2g} Mpx to its table, bf16", took, "s"),
    ]


def _store(path: Path, side: int, model: PixNet) -> Path:
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Scale

    where = slide(side, model.mpp, pitch_um=64 * model.mpp, radius_um=20 * model.mpp, period=side)
    frame = {"um": Scale([model.mpp, model.mpp], axes=("x", "y"))}
    pixels = np.moveaxis(where.image.read(Window(0, 0, side, side)), -1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=frame, chunks=(3, 512, 512))
        spots = ShapesModel.parse(
            shapely.get_coordinates(where.geometry), geometry=0, radius=where.radius[0], transformations=frame
        )
        SpatialData(images={"image": image}, shapes={"spots": spots}).write(path)
    return path
