"""What a `tl.predict` costs beside its work: the whole call on a small slide in a store, less the bare forward pass.

By path, `spatialdata.read_zarr` of the same store is part of the work, which the user of an object has done before.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import spatialdata as sd
from _speed_predict import MODEL, forward, interleaved
from _speed_slide import store

import stpredict as stp
from stpredict import _inference
from stpredict._malloc import keep_freed_memory
from stpredict.models import load

SIDE = 1024  # 1 Mpx: four tiles


def table(rounds: int) -> str:
    """A new table, a layer of that table, and a layer with its raster, over older ones; by path and by object."""
    model = load(MODEL).eval()
    folded = _inference.fold_batch_norms(model)
    heads = ["result", "given as", "bare forward pass, s", "reading the store, s", "tl.predict, s", "difference, s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spatialdata's, about its own dependencies
        images = store(Path(folder) / "made.zarr", model, SIDE)
        path = Path(shutil.copytree(Path(folder) / "made.zarr", Path(folder) / "slide.zarr"))

        def bare() -> None:
            with keep_freed_memory():
                forward(folded, images, "32")

        results = {
            "a new table": {"table_added": "spots_250"},
            "a layer": {"table_name": "spots_250", "key_added": "again"},
            "a layer and a raster": {"table_name": "spots_250", "key_added": "both", "output": "both"},
        }
        for name, asked in results.items():
            for kind in ("path", "object"):
                slide = path if kind == "path" else sd.read_zarr(path)

                def whole(slide: Any = slide, asked: dict[str, str] = asked) -> None:
                    stp.tl.predict(
                        slide, model, mpp=model.mpp, shapes_key="spots", overwrite=True, device="cpu", precision="32",
                        progress=False, **asked,
                    )  # fmt: skip

                one, read, other = interleaved(rounds, bare, lambda: sd.read_zarr(path), whole)
                work = one + read if kind == "path" else one
                lines.append(f"| {name} | {kind} | {one:.2f} | {read:.2f} | {other:.2f} | {other - work:.2f} |")
    return "\n".join(lines)
