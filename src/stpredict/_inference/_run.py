"""Running a model over a section: predict, embed, or compute some chunks of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import methodcaller
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpredict._inference._chunks import ChunkedInference, PatchInference, Runtime
from stpredict._inference._dense import DenseInference, Raster, tiling_of
from stpredict._malloc import keep_freed_memory
from stpredict._partial import PartialStore, PartialSum
from stpredict._section import Section
from stpredict.models import Ensemble
from stpredict.models._base import Model
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch
from stpredict.nn.device import autocast, resolve_device, run_after_fork
from stpredict.nn.encoders import folded_encoder
from stpredict.nn.fold import copied, folded

EXACT_BYTES = 2**24  # of sums in float64
HEAD_ROWS = 8192  # shapes whose genes are predicted together, where a model does not want all of a section


class Prediction(NamedTuple):
    """What `predict_with_spread` returns.

    Parameters
    ----------
    values : ndarray of float32
        (n, g) in target units, NaN where nothing of a shape is on the image.
    share : ndarray of float64
        (n,) covered share of each shape's area in [0, 1].
    spread : ndarray of float32, optional
        (n, g) standard deviation over the members of an ensemble in target units; None for any other model.
    """

    values: NDArray[np.float32]
    share: NDArray[np.float64]
    spread: NDArray[np.float32] | None


def predict(
    model: Model,
    section: Section,
    genes: Sequence[str],
    *,
    runtime: Runtime,
    raster: Raster | None = None,
    parts: PartialStore | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Values and covered shares of `predict_with_spread`; arguments as there."""
    return predict_with_spread(model, section, genes, runtime=runtime, raster=raster, parts=parts)[:2]


def predict_with_spread(
    model: Model,
    section: Section,
    genes: Sequence[str],
    *,
    runtime: Runtime,
    raster: Raster | None = None,
    parts: PartialStore | None = None,
) -> Prediction:
    """Predict inside the shapes of a section, and hand its raster on tile by tile.

    Parameters
    ----------
    genes : Sequence[str]
        Panel genes to predict, in the wanted order.
    raster : Raster, optional
        For dense models: called once for every core of the tiling with its rows and columns on the raster grid and the
        values (g, h, w) before the link, or without genes the latent map (d, h, w), which are valid during the call.
    parts : PartialStore, optional
        Where finished chunks are kept, and those of an earlier run are found: they are not done again, and the result
        is the same to the bit.

    Returns
    -------
    Prediction
        Values, covered shares, and the spread of an ensemble. The raster of all genes is never held.

    Raises
    ------
    ValueError
        Where a raster is asked of a model that has none.
    """
    if isinstance(model, Ensemble) and model.output == "spots":
        _check_map(model, raster)
        return _predict_members(model, section, genes, runtime, parts)
    with _ready(model, section, runtime, genes, raster) as (chunks, query):
        rows, share = _pooled_rows(chunks, parts)
        values = np.full((section.n_shapes, len(genes)), np.nan, dtype=np.float32)
        spread = np.full_like(values, np.nan) if isinstance(model, Ensemble) else None
        on = np.flatnonzero(share > 0)
        if len(on) and query is not None:
            _head(model, rows, on, query, values, spread)
        return Prediction(values, share, spread)


def _predict_members(
    model: Ensemble, section: Section, genes: Sequence[str], runtime: Runtime, parts: PartialStore | None
) -> Prediction:
    """Mean and standard deviation over members that look at patches, each with samples of its own, in target units.

    Welford's sums: the values of two members are held at a time.
    """
    mean = square = np.zeros((section.n_shapes, len(genes)), np.float32)
    share = np.zeros(section.n_shapes)
    for k, (member, first) in enumerate(zip(model.models, _first_chunks(model, section, runtime), strict=False)):
        own = None if parts is None else _PartsFrom(parts, first)
        named = replace(runtime, label=f"{runtime.label}, member {k + 1}/{len(model.models)}")
        values, share = predict(member, section, genes, runtime=named, parts=own)
        step = values - mean
        mean = mean + step / np.float32(k + 1)
        square = square + step * (values - mean)
    return Prediction(mean, share, np.sqrt(square / np.float32(len(model.models) - 1)))


