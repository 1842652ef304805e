"""One prediction into one object: checked, worked on piece by piece, and written whole."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from stpredict import _infer, _sdata
from stpredict._pieces import Part
from stpredict._section import Section, fingerprint, image_digest
from stpredict.tl._kept import hash_of
from stpredict.tl._place import Place, choose_place, table_change
from stpredict.tl._record import record_of, reliability

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict._section import Fingerprint
    from stpredict.models import Model

logger = logging.getLogger("stpredict")
Output = Literal["layer", "raster", "both", "latent"]


@dataclass(frozen=True)
class Asked:
    """What the caller wants of every object; `runtime` is settled."""

    model: Model
    genes: list[str]
    key: str
    output: Output
    image_key: str | None
    shapes_key: str | None
    table_name: str | None
    table_added: str | None
    mpp: float | None
    raster_mpp: float | None
    tissue_key: str | None
    overwrite: bool
    runtime: _infer.Runtime
    resume: bool = False


class Job:
    """The prediction for one object, a context manager.

    Entering checks everything that can be checked before the work. An object in a store keeps the parts of finished
    pieces in a folder beside it (`_sdata.Run`).
    """

    def __init__(self, sdata: SpatialData, asked: Asked) -> None:
        self.sdata, self.asked = sdata, asked
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            asked = self.asked
            self.place = _place(self.sdata, asked)
            self.section = section_of(self.sdata, asked, None if self.place is None else self.place.shapes_key)
            self._image = image_digest(self.section)
            self.fingerprint = fingerprint(self.section, self._image)
            self.record = provenance(asked, self.fingerprint)
            self.run = self._run(stack)
            folder = None if self.run is None else self.run.work
            self.raster = raster_of(self.sdata, self.section, asked, stack, folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def parts(self) -> Any:
        """Where finished pieces are kept; None for an object in memory."""
        return None if self.run is None else self.run.parts(Part)

    def finish(self) -> None:
        """Do what is left of the work, and write the result."""
        asked = self.asked
        values, share = _infer.predict(
            asked.model, self.section, asked.genes, runtime=asked.runtime, raster=self.raster,
            latent=asked.output == "latent", parts=self.parts,
        )  # fmt: skip
        self._check_unchanged()
        changes: list[Any] = []
        if self.place is not None:
            _warn_of_empty(values, self.section, asked, self.sdata.path)
            quality = reliability(asked.model, asked.genes)
            changes.append(table_change(self.sdata, self.place, values, share, asked.genes, quality, self.record))
        if self.raster is not None:
            record = self.record | {"raster_mpp": self.raster.mpp, "latent": asked.output == "latent"}
            del record["shapes_digest"]  # a map is of no shapes
            changes.append(self.raster.target.image(record))
        if self.run is not None:
            self.run.check()
        folder = None if self.run is None else self.run.folder
        _sdata.commit(self.sdata, changes, overwrite=asked.overwrite, run=folder)
        self._stack.close()
        logger.info("wrote %s", ", ".join(type(change).__name__.lower() for change in changes))

    def _check_unchanged(self) -> None:
        """Raise where another process has exchanged the image under the run, as far as a sample of it shows."""
        if self.sdata.path is not None and image_digest(self.section) != self._image:
            raise ValueError(
                f"the image of {self.sdata.path} was changed by another process while it was predicted. Nothing was "
                "written; read the object again, and predict when nothing else writes there."
            )

    def _run(self, stack: ExitStack) -> _sdata.Run | None:
        if self.sdata.path is None:
            if self.asked.resume:
                raise ValueError("resume=True needs an object in a store; write it first, with sdata.write(...).")
            return None
        asked = self.asked
        made_of = {
            **self.record, "batch_size": asked.runtime.batch_size, "compile": asked.runtime.compile,
            "output": asked.output, "raster_mpp": asked.raster_mpp,
        }  # fmt: skip
        return stack.enter_context(_sdata.Run(self.sdata, asked.key, made_of, resume=asked.resume))


def path_of(sdata: SpatialData | str | Path) -> Path | None:
    """The store of an object, or the one that is named; None for an object in memory."""
    path = sdata if isinstance(sdata, str | Path) else sdata.path
    return None if path is None else Path(path)


def provenance(asked: Asked, seen: Fingerprint) -> dict[str, Any]:
    """What a result says of how it was made: model and genes, image and shapes."""
    record = record_of(asked.model, asked.genes, asked.runtime)
    texts = {"texts_digest": texts_digest(asked.model, asked.genes)} if asked.model.answers_text else {}
    config = {"config_digest": config_digest(asked.model)}  # some settings are of the prediction, not of the weights
    return record | texts | config | {"image_digest": seen.image, "shapes_digest": seen.shapes}


def config_digest(model: Model) -> str:
    """A short hash of a model's settings, but those of its training."""
    values = {name: value for name, value in dataclasses.asdict(model.config).items() if name != "recipe"}
    return hash_of(values)


