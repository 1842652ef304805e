"""Prediction: against the bare forward pass, plain PyTorch, crops, more genes, one whole pass; memory against area."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import shapely
import torch
import zarr
from _settings import DATA
from PIL import Image

from stpredict import _inference
from stpredict._malloc import SWITCH, keep_freed_memory
from stpredict._section import ImageView, Section
from stpredict._window import tiles
from stpredict.models import Model, PixNet, load
from stpredict.models._samples import Batch

MODEL = "pixnet-her2st"
SIDES = (1774, 4096, 8192, 14142)  # of 3, 17, 67 and 200 Mpx


def slide(path: Path, side: int) -> None:
    """A (3, side, side) Zarr array of H&E at 2 um per pixel: section C5, repeated."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(DATA / "her2st" / "C5.jpg") as image:
        piece = np.moveaxis(np.asarray(image.reduce(3)), -1, 0)
    array = zarr.create_array(path, shape=(3, side, side), chunks=(3, 1024, 1024), dtype="uint8")
    h, w = piece.shape[1:]
    for y in range(0, side, h):
        for x in range(0, side, w):
            array[:, y : y + h, x : x + w] = piece[:, : side - y, : side - x]


def section(path: Path, mpp: float, *, step_um: float = 100.0, radius_um: float = 27.5) -> Section:
    """The slide with spots on a square grid."""
    pixels = da.from_zarr(zarr.open_array(path, mode="r"))  # as the image of a store is read
    step, radius = step_um / mpp, radius_um / mpp
    centres = np.arange(step, pixels.shape[1] - step, step)
    x, y = np.meshgrid(centres, centres)
    geometry = shapely.points(x.ravel(), y.ravel())
    radii = np.full(len(geometry), radius)
    view = ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=mpp)
    return Section("slide", view, geometry, radii, np.arange(len(geometry)), np.pi * radii**2)


def runtime(precision: str, model: Model) -> _inference.Runtime:
    return _inference.RuntimeOptions(device="cpu", precision=precision, progress=False).resolve(model.output)


@contextlib.contextmanager
def allocator(kept: str) -> Iterator[None]:
    os.environ[SWITCH] = kept
    yield
    os.environ[SWITCH] = "1"


