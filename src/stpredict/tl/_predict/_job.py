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

from stpredict import _inference, _spatialdata
from stpredict._section import Section, fingerprint, image_digest
from stpredict.tl._predict._destination import Destination, resolve_destination, table_change
from stpredict.tl._predict._provenance import gene_reliability, provenance

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict._partial import PartialFiles
    from stpredict.tl._predict._request import PredictRequest

logger = logging.getLogger("stpredict")


class PredictionJob:
    """The prediction for one object, a context manager.

    Entering checks everything that can be checked before the work. An object in a store keeps the partial sums of
    finished chunks in a folder next to it (`_spatialdata.Checkpoint`).
    """

    def __init__(self, sdata: SpatialData, request: PredictRequest) -> None:
        self.sdata, self.request = sdata, request
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            request = self.request
            names = _spatialdata.NewNames(self.sdata, overwrite=request.overwrite)
            self.destination = _destination(names, request)
            names.check()
            self.section = request.section(
                self.sdata, None if self.destination is None else self.destination.shapes_key
            )
            self._image = image_digest(self.section)
            self.fingerprint = fingerprint(self.section, self._image)
            self.record = provenance(request, self.fingerprint)
            self.checkpoint = self._checkpoint(stack, names.store)
            folder = None if self.checkpoint is None else self.checkpoint.work
            shapes_key = request.spec.shapes_key if self.destination is None else self.destination.shapes_key
            own = replace(request, spec=replace(request.spec, shapes_key=shapes_key))
            self.raster = open_raster_writer(self.sdata, names.store, self.section, own, stack, folder)
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
        values, share = _inference.predict(
            request.model, self.section, request.inferred_genes, runtime=request.runtime, raster=self.raster,
            parts=self.parts,
        )  # fmt: skip
        self._check_unchanged()
        changes: list[Any] = []
        if self.destination is not None:
            _warn_of_empty(values, self.section, request, self.sdata.path)
            quality = gene_reliability(request.model, request.genes)
            changes.append(
                table_change(self.sdata, self.destination, values, share, request.genes, quality, self.record)
            )
        if self.raster is not None:
            record = self.record | {"raster_mpp": self.raster.mpp, "latent": request.output.raster == "latent"}
            del record["shapes_digest"]  # a map is of no shapes
            changes.append(self.raster.target.image(record))
        if self.checkpoint is not None:
            self.checkpoint.check()
        folder = None if self.checkpoint is None else self.checkpoint.folder
        _spatialdata.commit(self.sdata, changes, overwrite=request.overwrite, run=folder)
        self._stack.close()
        logger.info("wrote %s", ", ".join(place for change in changes for place in change.records({})))

    def _check_unchanged(self) -> None:
        """Raise where another process has exchanged the image under the run, as far as a sample of it shows."""
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
        inputs = {
            **self.record, "batch_size": request.runtime.batch_size, "compile": request.runtime.compile,
            "output": request.output.name, "raster_mpp": request.raster_mpp,
        }  # fmt: skip
        return stack.enter_context(_spatialdata.Checkpoint(store, request.key, inputs, resume=request.resume))


def path_of(sdata: SpatialData | str | Path) -> Path | None:
    """The store of an object, or the one that is named; None for an object in memory."""
    path = sdata if isinstance(sdata, str | Path) else sdata.path
    return None if path is None else Path(path)


def _destination(names: _spatialdata.NewNames, request: PredictRequest) -> Destination | None:
    """Where a table result goes, None where only a raster is requested; registers the names of both."""
    if request.output.raster is not None:
        names.element("images", request.key)
    if not request.output.layer:
        return None
    return resolve_destination(
        names, request.genes, key=request.key, shapes_key=request.spec.shapes_key, table_name=request.table_name,
        table_added=request.table_added, tissue_key=request.spec.tissue_key,
    )  # fmt: skip


class RasterWriter:
    """Downsamples the cores that inference hands on to the raster's step, and writes them."""

    def __init__(self, target: _spatialdata.RasterTarget, factor: int, mpp: float) -> None:
        self.target, self.factor, self.mpp = target, factor, mpp

    def __call__(self, y: slice, x: slice, values: np.ndarray) -> None:
        k = self.factor
        if k > 1:
            g, h, w = values.shape
            values = np.pad(values, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
            values = values.reshape(g, -(-h // k), k, -(-w // k), k).mean(axis=(2, 4))
        y0, x0 = y.start // k, x.start // k
        self.target.write(slice(y0, y0 + values.shape[1]), slice(x0, x0 + values.shape[2]), values)


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
    if request.output.raster is None:
        return None
    model, spec, factor = request.model, request.spec, request.raster_factor
    step = model.stride * model.mpp
    height, width = _inference.raster_shape(model, section)
    image_key = _spatialdata.resolve_image(sdata, spec.image_key, shapes_key=spec.shapes_key)
    pixel = step * factor / _spatialdata.image_mpp(sdata, image_key, spec.shapes_key, spec.mpp)
    n_latent = model.query(request.genes[:1]).shape[1]
    target = _spatialdata.RasterTarget(
        store,
        request.key,
        genes=[f"latent{i}" for i in range(n_latent)] if request.output.raster == "latent" else request.genes,
        shape=(-(-height // factor), -(-width // factor)),
        transformations=_spatialdata.raster_transformations(sdata.images[image_key], scale=(pixel, pixel)),
        chunk_px=round(model.config.core_px / model.stride) // factor,
        folder=folder,
    )
    return RasterWriter(stack.enter_context(target), factor, step * factor)


def _warn_of_empty(values: np.ndarray, section: Section, request: PredictRequest, path: Path | None) -> None:
    n_empty = int(np.isnan(values[:, 0]).sum())
    if n_empty:
        warnings.warn(
            f"{f'{path}: ' if path else ''}{n_empty} of {section.n_shapes} shapes have nothing on the image"
            + (" and tissue" if request.spec.tissue_key else "")
            + ", so their predictions are NaN. Drop them before scanpy or squidpy: "
            f"t = t[t.obs['{request.key}_coverage'] > 0].",
            stacklevel=4,
        )
