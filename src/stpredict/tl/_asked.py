"""Which genes a model is asked for, and what it is told of them first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stpredict._embeddings import GeneEmbeddings, closest

if TYPE_CHECKING:
    from stpredict.models import Model


def tell(model: Model, embeddings: GeneEmbeddings | str | Path | None) -> None:
    """Give a model that answers by text the embeddings of further genes, or those of a file; None: nothing.

    Raises ValueError as `Model.know` does, FileNotFoundError for a file that is not there.
    """
    if embeddings is not None:
        model.know(embeddings if isinstance(embeddings, GeneEmbeddings) else GeneEmbeddings.load(Path(embeddings)))


def asked_genes(model: Model, genes: str | Sequence[str] | None) -> list[str]:
    """The names as a list; None: the model's panel.

    Raises ValueError for genes the model cannot answer for, for none, and for one that is named twice.
    """
    if genes is None:
        return list(model.genes)
    wanted = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    name = type(model).__name__
    unknown = sorted(set(wanted) - set(model.vocabulary))
    close = closest(unknown, model.vocabulary)
    if unknown and model.answers_text:
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
        raise ValueError(f"genes= must name at least one gene and none twice, got {wanted[:5]} ({len(wanted)}).")
    return wanted
