"""What it costs to ask whether a model knows the tissue: `tl.predict` with and without domain and bare glass."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from _speed_predict import MODEL, interleaved
from _speed_slide import store
from spatialdata import read_zarr

import stpredict as stp
from stpredict.models import load
from stpredict.tl._predict import _job

SIDE = 4096  # 17 Mpx


def table(rounds: int) -> str:
    """A whole call as it is, and one with an outline, over calls that do not ask whether the model knows the tissue."""
    model = load(MODEL).eval()
    lines = [
        "| precision | domain and bare glass | domain, within an outline | outline and domain |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spatialdata's, about its own dependencies
        path = Path(folder) / "slide.zarr"
        store(path, model, SIDE)
        stp.pp.tissue(read_zarr(path), mpp=model.mpp)
        for precision in ("32", "bf16"):

            def call(asks: bool, tissue_key: str | None, precision: str = precision) -> None:
                with nullcontext() if asks else patch.object(_job, "domain_percentiles", lambda resolved: None):
                    stp.tl.predict(
                        path, model, mpp=model.mpp, table_added="spots_250", overwrite=True, device="cpu",
                        precision=precision, progress=False, tissue_key=tissue_key,
                    )  # fmt: skip

            calls = [(False, None), (True, None), (False, "tissue"), (True, "tissue")]
            seconds = interleaved(rounds, *(lambda each=each: call(*each) for each in calls))
            ratios = (seconds[1] / seconds[0], seconds[3] / seconds[2], seconds[3] / seconds[0])
            lines.append(f"| {precision} | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |")
    return "\n".join(lines)
