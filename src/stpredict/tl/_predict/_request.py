"""The arguments of `tl.predict` as one typed request, checked and resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stpredict import _spatialdata
from stpredict._embeddings import GeneEmbeddings, closest

if TYPE_CHECKING:
    from stpredict._inference import Runtime
    from stpredict.models import Model

OutputName = Literal["layer", "raster", "both", "latent"]
RasterDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Output:
    """Which results are written: values inside shapes (a layer), and a raster, of the genes or of the latent."""

    name: OutputName
    layer: bool
    raster: bool
    latent: bool

    @classmethod
    def parse(cls, name: OutputName) -> Output:
        """From the value of the argument `output`."""
        return OUTPUTS[name]


OUTPUTS: dict[OutputName, Output] = {
    "layer": Output("layer", layer=True, raster=False, latent=False),
    "raster": Output("raster", layer=False, raster=True, latent=False),
    "both": Output("both", layer=True, raster=True, latent=False),
    "latent": Output("latent", layer=False, raster=True, latent=True),
}


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
