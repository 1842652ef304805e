"""Prediction against the bare forward pass over the same tiles, and peak memory against slide area.

    python benchmarks/speed.py --model pixnet-her2st        # prints Markdown; uses 2 threads

The slide is a tiled Zarr array of real H&E (section C5, repeated), read from disk; shapes are 55 um spots every 100 um.
Times are medians of interleaved rounds in one process; only their ratio means anything. Freed memory is kept on both
sides, and a third one predicts with glibc's own rule. Peak memory is the largest resident set of a fresh process for
each slide.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import numpy as np
import shapely
import torch
import zarr
from _settings import DATA
from PIL import Image

from stpredict import _infer
from stpredict._section import ImageView, Section
from stpredict._window import tiles
from stpredict.models import load
from stpredict.models._samples import Batch
from stpredict.nn.allocator import SWITCH, keep_freed_memory


def slide(path: Path, side: int) -> None:
    """A (3, side, side) Zarr array of H&E at 2 um per pixel."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(DATA / "her2st" / "C5.jpg") as image:
        piece = np.moveaxis(np.asarray(image.reduce(3)), -1, 0)
    array = zarr.create_array(path, shape=(3, side, side), chunks=(3, 1024, 1024), dtype="uint8")
    h, w = piece.shape[1:]
    for y in range(0, side, h):
        for x in range(0, side, w):
            array[:, y : y + h, x : x + w] = piece[:, : side - y, : side - x]


def section(path: Path, mpp: float) -> Section:
    """The slide with its spots."""
    pixels = zarr.open_array(path, mode="r")
    step, radius = 100 / mpp, 27.5 / mpp
    centres = np.arange(step, pixels.shape[1] - step, step)
    geometry = np.array([shapely.Point(x, y) for y in centres for x in centres], dtype=object)
    radii = np.full(len(geometry), radius)
    view = ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=mpp)
    return Section("slide", view, geometry, radii, np.arange(len(geometry)), np.pi * radii**2)


def ratio(model_name: str, path: Path, rounds: int, precision: str) -> tuple[float, float, int]:
    """Median ratios of interleaved rounds, and the number of tiles.

    The whole prediction to the bare forward pass, and the whole prediction without to that with freed memory kept.
    """
    model = load(model_name)
    where = section(path, model.mpp)
    run = _infer.Runtime(device="cpu", precision=precision, progress=False)
    every = tiles(where.image.height, where.image.width, core_px=model.config.core_px, halo_px=model.config.halo_px)
    images = [_infer._read(where, [tile]) for tile in every]

    def bare() -> None:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with keep_freed_memory(), torch.inference_mode(), autocast:
            for image in images:
                model.latent(Batch(image, None, None, (), np.empty((0, 2), dtype=np.int64)))

    def whole(kept: str = "1") -> None:
        os.environ[SWITCH] = kept
        _infer.predict(model, where, model.genes, runtime=run)
        os.environ[SWITCH] = "1"

    sides = (bare, whole, lambda: whole("0"))
    seconds = np.array([[timeit.timeit(side, number=1) for side in sides] for _ in range(rounds + 1)])[1:]  # warm
    to_bare, without = np.median(seconds[:, 1] / seconds[:, 0]), np.median(seconds[:, 2] / seconds[:, 1])
    return float(to_bare), float(without), len(every)


def peak(model_name: str, path: Path, precision: str) -> None:
    """Predict and print the peak resident set in MB and the size of the result."""
    model = load(model_name)
    where = section(path, model.mpp)
    run = _infer.Runtime(device="cpu", precision=precision, progress=False)
    values, _ = _infer.predict(model, where, model.genes, runtime=run)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, values.nbytes / 2**20, len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pixnet-her2st")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak is not None:
        peak(args.model, args.peak, args.precision)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"{side}.zarr" for side in args.sides}
        for side, path in paths.items():
            slide(path, side)
        to_bare, without, n = ratio(args.model, paths[args.sides[0]], args.rounds, args.precision)
        print(f"{n} tiles, {args.precision}, median of {args.rounds} rounds")
        print(f"predict / bare forward, freed memory kept: {to_bare:.3f}")
        print(f"predict, glibc's own rule / freed memory kept: {without:.2f}\n")
        print("| slide, Mpx | spots | peak RSS, MB, freed memory kept | glibc's own rule | of which the result, MB |")
        print("|---|---|---|---|---|")
        for side, path in paths.items():
            command = [
                sys.executable,
                __file__,
                "--model",
                args.model,
                "--precision",
                args.precision,
                "--peak",
                str(path),
            ]
            kept, own = (
                subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {SWITCH: value})
                for value in ("1", "0")
            )
            (peak_kept, result, n), peak_own = kept.stdout.split(), own.stdout.split()[0]
            peaks = f"{float(peak_kept):.0f} | {float(peak_own):.0f}"
            print(f"| {side**2 / 1e6:.0f} | {n} | {peaks} | {float(result):.1f} |", flush=True)


if __name__ == "__main__":
    main()
