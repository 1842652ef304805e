"""Vocabulary of text-queried models: gene embeddings, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stpredict._embeddings import GeneEmbeddings

SPEC = ("encoder", "revision", "pooling")  # embeddings that differ in one of these are of different spaces


def as_embeddings(given: GeneEmbeddings | str | Path | None) -> GeneEmbeddings | None:
    """Embeddings as they are, or those of a file."""
    return GeneEmbeddings.load(Path(given)) if isinstance(given, str | Path) else given


def text_spec(embeddings: GeneEmbeddings) -> dict[str, Any]:
    """What a model's config keeps of embeddings: enough to refuse those of another encoder."""
    return {key: getattr(embeddings, key) for key in SPEC} | {
        "width": embeddings.width,
        "text_sha256": embeddings.text_sha256,
        "n_symbol_only": embeddings.n_symbol_only,
    }


class Vocabulary(nn.Module):
    """The genes that a text-queried model can answer for, with their embeddings.

    Embeddings are centred and scaled to unit variance on the training panel (`fit`).

    Parameters
    ----------
    genes, spec
        Names of the rows that are saved with the model, and `text_spec` of their embeddings.
    embeddings : GeneEmbeddings | None
        None where the rows will be loaded.
    """

    vectors: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, genes: Sequence[str], spec: Mapping[str, Any], embeddings: GeneEmbeddings | None) -> None:
        super().__init__()
        self.genes, self.spec = tuple(genes), dict(spec)
        width = int(spec["width"])
        rows = None if embeddings is None else torch.from_numpy(embeddings.take(genes).copy())
        self.register_buffer("vectors", torch.zeros(len(genes), width) if rows is None else rows)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self._row = {gene: i for i, gene in enumerate(self.genes)}
        self._further: dict[str, Tensor] = {}

    @property
    def known(self) -> tuple[str, ...]:
        """All genes that have an embedding: the saved ones, then those of `add_embeddings`."""
        return (*self.genes, *self._further)

    def fit(self, panel: Sequence[str]) -> None:
        """Centre and scale by the embeddings of the training panel."""
        rows = self.vectors[[self._row[gene] for gene in panel]]
        self.centre = rows.mean(0)
        self.scale = (rows - self.centre).square().mean().sqrt().clamp_min(1e-6)

    def add_embeddings(self, embeddings: GeneEmbeddings) -> None:
        """Take in further genes; they are not saved with the model.

        Raises
        ------
        ValueError
            For embeddings of another encoder, revision, pooling or width, and for a gene that is known with another
            embedding.
        """
        wanted = {key: self.spec[key] for key in (*SPEC, "width")}
        found = {key: getattr(embeddings, key) for key in (*SPEC, "width")}
        if found != wanted:
            wrong = {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}
            raise ValueError(
                "these embeddings are of another space than the model's: "
                + ", ".join(f"{key} {got!r} in place of {want!r}" for key, (got, want) in wrong.items())
                + ". Embed the texts again with stp.tl.embed_genes and the model's own encoder."
            )
        new: dict[str, Tensor] = {}
        for gene, vector in zip(embeddings.genes, torch.from_numpy(embeddings.vectors), strict=True):
            known = self.vectors[self._row[gene]] if gene in self._row else self._further.get(gene)
            if known is None:
                new[gene] = vector.clone()
            elif not torch.allclose(known.cpu(), vector, atol=1e-4):
                raise ValueError(
                    f"gene {gene!r} is known to the model with another embedding. Leave it out, or give the model a "
                    "new vocabulary and train it again."
                )
        self._further |= new

    def rows(self, genes: Sequence[str]) -> Float[Tensor, "g w"]:
        """Centred and scaled embeddings, in the order of `genes`.

        Raises
        ------
        ValueError
            For genes without an embedding, and the ways to get one.
        """
        missing = [gene for gene in genes if gene not in self._row and gene not in self._further]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(genes)} genes have neither text nor embedding in this model: {missing[:5]}. "
                "Describe them with stp.pp.describe_genes (source: a table, 'ncbi', 'symbol' or a text generator), "
                f"embed the texts with stp.tl.embed_genes and the model's own encoder ({self.spec['encoder']!r}, "
                f"revision {self.spec['revision']!r}), and pass the result as embeddings=."
            )
        rows = [
            self.vectors[self._row[gene]] if gene in self._row else self._further[gene].to(self.vectors)
            for gene in genes
        ]
        return (torch.stack(rows) - self.centre) / self.scale
