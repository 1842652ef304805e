"""A prediction into one object: what is read and written, checks before the work, inference, and one commit."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from stpredict import _inference, _spatialdata
from stpredict._messages import warn
from stpredict._record import differences
from stpredict._section import Section, fingerprint, image_digest
from stpredict.models import Ensemble
from stpredict.tl._domain import domain_percentiles
from stpredict.tl._predict._destination import RasterDestination, RasterWriter, TableDestination, find_table
from stpredict.tl._predict._provenance import provenance, run_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._section import Fingerprint
    from stpredict.tl._predict._request import PredictRequest

logger = logging.getLogger("stpredict")
SMALL_SHARE = 0.05  # of the shapes may be smaller than a cell without a warning: scraps of a segmentation
SIZE_RTOL = 1e-3  # a bin of the cell's own size is not smaller


class Resolved(NamedTuple):
    """A request for one object, its image and shapes named: the section to predict, and where table and raster go."""

    sdata: SpatialData
    request: PredictRequest
    section: Section
    table: TableDestination | None
    raster: RasterDestination | None


def resolve(request: PredictRequest, names: _spatialdata.NewNames) -> Resolved:
    """Decide, for one object, what is read and where results go.

    Registers all names that are added, and checks all that can be checked before the work; raises as
    `TableDestination`, `RasterDestination` and `section_of` do.
    """
    sdata, spec = names.sdata, request.spec
    raster = find_raster(request, sdata)
    if raster is not None:
        raster.reserve(names)
    table = table_of(request, sdata)
    if table is not None:
        table = table.reserve(names, request.genes, spread=isinstance(request.model, Ensemble))
        spec = replace(spec, shapes_key=table.shapes_key)
    names.check()
    image_key = _spatialdata.resolve_image(sdata, spec.image_key, shapes_key=spec.shapes_key)
    request = replace(request, spec=replace(spec, image_key=image_key))
    section = section_of(request, sdata, None if table is None else table.shapes_key)
    return Resolved(sdata, request, section, table, find_raster(request, sdata))


def table_of(request: PredictRequest, sdata: SpatialData) -> TableDestination | None:
    """Where the values of a request go, as `find_table` says."""
    return find_table(
        request.output, sdata, request.key, shapes_key=request.spec.shapes_key, table_name=request.table_name,
        table_added=request.table_added, tissue_key=request.spec.tissue_key,
    )  # fmt: skip


def find_raster(request: PredictRequest, sdata: SpatialData) -> RasterDestination | None:
    """Where the map of a request goes; None where only values inside shapes are written."""
    return RasterDestination(sdata, request) if request.output.raster else None


def section_of(request: PredictRequest, sdata: SpatialData, shapes_key: str | None) -> Section:
    """The section that is predicted; without shapes, its image alone."""
    if shapes_key is None:
        return _spatialdata.image_section(sdata, request.spec, at_mpp=request.model.mpp)
    return _spatialdata.section(sdata, replace(request.spec, shapes_key=shapes_key), at_mpp=request.model.mpp)


def has_finished_result(sdata: SpatialData, request: PredictRequest) -> bool:
    """Whether an earlier call wrote all of this into a store, so that `resume` can skip it; that is logged.

    Raises ValueError for a result of that name that was made of something else, unless it may be overwritten.
    """
    if sdata.path is None:
        return False
    _spatialdata.recover(sdata.path)
    if _spatialdata.checkpoint_folder(sdata.path, request.key).is_dir():
        return False
    table = table_of(request, sdata)
    destinations = [each for each in (find_raster(request, sdata), table) if each is not None]
    present = [(each, record) for each in destinations if (record := each.stored_record()) is not None]
    if not present:
        return False
    wanted = provenance(request, fingerprint(section_of(request, sdata, None if table is None else table.shapes_key)))
    other = {what for each, record in present for what in differences(record, each.record(wanted), each.kind)}
    if other and not request.overwrite:
        raise ValueError(
            f"{sdata.path} has a result called {request.key!r} already, which differs from this call in: "
            f"{'; '.join(sorted(other))}. Pass another key_added, or overwrite=True to replace it."
        )
    finished = not other and len(present) == len(destinations)
    if finished:
        logger.info("%s has %r of this model already", sdata.path, request.key)
    return finished


class PredictionJob:
    """The prediction for one object, a context manager.

    Entering checks everything that can be checked before the work. An object in a store keeps the partial sums of
    finished chunks in a folder next to it (`_spatialdata.Checkpoint`).
    """

    # set on entering
    table: TableDestination | None  # None: only a raster is written
    section: Section
    domain: NDArray[np.float64] | None  # (n,) percentile among left-out training shapes
    fingerprint: Fingerprint
    record: dict[str, Any]
    checkpoint: _spatialdata.Checkpoint | None  # None: the object is in memory
    writer: RasterWriter | None  # None: only a layer is written

    def __init__(self, sdata: SpatialData, request: PredictRequest) -> None:
        self.sdata, self.request = sdata, request
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            names = _spatialdata.NewNames(self.sdata, overwrite=self.request.overwrite)
            resolved = resolve(self.request, names)
            _, request, self.section, self.table, raster = resolved
            self.request = request  # for workers too
            self.domain = domain_percentiles(resolved)
            _warn_of_small(self.section, request, self.sdata.path)
            self._image = image_digest(self.section.image)
            self.fingerprint = fingerprint(self.section, self._image)
            self.record = provenance(request, self.fingerprint)
            self.checkpoint = self._checkpoint(stack, names.store)
            folder = None if self.checkpoint is None else self.checkpoint.work
            self.writer = None if raster is None else raster.open(names.store, self.section, stack, folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def parts(self) -> _spatialdata.PartialFiles | None:
        """Where the partial sums of finished chunks are kept; None for an object in memory."""
        return None if self.checkpoint is None else self.checkpoint.parts

    def commit(self, prediction: _inference.Prediction) -> None:
        """Write the result, in one step."""
        request, (values, share, spread) = self.request, prediction
        self._check_unchanged()
        changes: list[_spatialdata.Change] = []
        if self.table is not None:
            _warn_of_empty(values, self.section, request, self.sdata.path)
            changes.append(
                self.table.change(
                    values, share, self.record, card=request.model.card, spread=spread, domain=self.domain
                )
            )
        if self.writer is not None:
            changes.append(self.writer.change(self.record))
        if self.checkpoint is not None:
            self.checkpoint.check()
        folder = None if self.checkpoint is None else self.checkpoint.folder
        _spatialdata.commit(self.sdata, changes, overwrite=request.overwrite, checkpoint=folder)
        self._stack.close()
        logger.info("wrote %s", ", ".join(place for change in changes for place in change.records({})))

    def _check_unchanged(self) -> None:
        """Raise where another process has replaced the image during the prediction, as far as a sample of it shows."""
        if self.sdata.path is not None and image_digest(self.section.image) != self._image:
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


def _warn_of_small(section: Section, request: PredictRequest, path: Path | None) -> None:
    """One warning, where shapes are smaller than a cell of the map that they are read out of."""
    cell, side = request.model.cell_um, np.sqrt(section.area) * section.mpp
    small = np.zeros(0, bool) if cell is None else side < cell * (1 - SIZE_RTOL)
    if small.any() and small.mean() > SMALL_SHARE:
        warn(
            f"{f'{path}: ' if path else ''}{small.sum()} of {section.n_shapes} shapes are smaller than a cell of this "
            f"{type(request.model).__name__}'s map: they are {np.median(side[small]):.3g} um wide in the median, the "
            f"cell {cell:g} um. Several of them read the same cell, so that they differ less than the tissue does. "
            f"Predict shapes of {cell:g} um and more, or a model with a smaller cell_um (trained with a smaller mpp=).",
        )


def _warn_of_empty(values: np.ndarray, section: Section, request: PredictRequest, path: Path | None) -> None:
    """One warning, where shapes have no prediction."""
    n_empty = int(np.isnan(values[:, 0]).sum())
    if n_empty:
        warn(
            f"{f'{path}: ' if path else ''}{n_empty} of {section.n_shapes} shapes have nothing on the image"
            + (" and tissue" if request.spec.tissue_key else "")
            + ", so their predictions are NaN. Drop them before scanpy or squidpy: "
            f"t = t[t.obs['{request.key}_coverage'] > 0].",
        )