def texts_digest(model: Model, genes: Sequence[str]) -> str:
    """A short hash of what a model knows of genes; "" for one that does not answer by text."""
    return hashlib.sha256(model.text_vectors(genes).tobytes()).hexdigest()[:16] if model.answers_text else ""


def _place(sdata: SpatialData, asked: Asked) -> Place | None:
    """Where a table result goes, checked before any work is done; None where only a raster is asked."""
    if asked.output in ("raster", "latent"):
        _sdata.check_element_key(sdata, asked.key, kind="images", overwrite=asked.overwrite)
        return None
    return choose_place(
        sdata, asked.genes, key=asked.key, shapes_key=asked.shapes_key, table_name=asked.table_name,
        table_added=asked.table_added, tissue_key=asked.tissue_key, overwrite=asked.overwrite,
    )  # fmt: skip


def section_of(sdata: SpatialData, asked: Asked, shapes_key: str | None) -> Section:
    """The section that is predicted; without shapes, its image alone."""
    if shapes_key is None:
        return _sdata.image_section(
            sdata, at_mpp=asked.model.mpp, image_key=asked.image_key, shapes_key=asked.shapes_key, mpp=asked.mpp,
            tissue_key=asked.tissue_key,
        )  # fmt: skip
    return _sdata.section(
        sdata, at_mpp=asked.model.mpp, image_key=asked.image_key, shapes_key=shapes_key, mpp=asked.mpp,
        tissue_key=asked.tissue_key,
    )  # fmt: skip


class Raster:
    """Takes cores from inference, averages them down to the raster's step, and writes them."""

    def __init__(self, target: Any, factor: int, mpp: float) -> None:
        self.target, self.factor, self.mpp = target, factor, mpp

    def __call__(self, y: slice, x: slice, values: np.ndarray) -> None:
        k = self.factor
        if k > 1:
            g, h, w = values.shape
            values = np.pad(values, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
            values = values.reshape(g, -(-h // k), k, -(-w // k), k).mean(axis=(2, 4))
        y0, x0 = y.start // k, x.start // k
        self.target.write(slice(y0, y0 + values.shape[1]), slice(x0, x0 + values.shape[2]), values)


def raster_of(
    sdata: SpatialData, section: Section, asked: Asked, stack: ExitStack, folder: Path | None
) -> Raster | None:
    """Where the map goes, if one is asked for; entered into `stack`."""
    if asked.output == "layer":
        return None
    model = asked.model
    factor = raster_factor(model, asked.raster_mpp)
    step = model.stride * model.mpp
    height, width = _infer.raster_shape(model, section)
    image_key = _sdata.resolve_image(sdata, asked.image_key)
    pixel = step * factor / _sdata.image_mpp(sdata, image_key, asked.shapes_key, asked.mpp)
    n_latent = model.query(asked.genes[:1]).shape[1]
    names = [f"latent{i}" for i in range(n_latent)] if asked.output == "latent" else asked.genes
    target = _sdata.RasterTarget(
        sdata,
        asked.key,
        genes=names,
        shape=(-(-height // factor), -(-width // factor)),
        transformations=_sdata.raster_transformations(sdata.images[image_key], scale=(pixel, pixel)),
        chunk_px=round(model.config.core_px / model.stride) // factor,
        overwrite=asked.overwrite,
        folder=folder,
    )
    return Raster(stack.enter_context(target), factor, step * factor)


def raster_factor(model: Model, raster_mpp: float | None) -> int:
    """How many of a model's steps a pixel of its raster is wide. Raises ValueError for what is no such number."""
    if model.output != "raster":
        raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no map; use output='layer'.")
    cells, step = round(model.config.core_px / model.stride), model.stride * model.mpp
    factor = 1 if raster_mpp is None else raster_mpp / step
    allowed = [k for k in range(1, cells + 1) if cells % k == 0]
    close = min(allowed, key=lambda k: abs(k - factor))
    if abs(close - factor) > 1e-6 * close:
        raise ValueError(
            f"raster_mpp={raster_mpp} is no step of this model: it maps at {step:g} um, and coarser by a factor of "
            f"{allowed[1:8]} ... . Use raster_mpp={close * step:g}."
        )
    return close


def _warn_of_empty(values: np.ndarray, section: Section, asked: Asked, path: Path | None) -> None:
    empty = int(np.isnan(values[:, 0]).sum())
    if empty:
        warnings.warn(
            f"{f'{path}: ' if path else ''}{empty} of {section.n_shapes} shapes have nothing on the image"
            + (" and tissue" if asked.tissue_key else "")
            + ", so their predictions are NaN. Drop them before scanpy or squidpy: "
            f"t = t[t.obs['{asked.key}_coverage'] > 0].",
            stacklevel=4,
        )