def _first_chunks(model: Ensemble, section: Section, runtime: Runtime) -> list[int]:
    """The number that each member's pieces begin at, and that of all."""
    sizes = [n_chunks(each, section, runtime=runtime, raster=False) for each in model.models]
    return [0, *accumulate(sizes)]


@dataclass(frozen=True)
class _PartsFrom:
    """The parts of one member among those of an ensemble: its pieces are numbered from `first` on."""

    parts: PartialStore
    first: int

    def has(self, chunk: int) -> bool:
        return self.parts.has(self.first + chunk)

    def load(self, chunk: int) -> PartialSum:
        return self.parts.load(self.first + chunk)

    def keep(self, chunk: int, part: PartialSum) -> None:
        self.parts.keep(self.first + chunk, part)


def n_chunks(model: Model, section: Section, *, runtime: Runtime, raster: bool) -> int:
    """How many chunks `predict` has for this section, with or without its raster; the device need not be here."""
    if isinstance(model, Ensemble) and model.output == "spots":
        return _first_chunks(model, section, runtime)[-1]
    taker: Raster | None = (lambda y, x, values: None) if raster else None
    return _chunked(model, section, replace(runtime, device=torch.device("cpu")), raster=taker).n


def run_chunks(
    model: Model,
    section: Section,
    genes: Sequence[str],
    which: Sequence[int],
    *,
    runtime: Runtime,
    parts: PartialStore,
    raster: Raster | None = None,
) -> None:
    """Do some chunks of what `predict` does, and keep their parts; arguments as there."""
    if isinstance(model, Ensemble) and model.output == "spots":
        for member, (a, b) in zip(model.models, pairwise(_first_chunks(model, section, runtime)), strict=True):
            own = [i - a for i in which if a <= i < b]
            if own:
                run_chunks(member, section, genes, own, runtime=runtime, parts=_PartsFrom(parts, a))
        return
    with _ready(model, section, runtime, genes, raster) as (chunks, query):
        with closing(chunks.stream(which)) as made:
            for i, part in zip(which, made, strict=True):
                parts.keep(i, part)


def embed(model: Model, section: Section, *, runtime: Runtime) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """What a model sees of each shape before any gene is asked: its latent, pooled inside the shape.

    Returns values (n, d) float32, NaN where nothing of a shape is on the image (what is no feature is left out: a dense
    model's constant channel, SGN's places), and the covered share (n,) of each shape's area. Of an ensemble: those
    of its members, side by side.
    """
    if isinstance(model, Ensemble) and model.output == "spots":
        found = [embed(each, section, runtime=runtime) for each in model.models]
        return np.concatenate([values for values, _ in found], axis=1), found[0][1]
    with _ready(model, section, runtime) as (chunks, _):
        rows, share = _pooled_rows(chunks, None)
    values = np.where(share[:, None] > 0, rows, np.nan).astype(np.float32)
    return values[:, : values.shape[1] - model.n_auxiliary], share


@contextmanager
def _ready(
    model: Model, section: Section, runtime: Runtime, genes: Sequence[str] = (), raster: Raster | None = None
) -> Iterator[tuple[ChunkedInference, Tensor | None]]:
    """The chunks of a section and the rows of the genes (None without any), with the model ready for inference."""
    run_after_fork()
    device = resolve_device(runtime.device)  # raises for one that another machine has
    model.to(device).eval()
    with keep_freed_memory(), torch.inference_mode(), autocast(runtime.precision, device):
        query = None
        if genes:
            with torch.autocast(device.type, enabled=False):
                query = model.query(genes).float()
        fast = fold_batch_norms(model, compile=runtime.compile)
        yield _chunked(model, section, runtime, fast=fast, raster=raster, query=query), query


