"""How fast a device is at what the package does, against what it can do at best."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable

import torch
from _device_clock import AtWork, bare, matrices, once, seconds
from _device_parts import Row, Setting
from _device_simulated import bins, build, forget_features, slide, texts, tiny

from stpredict import _inference, models
from stpredict._malloc import keep_freed_memory
from stpredict._section import Section
from stpredict.models import GeneQuery, Model, PixNet

GENES = 250
MOST = 1.2  # of the bare forward pass
WORKING = 0.85  # of the time
LONGEST = 60.0  # seconds of a slide of 3 Gpx with tissue on a third


def shipped(s: Setting) -> PixNet:
    """The shipped PixNet; at the smallest size another one of the same parts."""
    return tiny(("g0", "g1", "g2")).eval() if s.small else models.load("pixnet-her2st").eval()


def run(s: Setting, model: Model, **how: object) -> _inference.Runtime:
    """The defaults of a prediction."""
    return _inference.RuntimeOptions(device=s.device, progress=False, **how).resolve(model.output)


def ceilings(s: Setting) -> list[Row]:
    side, megabytes = (256, 4) if s.small else (8192, 1024)
    there = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=s.device)
    here = torch.empty(megabytes * 2**20, dtype=torch.uint8, pin_memory=s.cuda)
    copied = 2 * there.nbytes / seconds(there.clone, s.device) / 1e9
    sent = here.nbytes / seconds(lambda: there.copy_(here, non_blocking=True), s.device) / 1e9
    back = here.nbytes / seconds(lambda: here.copy_(there, non_blocking=True), s.device) / 1e9
    return [
        Row(f"product of bf16 matrices, {side} x {side}", matrices(s.device, side), "TFLOP/s"),
        Row("product of float32 matrices", matrices(s.device, side, torch.float32), "TFLOP/s"),
        Row("copy on the device, read and written", copied, "GB/s"),
        Row("copy to the device, from pinned memory", sent, "GB/s"),
        Row("copy from the device, to pinned memory", back, "GB/s"),
    ]


def share_row(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> Row:
    """A ratio, and its goal if it has one here."""
    if at_least is not None:
        return Row(what, value, "", f">= {at_least}", value >= at_least)
    return Row(what, value) if at_most is None else Row(what, value, "", f"<= {at_most}", value <= at_most)


def forward_rows(model: Model, s: Setting, batches: tuple[int, ...], *, goal: float | None = None) -> list[Row]:
    """The bare forward pass of batches of tiles, in bf16; the goal is for the last of them."""
    best, rows = matrices(s.device, 256 if s.small else 8192), []
    for n in batches:
        took, flops = bare(model, s.device, n, 1 if s.small else 5)
        rate, mpx = flops / took / 1e12, n * model.config.core_px**2 / took / 1e6
        what = f"the same, of the device's bf16 matrices ({rate:.3g} of {best:.3g} TFLOP/s)"
        rows += [
            Row(f"bare forward pass, {n} tiles of {model.config.core_px} px", mpx, "Mpx/s"),
            share_row(what, rate / best, at_least=goal if s.cuda and n == batches[-1] else None),
        ]
    return rows


def end_to_end(model: PixNet, where: Section, s: Setting, *, batch: int, goal: bool = True) -> list[Row]:
    """A whole prediction of a slide against the bare forward pass of as many batches, and who works meanwhile."""
    pieces = _inference.n_chunks(model, where, runtime=run(s, model, batch_size=batch), raster=False)
    warm = slide(model.config.core_px, model.mpp, pitch_um=100, radius_um=27.5, period=8192 if s.cuda else 1024)
    how = run(s, model, precision="bf16", batch_size=batch)
    _inference.predict(model, warm, model.genes, runtime=how)
    took = pieces * bare(_inference.fold_batch_norms(model), s.device, batch, 1 if s.small else 5)[0]
    with AtWork(model, s.device) as work:
        _inference.predict(model, where, model.genes, runtime=how)
    px, judged = where.image.height * where.image.width, goal and s.cuda
    rows = [
        Row(f"predict, {px / 1e6:,.1f} Mpx and {where.n_shapes:,} shapes", work.wall, "s"),
        Row("the same", px / work.wall / 1e6, "Mpx/s"),
        share_row(
            "predict / bare forward passes of as many batches", work.wall / took, at_most=MOST if judged else None
        ),
        share_row(
            "share of the time in which the network works (events around it)", work.network / work.wall,
            at_least=WORKING if judged else None,
        ),
    ]  # fmt: skip
    if work.card is not None:
        rows.append(Row("share of the time in which the card works at all (NVML)", work.card))
    return rows


def small(s: Setting) -> list[Row]:
    model = shipped(s).to(s.device)
    rows = forward_rows(_inference.fold_batch_norms(model), s, (1,) if s.small else (1, 4, 8))
    side = 512 if s.small else 14142
    where = slide(side, model.mpp, pitch_um=100, radius_um=27.5, period=512 if s.small else 4096)
    return rows + end_to_end(model, where, s, batch=1 if s.small else 4)


def gigapixel(s: Setting) -> list[Row]:
    model = shipped(s)
    side = 768 if s.small else 31623
    where = slide(side, model.mpp, pitch_um=100, radius_um=27.5, period=512 if s.small else 4096)
    return end_to_end(model, where, s, batch=1 if s.small else 4)


def tissue(s: Setting) -> list[Row]:
    model = shipped(s)
    side = 768 if s.small else 54772
    where = slide(side, model.mpp, pitch_um=100, radius_um=27.5, share=1 / 3, period=512 if s.small else 4096)
    took = once(lambda: _inference.predict(model, where, model.genes, runtime=run(s, model)), s.device)
    goal = ("", None) if s.small else (f"<= {LONGEST:.0f}", took <= LONGEST)
    return [Row(f"predict, {side**2 / 1e9:.2g} Gpx, {where.n_shapes:,} spots", took, "s", *goal)]


def million_bins(s: Setting) -> list[Row]:
    model = shipped(s)
    where = bins(40 if s.small else 1000, model.mpp, period=512 if s.small else 4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = once(lambda: _inference.predict(model, where, model.genes, runtime=run(s, model)), s.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        Row(f"predict, {where.n_shapes:,} bins of 8 um and {len(model.genes)} genes", took, "s"),
        Row(f"largest memory of the process ({before:.1f} GiB before)", peak, "GiB"),
    ]


def gene_query(s: Setting) -> list[Row]:
    """The head of both forms, in float32 as in a prediction."""
    n_spots, n_genes = (24, 12) if s.small else (2400, 3467)
    genes, rows = tuple(f"g{i}" for i in range(n_genes)), []
    embeddings = texts(genes, 384)
    for context in ("spot", "gene"):
        config = GeneQuery(genes, embeddings=embeddings, context=context).config
        config = dataclasses.replace(config, encoder="mobilenetv2_050")
        model = GeneQuery(config=config, embeddings=embeddings).eval().to(s.device)
        latent = torch.randn(n_spots, config.width, device=s.device)
        with torch.inference_mode():
            query = model.query(genes)
            took = seconds(lambda m=model, a=latent, q=query: m.head(a, q), s.device, 1)
        rows.append(Row(f"{context}s as context, {n_spots:,} spots and {n_genes:,} genes, float32", took, "s"))
    return rows


def patches(s: Setting) -> list[Row]:
    """Spot models from the slide to the shapes' latent, each patch for the first time."""
    rows = []
    genes = tuple(f"g{i}" for i in range(8))
    for name in ("STNet", "GeneQuery"):
        model = build(name, genes) if s.small else _usual(name, genes)
        side = 512 if s.small else 16384
        pitch = 64 * model.mpp if s.small else 200.0
        where = slide(side, model.mpp, pitch_um=pitch, radius_um=27.5, period=side if s.small else 8192)

        def whole(model: Model = model, where: Section = where) -> None:
            forget_features()
            _inference.embed(model, where, runtime=run(s, model))

        if not s.small:
            whole()
        took = once(whole, s.device)
        rows.append(
            Row(f"{name}, {where.n_shapes:,} patches of {model.config.patch_px} px", where.n_shapes / took, "patches/s")
        )
        rows.append(Row("the same / the bare encoder in float32", took / _encoder_alone(model, where.n_shapes, s), ""))
    return rows


def _usual(name: str, genes: tuple[str, ...]) -> Model:
    given = {"embeddings": texts(genes)} if name == "GeneQuery" else {}
    return getattr(models, name)(genes, **given)


def _encoder_alone(model: Model, n: int, s: Setting) -> float:
    """Seconds of the encoder's maps of n patches that are on the device already."""
    px, at_once = model.config.patch_px, 64
    encoder = model.encoder.encoder.eval().to(s.device)
    turns = 1 if not hasattr(model.config, "symmetries") else model.config.symmetries
    image = torch.rand(at_once, 3, px, px, device=s.device).contiguous(memory_format=torch.channels_last)
    with keep_freed_memory(), torch.inference_mode():
        call: Callable[[], object] = lambda: encoder(image)  # noqa: E731
        return turns * n / at_once * seconds(call, s.device, 1 if s.small else 5)