def forward(model: Model, images: list[torch.Tensor], precision: str) -> None:
    """The latent of every tile and nothing else."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), autocast:
        for image in images:
            model.latent(Batch(image, None, None, (), np.empty((0, 2), dtype=np.int64)))


def tile_images(where: Section, model: Model) -> list[torch.Tensor]:
    c = model.config
    every = tiles(where.image.height, where.image.width, core_px=c.core_px, halo_px=c.halo_px)
    return [torch.from_numpy(where.image.read(tile.read)[None]).permute(0, 3, 1, 2) for tile in every]


def interleaved(rounds: int, *calls: Callable[[], object]) -> np.ndarray:
    """Median seconds of each, after one round to warm up."""
    rows = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds + 1)]
    return np.median(np.array(rows)[1:], axis=0)


def ratios(rounds: int) -> str:
    """Prediction inside spots, end to end, against the same forward passes and against plain PyTorch."""
    model = load(MODEL).eval()
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 2048)
        where = section(Path(folder) / "s.zarr", model.mpp)
        images, lines = tile_images(where, model), []
        folded = _inference.fold_batch_norms(model)

        def bare(precision: str) -> None:
            with keep_freed_memory():
                forward(folded, images, precision)

        def plain() -> None:
            forward(model, images, "32")

        def whole(precision: str) -> None:
            _inference.predict(model, where, model.genes, runtime=runtime(precision, model))

        def unkept() -> None:
            with allocator("0"):
                whole("auto")

        for precision in ("32", "bf16"):
            one, other = interleaved(rounds, lambda p=precision: bare(p), lambda p=precision: whole(p))
            lines.append(f"predict / bare forward pass of the same folded model, {precision}: {other / one:.2f}")
        for name, kept in (("glibc's own rule", "0"), ("freed memory kept", "1")):
            scope = keep_freed_memory if kept == "1" else contextlib.nullcontext

            def eager(scope: Callable[[], contextlib.AbstractContextManager] = scope) -> None:
                with scope():
                    plain()

            one, other = interleaved(rounds, eager, lambda: whole("auto"))
            lines.append(f"plain float32 forward pass, eager, {name} / predict with its defaults: {one / other:.2f}x")
        one, other = interleaved(rounds, unkept, lambda: whole("auto"))
        lines.append(f"predict, glibc's own rule / freed memory kept: {one / other:.2f}x")
    return "\n".join(f"- {line}" for line in lines)


def crops(rounds: int, *, n_crops: int = 64, crop_um: float = 112.0) -> str:
    """Dense once, end to end, against a crop around every shape through the same encoder and decoder, on 2 x 2 mm."""
    model = load(MODEL).eval()
    folded, unit = (
        _inference.fold_batch_norms(model),
        128,
    )  # pixels: the coarsest attention window has 8 x 8 cells of 16
    side = -(-round(crop_um / model.mpp) // unit) * unit
    images = torch.randint(0, 256, (n_crops, 3, side, side), dtype=torch.uint8)

    def one_by_one() -> None:
        with keep_freed_memory():
            forward(folded, [images], "bf16")

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 1000)
        for name, step, radius in (("cells", 14.0, 5.0), ("8 um bins", 8.0, 4.0)):
            where = section(Path(folder) / "s.zarr", model.mpp, step_um=step, radius_um=radius)

            def dense(where: Section = where) -> None:
                _inference.predict(model, where, model.genes, runtime=runtime("bf16", model))

            crop, whole = interleaved(rounds, one_by_one, dense)
            lines.append(
                f"- {where.n_shapes:,} {name}: crops of {side} px ({side * model.mpp:g} um) would take "
                f"{crop / n_crops * where.n_shapes / whole:.0f}x as long ({n_crops} were measured, encoder and decoder)"
            )
    return "\n".join(lines)


def genes(rounds: int) -> str:
    """More genes, and more shapes, on 4 Mpx: the time against that of the first row."""
    small = load(MODEL)

    def request(n: int) -> PixNet:
        config = dataclasses.replace(small.config, genes=tuple(f"g{i}" for i in range(n)), context_rank=0)
        return PixNet(config=config).eval()

    lines = ["| spots | genes | time | result, MB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 2048)
        where = section(Path(folder) / "s.zarr", small.mpp)
        models = [request(n) for n in (250, 50, 2_000, 18_000)]
        calls = [lambda m=m: _inference.predict(m, where, m.genes, runtime=runtime("auto", m)) for m in models]
        took = interleaved(rounds, *calls)
        for model, each in zip(models, took, strict=True):
            n, g = where.n_shapes, len(model.genes)
            lines.append(f"| {n:,} | {g:,} | {each / took[0]:.2f} | {4 * n * g / 2**20:.0f} |")
        side_um, plain = 2048 * small.mpp, request(250)
        for n in (1_000, 10_000, 100_000, 1_000_000):
            step = side_um / (np.sqrt(n) + 1)
            where = section(Path(folder) / "s.zarr", small.mpp, step_um=step, radius_um=step / 2)
            (each,) = interleaved(
                min(rounds, 3),
                lambda w=where: _inference.predict(plain, w, plain.genes, runtime=runtime("auto", plain)),
            )
            lines.append(f"| {where.n_shapes:,} | 250 | {each / took[0]:.2f} | {where.n_shapes * 1000 / 2**20:.0f} |")
    return "\n".join(lines)


def monai(rounds: int) -> str:
    """MONAI's sliding window with as many windows of the same size and no read-out, against ours, which has one."""
    from monai.inferers import sliding_window_inference  # uv run --with monai

    model = load(MODEL)
    c, lines = model.config, []
    roi = c.core_px + 2 * c.halo_px
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 2048)
        where = section(Path(folder) / "s.zarr", model.mpp)

        def latent(window: torch.Tensor) -> torch.Tensor:
            return model.latent(Batch(window.to(torch.uint8), None, None, (), np.empty((0, 2), dtype=np.int64))).float()

        def theirs() -> None:
            image = torch.from_numpy(where.image.read(where.image.window)).movedim(-1, 0)[None].float()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                sliding_window_inference(image, roi, 1, latent, overlap=2 * c.halo_px / roi)

        def ours() -> None:
            _inference.predict(model, where, model.genes, runtime=runtime("bf16", model))

        for name, scope in (("glibc's own rule", contextlib.nullcontext), ("freed memory kept", keep_freed_memory)):

            def scoped(scope: Callable[[], contextlib.AbstractContextManager] = scope) -> None:
                with scope():
                    theirs()

            one, other = interleaved(rounds, scoped, ours)
            lines.append(f"- MONAI's sliding_window_inference, bf16, {name} / predict: {one / other:.2f}x")
    return "\n".join(lines)


