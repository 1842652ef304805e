"""The arguments of `tl.predict` as one typed request, checked and resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from stpredict import _inference, _spatialdata
from stpredict._embeddings import GeneEmbeddings, closest
from stpredict._link import TOTAL

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpredict._inference import Runtime
    from stpredict._section import Section
    from stpredict.models import Model

OutputName = Literal["layer", "raster", "both", "latent"]
RasterDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Output:
    """Which results are written: values inside shapes, and a raster, of the genes or of the latent."""

    name: OutputName
    layer: bool
    raster: bool
    latent: bool

    @classmethod
    def parse(cls, name: OutputName) -> Self:
        """From the value of the argument `output`."""
        return cls(name, layer=name in ("layer", "both"), raster=name != "layer", latent=name == "latent")


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The arguments of `tl.predict` that hold for every object.

    Parameters
    ----------
    genes
        Names to predict, in this order.
    key
        Name of the layer and of the image that are added.
    spec
        Image, shapes, mpp and tissue. The table has a name of its own, which may be None.
    table_name, table_added
        An existing table that gets a layer, or the name of a new one.
    raster_mpp
        Micrometres per raster pixel; None: the model's own step.
    dtype
        Of the raster.
    """

    model: Model
    genes: list[str]
    key: str
    output: Output
    spec: _spatialdata.SectionSpec
    table_name: str | None
    table_added: str | None
    raster_mpp: float | None
    dtype: RasterDtype
    overwrite: bool
    resume: bool
    runtime: Runtime

    @property
    def inferred_genes(self) -> list[str]:
        """The genes that inference computes: none where only the latent is written."""
        return [] if self.output.latent else self.genes

    @property
    def raster_channels(self) -> list[str]:
        """Names of the channels of the raster: the genes, or the columns of the latent."""
        if self.output.latent:
            return [f"latent{i}" for i in range(self.model.query(self.genes[:1]).shape[1])]
        return raster_channels(self.model, self.genes)

    def section(self, sdata: SpatialData, shapes_key: str | None) -> Section:
        """The section that is predicted; without shapes, its image alone."""
        if shapes_key is None:
            return _spatialdata.image_section(sdata, self.spec, at_mpp=self.model.mpp)
        return _spatialdata.section(sdata, replace(self.spec, shapes_key=shapes_key), at_mpp=self.model.mpp)

    def raster_factor(self) -> int:
        """How many of the model's cells a pixel of the raster is wide.

        Raises
        ------
        ValueError
            For a model without a raster, and where `raster_mpp` is no multiple of its step that divides its tiles.
        """
        model = self.model
        if model.output != "raster":
            raise ValueError(f"{type(model).__name__} predicts shapes one by one and has no map; use output='layer'.")
        cells, step = round(_inference.tiling_of(model).core_px / model.stride), model.stride * model.mpp
        factor = 1 if self.raster_mpp is None else self.raster_mpp / step
        allowed = [k for k in range(1, cells + 1) if cells % k == 0]
        close = min(allowed, key=lambda k: abs(k - factor))
        if abs(close - factor) > 1e-6 * close:
            raise ValueError(
                f"raster_mpp={self.raster_mpp} is no step of this model: it maps at {step:g} um, and coarser by a "
                f"factor of {allowed[1:8]} ... . Use raster_mpp={close * step:g}."
            )
        return close


def raster_channels(model: Model, genes: Sequence[str]) -> list[str]:
    """What a raster of these genes is made of: a map of rates ends with that of all RNA."""
    channels = model.channels(genes)
    return [*channels, TOTAL] if getattr(model.config, "link", "identity") == "log1p" else channels


def add_embeddings(model: Model, embeddings: GeneEmbeddings | str | Path | None) -> None:
    """Give a text-queried model the embeddings of further genes, or those of a file; None: nothing.

    Raises ValueError as the model's own method does, FileNotFoundError for a file that is not there.
    """
    if embeddings is not None:
        model.add_embeddings(
            embeddings if isinstance(embeddings, GeneEmbeddings) else GeneEmbeddings.load(Path(embeddings))
        )


def resolve_genes(model: Model, genes: str | Sequence[str] | None) -> list[str]:
    """The requested genes as a list; None: the model's panel.

    Raises ValueError for genes the model cannot answer for, for none, and for one that is named twice.
    """
    if genes is None:
        return list(model.genes)
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    name = type(model).__name__
    unknown = sorted(set(wanted) - set(model.vocabulary))
    close = closest(unknown, model.vocabulary)
    if unknown and model.is_text_queried:
        try:
            model.query(unknown)  # raises, and says how to give them a text
        except ValueError as error:
            raise ValueError(f"{error}{close}") from error
    if unknown:
        raise ValueError(
            f"genes not in the panel of this {name}: {unknown[:5]} ({len(unknown)} of {len(wanted)}).{close} It "
            f"predicts {len(model.genes)} genes, such as {list(model.genes[:5])}; see model.genes."
        )
    if not wanted or len(set(wanted)) < len(wanted):
        duplicates = sorted({gene for gene in wanted if wanted.count(gene) > 1})
        raise ValueError(
            f"genes= must name at least one gene and none twice, got {wanted[:5]} ({len(wanted)}); "
            f"duplicates: {duplicates[:5]}."
        )
    return wanted
