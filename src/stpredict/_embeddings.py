"""Vectors of genes, made from their texts by a language model, and the one file that keeps them."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stpredict._messages import warn
from stpredict._schema import Range, check_fields, fits, parse_json, shown

FORMAT = "stpredict-gene-embeddings/1"
_CARD, _VECTORS, _HASH = "card", "vectors", "sha256"
_LIMITS: dict[str, Range] = dict.fromkeys(("n_symbol_only", "n_truncated", "max_tokens"), (0, 10**9))
_MADE_BY = ("encoder", "revision", "pooling", "max_tokens")  # what two sets must share to be of one space


@dataclass(frozen=True, eq=False, repr=False)
class GeneEmbeddings:
    """One vector a gene, and how the vectors were made.

    Parameters
    ----------
    genes : tuple[str, ...]
        Names, each once.
    vectors : ndarray of float32
        (m, w) float32, finite; row i belongs to genes[i].
    encoder : str
        Which text model: its hub id, or the name of its local folder.
    revision : str, optional
        Commit of a hub id; of a local folder a hash of its weights.
    pooling : str, default "mean"
        How the tokens of a text became one vector: "mean" or "first".
    text_sha256 : str, default ""
        Hash of genes and texts, so that other definitions are other embeddings.
    n_symbol_only : int, default 0
        How many genes had no definition, so that their symbol was embedded.
    n_truncated : int, default 0
        How many texts were longer than the limit of tokens.
    max_tokens : int, optional
        The limit of tokens that was asked; None: the encoder's own.

    Raises
    ------
    ValueError
        For genes that are no list of names or occur twice, another number of vectors than genes, values that are not
        finite, and another field of a wrong type.

    Examples
    --------
    >>> vectors = np.eye(2, dtype=np.float32)
    >>> made = stp.tl.GeneEmbeddings(genes=("GNAS", "SCD"), vectors=vectors, encoder="one-hot")
    >>> made.vectors.shape
    (2, 2)
    """

    genes: tuple[str, ...]
    vectors: NDArray[np.float32]
    encoder: str
    revision: str | None = None
    pooling: str = "mean"
    text_sha256: str = ""
    n_symbol_only: int = 0
    n_truncated: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not fits(self.genes, Sequence[str]) or any(gene == "" for gene in self.genes):
            raise ValueError(f"genes={shown(self.genes)} must be a list of names, in the order of the vectors.")
        facts = {name: value for name, value in vars(self).items() if name not in ("genes", _VECTORS)}
        check_fields(facts, GeneEmbeddings, _LIMITS)
        if len(self.genes) == 0:
            raise ValueError("embeddings of no genes: there must be at least one.")
        genes, vectors = tuple(map(str, self.genes)), np.ascontiguousarray(self.vectors, dtype=np.float32)
        duplicates = [gene for gene, n in Counter(genes).items() if n > 1]
        if duplicates:
            raise ValueError(
                f"genes occur more than once: {duplicates[:5]} ({len(duplicates)} in all). "
                "Keep one vector for each gene."
            )
        if vectors.ndim != 2 or len(vectors) != len(genes) or vectors.shape[1] == 0:
            raise ValueError(
                f"vectors must be (genes, width) with one row for each of {len(genes)} genes, got shape "
                f"{vectors.shape}."
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise ValueError(f"vectors of {len(bad)} genes are not finite, such as {[genes[i] for i in bad[:5]]}.")
        object.__setattr__(self, "genes", genes)
        object.__setattr__(self, "vectors", vectors)

    def __repr__(self) -> str:
        made = ", ".join(f"{name}={getattr(self, name)!r}" for name in _MADE_BY[:3])
        return f"GeneEmbeddings({len(self.genes)} genes x {self.width}, {made})"

    @property
    def width(self) -> int:
        """Length w of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {gene: row for row, gene in enumerate(self.genes)}

    def take(self, genes: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of these genes, in this order.

        Parameters
        ----------
        genes : Sequence[str]
            Names.

        Returns
        -------
        ndarray of float32
            (g, w) vectors.

        Raises
        ------
        ValueError
            Where genes have none; it names them, the closest names that do, and how to get them.
        """
        genes = [genes] if isinstance(genes, str) else list(genes)
        missing = [gene for gene in genes if gene not in self._rows]
        if missing:
            raise ValueError(
                f"genes without an embedding: {missing[:5]} ({len(missing)} of {len(genes)}); there are "
                f"{len(self.genes)} from {self.encoder!r}.{closest(missing, self.genes)} Describe them with "
                "stp.pp.describe_genes(genes, source=...) (source: a table of definitions, 'ncbi', a text generator, "
                f"or 'symbol'), then stp.tl.embed_genes(texts, encoder=...) with the encoder {self.encoder!r}."
            )
        return self.vectors[[self._rows[gene] for gene in genes]]

    def join(self, other: GeneEmbeddings) -> GeneEmbeddings:
        """The genes of both: these first, then those that only the other has.

        The counts `n_symbol_only` and `n_truncated` are the sums of both, so that a gene of both counts twice;
        `text_sha256` is the hash of both hashes.

        Parameters
        ----------
        other : GeneEmbeddings
            Vectors of the same encoder, made in the same way.

        Returns
        -------
        GeneEmbeddings
            The union.

        Raises
        ------
        ValueError
            Where encoder, revision, pooling, limit of tokens or width differ, and where a gene of both has two vectors
            (largest difference above 1e-5 of the largest value).
        """
        differs = {f: (getattr(self, f), getattr(other, f)) for f in (*_MADE_BY, "width")}
        differs = {f: pair for f, pair in differs.items() if pair[0] != pair[1]}
        if differs:
            message = "; ".join(f"{f} {a!r} and {b!r}" for f, (a, b) in differs.items())
            raise ValueError(
                f"embeddings that were made in different ways cannot be joined: {message}. Embed all texts with one "
                "encoder: stp.tl.embed_genes(texts, encoder=...)."
            )
        both = [gene for gene in other.genes if gene in self._rows]
        if both:
            mine, theirs = self.take(both), other.take(both)
            unequal = np.abs(mine - theirs).max(axis=1) > 1e-5 * np.abs(mine).max()
            if unequal.any():
                named = [gene for gene, is_so in zip(both, unequal, strict=True) if is_so]
                raise ValueError(
                    f"{len(named)} genes have two vectors, such as {named[:5]}: their texts differ. Embed each gene "
                    "from one text, or join only the genes that are new."
                )
        new = [gene for gene in other.genes if gene not in self._rows]
        if not new:
            return self
        return GeneEmbeddings(
            genes=self.genes + tuple(new),
            vectors=np.concatenate([self.vectors, other.take(new)]),
            encoder=self.encoder,
            revision=self.revision,
            pooling=self.pooling,
            text_sha256=hashlib.sha256(f"{self.text_sha256} {other.text_sha256}".encode()).hexdigest(),
            n_symbol_only=self.n_symbol_only + other.n_symbol_only,
            n_truncated=self.n_truncated + other.n_truncated,
            max_tokens=self.max_tokens,
        )

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file; whole or not at all, and in place of a file of that name.

        The tensor "vectors" is (m, w) float32; the header's metadata has "format", "card" (all other fields as JSON)
        and "sha256" (a hash of both).

        Parameters
        ----------
        path : str | Path
            The file.
        """
        path = Path(path)
        card = json.dumps({f.name: getattr(self, f.name) for f in fields(self) if f.name != _VECTORS})
        metadata = {"format": FORMAT, _CARD: card, _HASH: _hash(card, self.vectors)}
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file({_VECTORS: self.vectors}, scratch, metadata=metadata)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> GeneEmbeddings:
        """Read what `save` wrote.

        Warns of a file of an older version, which has no hash.

        Parameters
        ----------
        path : str | Path
            The file.

        Returns
        -------
        GeneEmbeddings
            The vectors, and how they were made.

        Raises
        ------
        FileNotFoundError
            Where there is no file.
        ValueError
            Where it is damaged, changed or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path}. stp.tl.embed_genes(texts, encoder=..., path=...) writes gene embeddings."
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                whole = _VECTORS in file.keys() and file.get_slice(_VECTORS).get_dtype() == "F32"
                vectors = file.get_tensor(_VECTORS) if whole else None
        except (SafetensorError, OverflowError, TypeError) as error:
            raise ValueError(
                f"{path} is no .safetensors file, or a damaged one ({error}). Write it again with stp.tl.embed_genes."
            ) from error
        if metadata.get("format") != FORMAT or vectors is None:
            raise ValueError(
                f"{path} holds no gene embeddings: its format is {metadata.get('format')!r}, expected {FORMAT!r} with "
                f"a tensor {_VECTORS!r}. stp.tl.embed_genes(texts, encoder=..., path=...) writes them."
            )
        text = metadata.get(_CARD, "")
        if metadata.get(_HASH, found := _hash(text, vectors)) != found:
            raise ValueError(
                f"{path} was changed or damaged: its vectors and card have not the sha256 that it names. Copy it "
                "again, or write it again with stp.tl.embed_genes."
            )
        card = _read_card(text, path)
        try:
            made = cls(vectors=vectors, **card)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if _HASH not in metadata:
            warn(
                f"{path} is of an older version and has no hash, so that damage would not be seen. Save it again: "
                "stp.tl.GeneEmbeddings.load(path).save(path).",
            )
        return made


def _read_card(text: str, path: Path) -> dict[str, Any]:
    """The fields beside the vectors; ValueError where they are not those of GeneEmbeddings."""
    card = parse_json(text, f"{path}: the card")
    known = {f.name for f in fields(GeneEmbeddings)} - {_VECTORS}
    found = set(card) if isinstance(card, dict) else set()
    missing, unknown = sorted({"genes", "encoder"} - found), sorted(found - known)
    if missing or unknown:
        raise ValueError(f"{path}: the card lacks {missing} and has unknown fields {shown(unknown)}.")
    try:
        check_fields(card, GeneEmbeddings, _LIMITS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return card | {"genes": tuple(card["genes"])}


def _hash(card: str, vectors: NDArray[np.float32]) -> str:
    """sha256 of a card's text and of the vectors, their shape included."""
    digest = hashlib.sha256(f"{card} {vectors.shape}".encode())
    digest.update(np.ascontiguousarray(vectors, dtype="<f4").data)
    return digest.hexdigest()


def closest(missing: Sequence[str], known: Sequence[str]) -> str:
    """A sentence that names for each of the first missing genes the most similar known one; "" where none is."""
    upper = {gene.upper(): gene for gene in known}
    close = {}
    for gene in missing[:5]:
        found = difflib.get_close_matches(gene.upper(), upper, n=1, cutoff=0.8)
        if found:
            close[gene] = upper[found[0]]
    return " Closest names: " + ", ".join(f"{a} -> {b}" for a, b in close.items()) + "." if close else ""