def fold_batch_norms(model: Model, *, compile: bool = False) -> Model:
    """The model with its batch norms folded: all of a dense model, of a spot model those of trained patch encoders.

    The model itself stays as it is. The features of frozen encoders are remembered, and folded where they are computed
    (`FeatureCache`).

    Parameters
    ----------
    compile : bool
        Whether the parts of a dense model go through `torch.compile` as well.
    """
    if model.output != "raster":
        trained = [m.encoder for m in model.modules() if isinstance(m, PatchEncoder) and not m.frozen]
        return copied(model, {each: folded_encoder(each) for each in trained}) if trained else model
    side, device = tiling_of(model).window_px, next(model.parameters()).device
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(image.to(device), None, None, (), np.empty((0, 2), np.int64))
    with torch.autocast(device.type, enabled=False):
        fast = folded(model, methodcaller("latent", batch))
    if compile:
        fast = copied(fast)
        for member in fast.models if isinstance(fast, Ensemble) else [fast]:
            for part in member.children():
                part.compile()
    return fast


def _chunked(
    model: Model, section: Section, runtime: Runtime, *, fast: Model | None = None, raster: Raster | None = None,
    query: Tensor | None = None,
) -> ChunkedInference:  # fmt: skip
    _check_map(model, raster)
    if model.output == "raster":
        return DenseInference(model, section, runtime, raster=raster, query=query, fast=fast)
    return PatchInference(model, section, runtime, fast=fast)


def _check_map(model: Model, raster: Raster | None) -> None:
    if raster is not None and model.output != "raster":
        raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no raster; use output='layer'.")


def _pooled_rows(
    chunks: ChunkedInference, parts: PartialStore | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The latent of every shape (n, d) float32, 0 where nothing is covered, and covered shares (n,).

    Parts are added in the order of the chunks, whoever made them, so that the sums are the same to the bit.
    """
    missing = [i for i in range(chunks.n) if parts is None or not parts.has(i)]
    new = set(missing)
    total: NDArray[np.floating] | None = None
    with closing(chunks.stream(missing)) as made:
        for i in range(chunks.n):
            part = next(made) if i in new else None
            if parts is not None and part is not None:
                parts.keep(i, part)
            elif part is None:
                assert parts is not None
                part = parts.load(i)
            if total is None:
                total = _empty_sums(chunks.section.n_shapes, part)
            total[part.rows] += part.values
    if total is None:
        return np.zeros((chunks.section.n_shapes, 0), np.float32), np.zeros(chunks.section.n_shapes)
    return chunks.from_sums(total)


def _empty_sums(n_shapes: int, part: PartialSum) -> NDArray[np.floating]:
    """Sums (n, d) of no chunk yet, in the format of the parts, but in float32 where they would be over `EXACT_BYTES`.

    Adding T parts in float32 rounds by at most T 6e-8 of the sum of their absolute values.
    """
    shape = n_shapes, part.values.shape[1]
    return np.zeros(shape, part.values.dtype if 8 * shape[0] * shape[1] <= EXACT_BYTES else np.float32)


def _head(
    model: Model, rows: NDArray[np.float32], on: NDArray[np.int64], query: Tensor, values: NDArray[np.float32],
    spread: NDArray[np.float32] | None,
) -> None:  # fmt: skip
    """Fill `values` (n, g) in target units at rows `on`, and the `spread` of an ensemble.

    Models that see a whole section get all rows at once.
    """
    step = len(on) if model.context == "section" else HEAD_ROWS
    with torch.autocast(query.device.type, enabled=False):
        for k in range(0, len(on), step):
            some = on[k : k + step]
            latent = torch.from_numpy(rows[some]).to(query.device)
            values[some] = model.link(model.head(latent, query)).float().cpu().numpy()
            if spread is not None and isinstance(model, Ensemble):
                spread[some] = model.spread(latent, query).float().cpu().numpy()
    wrong = np.flatnonzero(~np.isfinite(values[on]).all(axis=0))
    if len(wrong):
        raise ValueError(
            f"{type(model).__name__}{f' in {model.loaded_from}' if model.loaded_from else ''} predicts values that are "
            f"NaN or infinite for {len(wrong)} of {values.shape[1]} genes. Its weights are damaged, or training "
            "diverged; train it again, with a lower lr."
        )
