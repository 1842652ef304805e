"""A prediction into one object: checks before the work, inference, and one commit."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stpredict import _inference, _spatialdata
from stpredict._section import Section, fingerprint, image_digest
from stpredict.tl._domain import domain_percentiles
from stpredict.tl._predict._provenance import provenance, run_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpredict._section import Fingerprint
    from stpredict.tl._predict._destination import RasterWriter, TableDestination
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
            request, self.section, self.table, raster = self.request.resolve(names)
            self.request = request  # for workers too
            self.domain = domain_percentiles(request, self.sdata, self.section, self.table)
            _warn_of_small(self.section, request, self.sdata.path)
            self._image = image_digest(self.section)
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

    def finish(self) -> None:
        """Do what is left of the work, and write the result."""
        request = self.request
        values, share, spread = _inference.predict_with_spread(
            request.model, self.section, request.inferred_genes, runtime=request.runtime, raster=self.writer,
            parts=self.parts,
        )  # fmt: skip
        self._check_unchanged()
        changes: list[_spatialdata.Change] = []
        if self.table is not None:
            _warn_of_empty(values, self.section, request, self.sdata.path)
            changes.append(
                self.table.change(values, share, self.record, model=request.model, spread=spread, domain=self.domain)
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
