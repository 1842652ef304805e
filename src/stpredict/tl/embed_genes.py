"""Texts of genes through a language model, into vectors that models are asked with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from stpredict._arguments import check_arguments
from stpredict._embeddings import GeneEmbeddings
from stpredict._messages import warn
from stpredict.nn.text import TextEncoder, encoder_identity

logger = logging.getLogger("stpredict")


def embed_genes(
    texts: pd.DataFrame | Mapping[str, str],
    *,
    encoder: str | Path,
    revision: str | None = None,
    pooling: Literal["mean", "first"] = "mean",
    max_tokens: int | None = None,
    batch_size: int = 32,
    path: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> GeneEmbeddings:
    """One vector for each gene from its text; kept in a file, so that prediction needs no text model.

    Parameters
    ----------
    texts : DataFrame | Mapping[str, str]
        What `pp.describe_genes` returns (columns gene and definition), or a dict: gene -> text.
    encoder : str | Path
        Hub id of a text model, such as ``emilyalsentzer/Bio_ClinicalBERT`` or ``medicalai/ClinicalBERT``; or a local
        folder. Needs the extra ``text``.
    revision : str, optional
        Commit, branch or tag of a hub id.
    pooling : {"mean", "first"}, default "mean"
        "mean" over the tokens of a text, or its "first" token (BERT's summary).
    max_tokens : int, optional
        Longer texts are cut there; one warning counts them. None: as many as the encoder can take.
    batch_size : int, default 32
        Texts at once; the vectors do not depend on it.
    path : str | Path, optional
        A .safetensors file. Where it is there and was made of these genes and texts (in any order), in this way, it is
        read and the text model is not run; ``revision=None`` takes the commit that it was made with.
    overwrite : bool, default False
        Replace a file that holds something else; otherwise it raises.
    device : str, default "auto"
        "auto", "cpu", "cuda", ...
    progress : bool, default True
        Show progress bars.

    Returns
    -------
    GeneEmbeddings
        The vectors, each of length 1, in the order of the texts.

    Raises
    ------
    ValueError
        For genes that occur twice, genes without a text, a file with other content or a damaged one.
    FileNotFoundError
        For a folder that is not there.
    ImportError
        Where the text model cannot be had, saying how to give a local path.
    ConnectionError
        Where the text model cannot be had, saying how to give a local path.
    OSError
        Where the text model cannot be had, saying how to give a local path.
    """
    check_arguments(embed_genes, locals())
    definitions, n_symbol_only = _texts(texts)
    text_hash = _hash(definitions)
    target = None if path is None else Path(path)
    if target is not None and not target.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {target.parent}. Make it first.")
    if target is not None and target.exists():
        wanted = {"pooling": pooling, "max_tokens": max_tokens, "text_sha256": text_hash}
        saved = _saved(target, wanted, encoder, revision, overwrite=overwrite)
        if saved is not None:
            return dataclasses.replace(saved, genes=tuple(definitions), vectors=saved.take(list(definitions)))
    model = TextEncoder(encoder, revision=revision, pooling=pooling, max_tokens=max_tokens, device=device)
    vectors, n_truncated = model.encode(list(definitions.values()), batch_size=batch_size, progress=progress)
    if n_truncated:
        warn(
            f"{n_truncated} of {len(definitions)} texts are longer than {model.max_tokens} tokens and were cut there.",
        )
    made = GeneEmbeddings(
        genes=tuple(definitions),
        vectors=vectors,
        encoder=model.name,
        revision=model.revision,
        pooling=pooling,
        text_sha256=text_hash,
        n_symbol_only=n_symbol_only,
        n_truncated=n_truncated,
        max_tokens=max_tokens,
    )
    if target is not None:
        made.save(target)
    return made


def _texts(texts: pd.DataFrame | Mapping[str, str]) -> tuple[dict[str, str], int]:
    """gene -> text in the order given, and how many texts are no more than a symbol."""
    if isinstance(texts, Mapping):
        genes, values, sources = list(texts), list(texts.values()), [""] * len(texts)
    elif isinstance(texts, pd.DataFrame) and {"gene", "definition"} <= set(texts.columns):
        genes, values = texts["gene"].tolist(), texts["definition"].tolist()
        sources = texts["source"].tolist() if "source" in texts else [""] * len(texts)
    else:
        raise ValueError(
            "texts must be a table with the columns gene and definition, or a dict gene -> text, got columns "
            f"{list(texts.columns)}. "
            "stp.pp.describe_genes(genes, source=...) makes one."
        )
    if not genes:
        raise ValueError("there are no texts to embed. stp.pp.describe_genes(genes, source=...) makes them.")
    duplicates = [gene for gene, n in Counter(genes).items() if n > 1]
    if duplicates:
        raise ValueError(
            f"genes occur more than once: {duplicates[:5]} ({len(duplicates)} in all). Keep one text for each gene."
        )
    pairs = list(zip(genes, values, strict=True))
    empty = [gene for gene, text in pairs if not isinstance(text, str) or not text.strip()]
    if empty:
        raise ValueError(
            f"{len(empty)} genes have no text: {empty[:5]}. Leave them out, or take "
            "stp.pp.describe_genes(genes, source=...), which puts the symbol where there is no definition."
        )
    alone = sum(origin == "symbol" or text == gene for (gene, text), origin in zip(pairs, sources, strict=True))
    return {str(gene): text for gene, text in pairs}, alone


def _hash(definitions: Mapping[str, str]) -> str:
    """sha256 of genes and texts, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(definitions.items())).encode()).hexdigest()


def _saved(
    target: Path, wanted: dict[str, Any], encoder: str | Path, revision: str | None, *, overwrite: bool
) -> GeneEmbeddings | None:
    """What the file holds, where that is what is wanted; None where it is to be replaced."""
    name, known = encoder_identity(encoder, revision)
    wanted = {"encoder": name} | wanted
    if revision is not None or Path(encoder).expanduser().is_dir():
        wanted["revision"] = known or revision
    try:
        saved = GeneEmbeddings.load(target)
    except ValueError:
        if overwrite:
            return None
        raise
    differs = {key: (getattr(saved, key), value) for key, value in wanted.items() if getattr(saved, key) != value}
    if not differs:
        logger.info("%s holds these texts; the text model is not run (%r).", target, saved)
        return saved
    if overwrite:
        return None
    message = "; ".join(f"{key} is {known!r}, asked {wanted_value!r}" for key, (known, wanted_value) in differs.items())
    raise ValueError(
        f"path={str(target)!r} holds other embeddings ({len(saved.genes)} genes): {message}. Pass another path, or "
        "overwrite=True to replace them; stp.tl.GeneEmbeddings.load(path) reads them."
    )
