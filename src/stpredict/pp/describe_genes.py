"""A text for each gene: what a text-queried model is asked with."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stpredict._arguments import check_arguments
from stpredict._messages import warn
from stpredict._spatialdata import ENSEMBL
from stpredict.pp._definitions import Definition, DefinitionCache, clean, read_definitions
from stpredict.pp._text_sources import PLACEHOLDER, Found, from_generator, from_ncbi, from_table, plain_id

logger = logging.getLogger("stpredict")

TEMPLATE = f"The brief definition of gene {PLACEHOLDER} is"


def describe_genes(
    genes: Sequence[str],
    *,
    source: str | Path | pd.DataFrame | Callable[[str], str],
    cache: str | Path | None = None,
    template: str = TEMPLATE,
    synonyms: Mapping[str, str] | pd.Series | None = None,
    species: str = "human",
    progress: bool = True,
) -> pd.DataFrame:
    """A definition of each gene, from a table, from NCBI, from a text generator, or the symbol alone.

    Parameters
    ----------
    genes : Sequence[str]
        Names, each once: symbols or Ensembl ids.
    source : str | Path | DataFrame | Callable[[str], str]
        "symbol": the name is the text. A table with columns gene and definition: a DataFrame, or the path of a .tsv or
        .csv file. "ncbi": gene summaries of NCBI through MyGene.info (extra ``text``; asks the network). A function
        from a prompt to a text, such as `openai_source` makes, called once a gene.
    cache : str | Path, optional
        For "ncbi" and functions: a .tsv to which every definition is appended as it comes. A call that was interrupted
        goes on from there, and a later call asks only for what is new.
    template : str, default TEMPLATE
        The prompt for a function, GENE_NAME standing for the gene. The default is that of GeneQuery.
    synonyms : Mapping[str, str] | Series, optional
        Other names of the genes: gene -> name, a dict or a column of `var` (``adata.var["gene_name"]``). Used where a
        table lacks the gene itself; asked in its place of NCBI, of a function, and by "symbol".
    species : str, default "human"
        For "ncbi": "human", "mouse", or a taxonomy id.
    progress : bool, default True
        Show progress bars.

    Returns
    -------
    DataFrame
        One row a gene in the order asked, columns gene, definition and source ("table" or the file's name, "ncbi", the
        function's name, "symbol"). A gene without a definition gets its symbol, or its synonym, as the text; one
        warning counts and names them. ``attrs["report"]`` has n_genes; sources (source -> number of genes); symbol_only
        (genes); synonyms and case (gene -> the name under which it was found); ambiguous (gene -> the symbols it may
        stand for); ensembl (genes that are Ensembl ids).

    Raises
    ------
    ValueError
        For genes that occur twice, a source, table, cache or template that is not understood, and a cache made with
        other prompts.
    FileNotFoundError
        For a table that is not there.
    ImportError
        For a missing extra.
    ConnectionError
        Where NCBI does not answer; it says what is kept.
    RuntimeError
        Where a function fails; it says what is kept.

    References
    ----------
    The template is that of GeneQuery (arXiv 2411.18391).

    Examples
    --------
    >>> known = pd.DataFrame({"gene": ["GNAS"], "definition": ["stimulatory G protein"]})
    >>> stp.pp.describe_genes(["GNAS"], source=known)["definition"].tolist()
    ['stimulatory G protein']
    """
    check_arguments(describe_genes, locals())
    genes = _checked(genes, template)
    aliases = _aliases(synonyms, genes)
    named = source if isinstance(source, str) and source in ("symbol", "ncbi") else None
    if cache is not None and named != "ncbi" and not callable(source):
        raise ValueError("cache= is for 'ncbi' and functions that write text; a table or 'symbol' needs none.")
    found: Found = {}
    ambiguous: dict[str, list[str]] = {}
    if callable(source):
        cached = DefinitionCache(cache)
        found = from_generator(source, genes, aliases, template=template, cache=cached, progress=progress)
    elif named is None:
        found = from_table(read_definitions(source), genes, aliases)
    elif named == "ncbi":
        cached = DefinitionCache(cache)
        found, ambiguous = from_ncbi(genes, aliases, species=species, cache=cached, progress=progress)
    names = {gene: aliases.get(gene, gene) for gene in genes}
    rows = {gene: found.get(gene) or Definition(names[gene], "symbol", names[gene]) for gene in genes}
    frame = pd.DataFrame(
        [(gene, row.text, row.source) for gene, row in rows.items()], columns=["gene", "definition", "source"]
    )
    frame.attrs["report"] = report = _report(rows, ambiguous)
    _tell(report, wanted=named != "symbol")
    return frame


def _checked(genes: Sequence[str], template: str) -> list[str]:
    if len(genes) == 0:
        raise ValueError(f"describe_genes takes a list of gene names, got {genes!r}. Pass [gene, ...].")
    names = [str(gene) for gene in genes]
    duplicates = [name for name, n in Counter(names).items() if n > 1]
    if duplicates:
        raise ValueError(
            f"genes occur more than once: {duplicates[:5]} ({len(duplicates)} names). Pass each gene once."
        )
    blank = [i for i, name in enumerate(names) if not name.strip()]
    if blank:
        raise ValueError(f"{len(blank)} genes have no name, at positions {blank[:5]}.")
    if PLACEHOLDER not in template:
        raise ValueError(f"template={template!r} does not say where the gene goes: write {PLACEHOLDER} there.")
    return names


def _aliases(synonyms: Mapping[str, str] | pd.Series | None, genes: list[str]) -> dict[str, str]:
    """gene -> its other name, where it has one that differs."""
    if synonyms is None:
        return {}
    if isinstance(synonyms, pd.Series) and not synonyms.index.is_unique:
        duplicates = synonyms.index[synonyms.index.duplicated()].unique().tolist()
        raise ValueError(f"synonyms= names genes more than once: {duplicates[:5]} ({len(duplicates)} names).")
    other = {str(gene): clean(name) for gene, name in synonyms.items()}
    return {gene: other[gene] for gene in genes if other.get(gene) and other[gene] != gene}


def _report(rows: Mapping[str, Definition], ambiguous: Mapping[str, list[str]]) -> dict[str, Any]:
    renamed = {gene: row.name for gene, row in rows.items() if row.name not in (gene, plain_id(gene))}
    case = {gene: name for gene, name in renamed.items() if gene.casefold() == name.casefold()}
    return {
        "n_genes": len(rows),
        "sources": dict(Counter(row.source for row in rows.values())),
        "symbol_only": [gene for gene, row in rows.items() if row.source == "symbol"],
        "synonyms": {gene: name for gene, name in renamed.items() if gene not in case},
        "case": case,
        "ambiguous": dict(ambiguous),
        "ensembl": [gene for gene in rows if ENSEMBL.match(gene)],
    }


def _tell(report: Mapping[str, Any], *, wanted: bool) -> None:
    """Log where the texts came from; one warning for what a language model can make little of."""
    logger.info(
        "texts of %d genes: %s; %d by a synonym, %d in another case", report["n_genes"], report["sources"],
        len(report["synonyms"]), len(report["case"]),
    )  # fmt: skip
    alone = report["symbol_only"]
    bare = [gene for gene in report["ensembl"] if gene in set(alone) - set(report["synonyms"])]
    messages = []
    if wanted and alone:
        messages.append(
            f"{len(alone)} of {report['n_genes']} genes have no definition; the text is their symbol: {_some(alone)}."
        )
    if report["ambiguous"]:
        messages.append(
            f"{len(report['ambiguous'])} of them are aliases of several genes: {_some(report['ambiguous'])}."
        )
    if bare:
        messages.append(
            f"{len(bare)} texts are Ensembl ids, which mean nothing to a language model: {_some(bare)}. Pass synonyms= "
            "(id -> symbol, such as adata.var['gene_name'])."
        )
    if messages:
        warn(" ".join(messages) + " attrs['report'] lists all.")


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{list(names)[:5]}{' ...' if len(names) > 5 else ''}"
