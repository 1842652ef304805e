"""Features of patches: ours against lazyslide's feature extraction, which runs in an environment of its own.

`python _speed_lazyslide.py slide.tif` is lazyslide's side and imports nothing of ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import timeit
from functools import partial
from pathlib import Path

PATCH_PX, MPP, ENCODER = 128, 2.0, "mobilenetv2_100"


def theirs(path: Path) -> None:
    """Print the number of patches, and the seconds in float32 and in bfloat16, after one call to warm up."""
    import lazyslide as zs
    import timm
    import torch
    from wsidata import open_wsi

    wsi = open_wsi(path, store=str(path.with_suffix(".zarr")))
    zs.pp.tile_tissues(wsi, PATCH_PX, background_filter=False, tissue_key=None, slide_mpp=MPP)
    encoder = timm.create_model(ENCODER, num_classes=0).eval()

    def model(x: torch.Tensor) -> torch.Tensor:
        return encoder(x).float()  # its own step to NumPy does not take bfloat16

    def seconds(**precision: object) -> float:
        return timeit.timeit(
            lambda: zs.tl.feature_extraction(
                wsi, model, transform=lambda x: torch.from_numpy(x).permute(2, 0, 1).float() / 255, device="cpu",
                pbar=False, **precision,
            ),
            number=1,
        )  # fmt: skip

    seconds()
    print(len(wsi.shapes["tiles"]), seconds(), seconds(amp=True, autocast_dtype=torch.bfloat16))


def table(rounds: int) -> str:
    import numpy as np
    import tifffile
    import torch
    from _speed_predict import runtime, section, slide

    from stpredict import _inference
    from stpredict.models._base import Recipe
    from stpredict.models.stnet import STNet, STNetConfig
    from stpredict.nn import features

    torch.manual_seed(0)
    shared = {"mpp": MPP, "patch_px": PATCH_PX, "encoder": ENCODER, "symmetries": 1}
    trained = STNetConfig(("gene",), frozen=False, recipe=Recipe(encoder_lr=1e-3), **shared)
    models = [STNet(config=config).eval() for config in (trained, STNetConfig(("gene",), **shared))]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 2048)
        where = section(Path(folder) / "s.zarr", MPP, step_um=PATCH_PX * MPP / 1.08)
        pixels = where.image.read(where.image.window)
        tif = Path(folder) / "s.tif"
        tifffile.imwrite(tif, pixels, tile=(256, 256), photometric="rgb")
        command = [
            *("uv", "run", "--no-project", "--python", sys.executable, "--with", "lazyslide", "--with", "tiffslide"),
            *("python", __file__, str(tif)),
        ]
        for _ in range(rounds):
            out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
            n, *their = map(float, out.stdout.split()[-3:])
            own = []
            for model in models:
                for precision in ("auto", "32", "auto"):
                    features._held.clear()  # what a frozen encoder saw in the round before
                    call = partial(_inference.predict, model, where, ["gene"], runtime=runtime(precision, model))
                    own.append(timeit.timeit(call, number=1))
            own = [seconds for k, seconds in enumerate(own) if k % 3]  # the first call of a model warms up
            found.append([each / n / (ours / where.n_shapes) for each in their for ours in own])
    ratios = np.median(found, axis=0).reshape(2, 2, 2)  # (theirs, trained or frozen, float32 or default)
    lines = [
        f"Seconds a patch of {PATCH_PX} px through {ENCODER}, lazyslide / ours ({n:.0f} and {where.n_shapes} patches):",
        "",
        "| lazyslide | ours, encoder | our float32 | our default |",
        "|---|---|---|---|",
    ]
    for theirs, rows in zip(("its default, float32", "amp in bfloat16"), ratios, strict=True):
        for encoder, (full, default) in zip(("trained", "frozen, nothing remembered"), rows, strict=True):
            lines.append(f"| {theirs} | {encoder} | {full:.2f} | {default:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    theirs(parser.parse_args().path)