def seams() -> str:
    """Tiles against one pass over the whole image, in standard deviations of a gene over spots."""
    model, found = load(MODEL), {}
    tiled = model.config
    with tempfile.TemporaryDirectory() as folder:
        slide(Path(folder) / "s.zarr", 2048)
        where = section(Path(folder) / "s.zarr", model.mpp)
        for core in (2048, 512):
            model.config = dataclasses.replace(tiled, core_px=core)
            for precision in ("32", "bf16"):
                found[core, precision], _ = _inference.predict(
                    model, where, model.genes, runtime=runtime(precision, model)
                )
    whole = found[2048, "32"]

    def apart(one: np.ndarray, other: np.ndarray) -> str:
        error = (one - other) / whole.std(axis=0)
        return f"rms {np.sqrt(np.mean(error**2)):.1e}, largest {np.abs(error).max():.1e}"

    return "\n".join(
        [
            "In standard deviations of the gene over spots:\n",
            *(
                f"- {p}, cores of 512 px with a halo of {tiled.halo_px} px against one pass over 2048 px: "
                + apart(found[512, p], found[2048, p])
                for p in ("32", "bf16")
            ),
            f"- one pass in bf16 against one in float32 (rounding, no seam): {apart(found[2048, 'bf16'], whole)}",
        ]
    )


def peak(path: Path) -> None:
    """Predict, and print the peak resident set in MB, the size of the result, the shapes and the seconds."""
    model = load(MODEL)
    where = section(path, model.mpp)
    start = timeit.default_timer()
    values, _ = _inference.predict(model, where, model.genes, runtime=runtime("auto", model))
    took = timeit.default_timer() - start
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, values.nbytes / 2**20, len(values), took)


def memory(rounds: int) -> str:
    """Peak memory and time against the area of the slide: medians over processes."""
    lines = [
        f"Medians of {rounds} processes, {2 * rounds} of the smaller two slides: heaps break up differently.\n",
        "| slide, Mpx | spots | peak RSS, MB | the result | beyond it (least to most) | time per Mpx, to the first |",
        "|---|---|---|---|---|---|",
    ]
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for k, side in enumerate(SIDES):
            path = Path(folder) / f"{side}.zarr"
            slide(path, side)
            command = [sys.executable, __file__, str(path)]
            n_processes = 2 * rounds if k < 2 else rounds
            done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(n_processes)]
            found = np.array([[float(x) for x in each.stdout.split()] for each in done])
            (top, result, n, took), beyond = np.median(found, axis=0), found[:, 0] - found[:, 1]
            first = first or took / side**2
            lines.append(
                f"| {side**2 / 1e6:.0f} | {n:,.0f} | {top:.0f} | {result:.0f} | {np.median(beyond):.0f} "
                f"({beyond.min():.0f} to {beyond.max():.0f}) | {took / side**2 / first:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="one measurement of `memory`")
    parser.add_argument("path", type=Path)
    peak(parser.parse_args().path)
