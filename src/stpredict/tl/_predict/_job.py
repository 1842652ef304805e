"""A prediction into one object: checks before the work, inference, and one commit."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import shapely

from stpredict import _inference, _spatialdata
from stpredict._link import with_total
from stpredict._section import Section, fingerprint, image_digest
from stpredict.models import Ensemble
from stpredict.tl._domain import mismatch, percentiles, sampled
from stpredict.tl._predict._destination import Destination, resolve_destination, table_change
from stpredict.tl._predict._provenance import gene_evidence, gene_reliability, provenance, raster_record, run_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from stpredict._partial import PartialFiles
    from stpredict._section import Fingerprint
    from stpredict.tl._predict._request import PredictRequest

logger = logging.getLogger("stpredict")
SMALL_SHARE = 0.05  # of the shapes may be smaller than a cell without a warning: scraps of a segmentation
SIZE_RTOL = 1e-3  # a bin of the cell's own size is not smaller


class PredictionJob:
    """The prediction for one object, a context manager.

    Entering checks everything that can be checked before the work. An object in a store keeps the partial sums of
    finished chunks in a folder next to it (`_spatialdata.Checkpoint`).
    """

    # set on entering
    destination: Destination | None  # None: only a raster is written
    section: Section
    domain: NDArray[np.float64] | None  # (n,) percentile among left-out training shapes
    fingerprint: Fingerprint
    record: dict[str, Any]
    checkpoint: _spatialdata.Checkpoint | None  # None: the object is in memory
    raster: RasterWriter | None  # None: only a layer is written

    def __init__(self, sdata: SpatialData, request: PredictRequest) -> None:
        self.sdata, self.request = sdata, request
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            request = self.request
            names = _spatialdata.NewNames(self.sdata, overwrite=request.overwrite)
            self.destination = _destination(names, request)
            names.check()
            shapes_key = request.spec.shapes_key if self.destination is None else self.destination.shapes_key
            image_key = _spatialdata.resolve_image(self.sdata, request.spec.image_key, shapes_key=shapes_key)
            spec = replace(request.spec, image_key=image_key, shapes_key=shapes_key)
            self.request = request = replace(request, spec=spec)  # resolved once, for workers too
            self.section = request.section(self.sdata, None if self.destination is None else shapes_key)
            self.domain = self._domain()
            if self.destination is not None:
                _warn_of_small(self.section, request, self.sdata.path)
            self._image = image_digest(self.section)
            self.fingerprint = fingerprint(self.section, self._image)
            self.record = provenance(request, self.fingerprint)
            self.checkpoint = self._checkpoint(stack, names.store)
            folder = None if self.checkpoint is None else self.checkpoint.work
            self.raster = open_raster_writer(self.sdata, names.store, self.section, request, stack, folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def parts(self) -> PartialFiles | None:
        """Where the partial sums of finished chunks are kept; None for an object in memory."""
        return None if self.checkpoint is None else self.checkpoint.parts

    def finish(self) -> None:
        """Do what is left of the work, and write the result."""
        request = self.request
        values, share, spread = _inference.predict_with_spread(
            request.model, self.section, request.inferred_genes, runtime=request.runtime, raster=self.raster,
            parts=self.parts,
        )  # fmt: skip
        self._check_unchanged()
        changes: list[_spatialdata.Change] = []
        if self.destination is not None:
            _warn_of_empty(values, self.section, request, self.sdata.path)
            quality = gene_reliability(request.model, request.genes)
            changes.append(
                table_change(
                    self.sdata,
                    self.destination,
                    values=values,
                    share=share,
                    genes=request.genes,
                    gene_reliability=quality,
                    record=self.record,
                    held_out=gene_evidence(request.model, request.genes),
                    spread=spread,
                    domain=self.domain,
                )
            )
        if self.raster is not None:
            changes.append(self.raster.target.image(raster_record(request, self.record)))
        if self.checkpoint is not None:
            self.checkpoint.check()
        folder = None if self.checkpoint is None else self.checkpoint.folder
        _spatialdata.commit(self.sdata, changes, overwrite=request.overwrite, checkpoint=folder)
        self._stack.close()
        logger.info("wrote %s", ", ".join(place for change in changes for place in change.records({})))

    def _domain(self) -> NDArray[np.float64] | None:
        """Percentile (n,) of each shape among left-out training shapes; None without a layer, or where it is not known.

        Warns of shapes on glass, and of a section or tissue unlike those of the training.
        """
        request, destination, sdata = self.request, self.destination, self.sdata
        assert request.model.card is not None
        on_glass = None
        if request.spec.tissue_key is None:
            measured = None
            if destination is not None and destination.columns is not None:
                measured = _spatialdata.measured_shapes(sdata, destination.table_name, destination.shapes_key)
            on_glass = _spatialdata.warn_of_background(sdata, request.spec, self.section, measured=measured)
        section = sampled(self.section) if destination is None else self.section
        skipped = None if destination is None else on_glass
        percentile, unfamiliar = percentiles(request.model, sdata, request.spec, section, skipped=skipped)
        mismatched = mismatch(request.model.card, sdata)
        if mismatched is not None:
            warnings.warn(f"section {section.name!r} says of itself that it is of {mismatched}.", stacklevel=4)
        if unfamiliar is not None:
            warnings.warn(
                f"section {section.name!r}: {unfamiliar}. Expect less than the model's scores, or nothing; see "
                f"obs['{request.key}_domain'] and docs/trust.md.",
                stacklevel=4,
            )
        return None if destination is None else percentile

    def _check_unchanged(self) -> None:
        """Raise where another process has replaced the image during the prediction, as far as a sample of it shows."""
        if self.sdata.path is not None and image_digest(self.section) != self._image:
            raise ValueError(
                f"the image of {self.sdata.path} was changed by another process while it was predicted. Nothing was "
                "written; read the object again, and predict when nothing else writes there."
            )

    def _checkpoint(self, stack: ExitStack, store: _spatialdata.Store | None) -> _spatialdata.Checkpoint | None:
        request = self.request
        if store is None:
            if request.resume:
                raise ValueError("resume=True needs an object in a store; write it first, with sdata.write(...).")
            return None
        inputs = run_inputs(request, self.record)
        return stack.enter_context(_spatialdata.Checkpoint(store, request.key, inputs, resume=request.resume))


def _destination(names: _spatialdata.NewNames, request: PredictRequest) -> Destination | None:
    """Where a table result goes, None where only a raster is requested; registers the names of both."""
    if request.output.raster:
        request.raster_factor()  # raises for a model without a map, before any work
        names.element("images", request.key)
    if not request.output.layer:
        return None
    return resolve_destination(
        names, request.genes, key=request.key, shapes_key=request.spec.shapes_key, table_name=request.table_name,
        table_added=request.table_added, tissue_key=request.spec.tissue_key,
        spread=isinstance(request.model, Ensemble),
    )  # fmt: skip


class RasterWriter:
    """Downsamples tile cores to the raster's pixel size, cuts them by the tissue, and writes them.

    Parameters
    ----------
    factor
        Cells of the model along a pixel of the raster.
    tissue
        In pixels of the raster: pixels whose centre lies outside are NaN. None: the whole image.
    """

    def __init__(self, target: _spatialdata.RasterTarget, factor: int, tissue: BaseGeometry | None = None) -> None:
        self.target, self.factor, self.tissue = target, factor, tissue
        if tissue is not None:
            shapely.prepare(tissue)

    def __call__(self, y: slice, x: slice, values: np.ndarray) -> None:
        k = self.factor
        if k > 1:
            g, h, w = values.shape
            values = np.pad(values, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
            values = values.reshape(g, -(-h // k), k, -(-w // k), k).mean(axis=(2, 4))
        values = with_total(values, len(self.target.genes))
        y0, x0 = y.start // k, x.start // k
        y, x = slice(y0, y0 + values.shape[1]), slice(x0, x0 + values.shape[2])
        self.target.write(y, x, self._cut(y, x, values))

    def _cut(self, y: slice, x: slice, values: np.ndarray) -> np.ndarray:
        """Values (g, h, w), NaN off the tissue."""
        if self.tissue is None or shapely.contains(self.tissue, shapely.box(x.start, y.start, x.stop, y.stop)):
            return values
        down, right = np.mgrid[y, x] + 0.5
        return np.where(shapely.contains_xy(self.tissue, right, down), values, np.float32(np.nan))


def open_raster_writer(
    sdata: SpatialData,
    store: _spatialdata.Store | None,
    section: Section,
    request: PredictRequest,
    stack: ExitStack,
    folder: Path | None,
) -> RasterWriter | None:
    """The writer of the raster, if one is requested; entered into `stack`.

    Parameters
    ----------
    folder : Path | None
        Where it is built, next to the store; None: in memory, or in a scratch folder.
    """
    if not request.output.raster:
        return None
    model, spec, factor = request.model, request.spec, request.raster_factor()
    step = model.stride * model.mpp
    height, width = _inference.raster_shape(model, section)
    image_key = _spatialdata.resolve_image(sdata, spec.image_key, shapes_key=spec.shapes_key)
    pixel = step * factor / _spatialdata.image_mpp(sdata, image_key, spec.shapes_key, spec.mpp)
    target = _spatialdata.RasterTarget(
        store,
        request.key,
        genes=request.raster_channels,
        shape=(-(-height // factor), -(-width // factor)),
        transformations=_spatialdata.raster_transformations(sdata.images[image_key], scale=(pixel, pixel)),
        dtype=request.dtype,
        chunk_px=round(_inference.tiling_of(model).core_px / model.stride) // factor,
        folder=folder,
    )
    pixels = model.stride * factor
    tissue = None if section.tissue is None else shapely.transform(section.tissue, lambda xy: xy / pixels)
    return RasterWriter(stack.enter_context(target), factor, tissue)


def _warn_of_small(section: Section, request: PredictRequest, path: Path | None) -> None:
    """One warning, where shapes are smaller than a cell of the map that they are read out of."""
    cell, side = request.model.cell_um, np.sqrt(section.area) * section.mpp
    small = np.zeros(0, bool) if cell is None else side < cell * (1 - SIZE_RTOL)
    if small.any() and small.mean() > SMALL_SHARE:
        warnings.warn(
            f"{f'{path}: ' if path else ''}{small.sum()} of {section.n_shapes} shapes are smaller than a cell of this "
            f"{type(request.model).__name__}'s map: they are {np.median(side[small]):.3g} um wide in the median, the "
            f"cell {cell:g} um. Several of them read the same cell, so that they differ less than the tissue does. "
            f"Predict shapes of {cell:g} um and more, or a model with a smaller cell_um (trained with a smaller mpp=).",
            stacklevel=4,
        )


def _warn_of_empty(values: np.ndarray, section: Section, request: PredictRequest, path: Path | None) -> None:
    """One warning, where shapes have no prediction."""
    n_empty = int(np.isnan(values[:, 0]).sum())
    if n_empty:
        warnings.warn(
            f"{f'{path}: ' if path else ''}{n_empty} of {section.n_shapes} shapes have nothing on the image"
            + (" and tissue" if request.spec.tissue_key else "")
            + ", so their predictions are NaN. Drop them before scanpy or squidpy: "
            f"t = t[t.obs['{request.key}_coverage'] > 0].",
            stacklevel=4,
        )
