"""Where definitions of genes come from: a table, NCBI, a function that writes text."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from stpredict._spatialdata import ENSEMBL
from stpredict.pp._definitions import Definition, DefinitionCache, clean

Found = dict[str, Definition]
PLACEHOLDER = "GENE_NAME"
_BATCH = 200  # genes that NCBI is asked for at once, between two writes of the cache


def plain_id(gene: str) -> str:
    """An Ensembl id without its version; any other name as it is."""
    match = ENSEMBL.match(gene)
    return match.group(1) if match else gene


def from_table(table: Mapping[str, Definition], genes: Sequence[str], aliases: Mapping[str, str]) -> Found:
    """The definitions of a table by the gene's own name, its id without version, its alias, or else in another case.

    Where two genes of the table differ by case alone, neither is taken for a third spelling.
    """
    plain = {plain_id(name): name for name in table}
    caseless: dict[str, str | None] = {}
    for name in table:
        caseless[name.casefold()] = None if name.casefold() in caseless else name
    found = {}
    for gene in genes:
        alias = aliases.get(gene)
        exact = [gene, plain.get(plain_id(gene)), alias, plain.get(plain_id(alias)) if alias else None]
        loose = [caseless.get(name.casefold()) for name in (gene, alias) if name]
        known = [name for name in (*exact, *loose) if name is not None and name in table]
        if known:
            found[gene] = table[known[0]]
    return found


def from_generator(
    write: Callable[[str], str],
    genes: Sequence[str],
    aliases: Mapping[str, str],
    *,
    template: str,
    cache: DefinitionCache,
    progress: bool,
) -> Found:
    """What `write` answers to each gene's prompt; an answer is kept in `cache` before the next gene is asked for.

    Raises RuntimeError where `write` fails, with what is kept.
    """
    label = getattr(write, "name", None) or getattr(write, "__name__", None) or type(write).__name__
    prompts = {gene: clean(template.replace(PLACEHOLDER, aliases.get(gene, gene))) for gene in genes}
    found = cache.take(prompts)
    todo = [gene for gene in genes if gene not in found]
    for gene in tqdm(todo, desc="definitions", disable=not progress):
        try:
            answer = write(prompts[gene])
            if not isinstance(answer, str):
                raise TypeError(f"the answer is no text but {type(answer).__name__}")
        except Exception as error:
            raise RuntimeError(
                f"{label} failed at gene {gene!r}, number {len(found) + 1} of {len(genes)} "
                f"({type(error).__name__}: {clean(error)}). {cache.kept(len(found))}"
            ) from error
        if clean(answer):
            found[gene] = Definition(clean(answer), str(label), aliases.get(gene, gene))
            cache.add({gene: found[gene]}, prompts)
    return found


def from_ncbi(
    genes: Sequence[str],
    aliases: Mapping[str, str],
    *,
    species: str,
    cache: DefinitionCache,
    progress: bool,
) -> tuple[Found, dict[str, list[str]]]:
    """NCBI's gene summaries through MyGene.info, and the genes whose name is an alias of several: name -> symbols.

    Raises ImportError without mygene, ConnectionError where the service does not answer, with what is kept.
    """
    client = _mygene().MyGeneInfo()
    prompts = dict.fromkeys(genes, f"ncbi {species}")
    found, ambiguous = cache.take(prompts), {}
    todo = [gene for gene in genes if gene not in found]
    for start in tqdm(range(0, len(todo), _BATCH), desc="NCBI", disable=not progress):
        batch = {gene: plain_id(aliases.get(gene, gene)) for gene in todo[start : start + _BATCH]}
        try:
            hits = _ask(client, sorted(set(batch.values())), species)
        except Exception as error:
            raise ConnectionError(
                f"MyGene.info did not answer ({type(error).__name__}: {clean(error)}). {cache.kept(len(found))} "
                "Without a network, pass a table of definitions as `source`."
            ) from error
        new = {}
        for gene, name in batch.items():
            symbols, summary = _choose(name, hits.get(name, []))
            if len(symbols) > 1:
                ambiguous[gene] = symbols
            elif summary:
                new[gene] = Definition(summary, "ncbi", symbols[0])
        cache.add(new, prompts)
        found |= new
    return found, ambiguous


def _mygene() -> Any:
    try:
        return importlib.import_module("mygene")
    except ImportError as error:
        raise ImportError(
            "source='ncbi' needs the package mygene, which is not installed: pip install 'stpredict[text]'."
        ) from error


def _ask(client: Any, names: list[str], species: str) -> dict[str, list[dict[str, Any]]]:
    """name -> the genes that MyGene.info knows by it, as symbol, alias or Ensembl id."""
    hits: dict[str, list[dict[str, Any]]] = {}
    ids = [name for name in names if ENSEMBL.match(name)]
    symbols = [name for name in names if not ENSEMBL.match(name)]
    for asked, scopes in ((symbols, "symbol,alias"), (ids, "ensembl.gene")):
        if asked:
            answer = client.querymany(asked, scopes=scopes, fields="symbol,summary", species=species, verbose=False)
            for hit in answer:
                if not hit.get("notfound"):
                    hits.setdefault(str(hit["query"]), []).append(hit)
    return hits


def _choose(name: str, hits: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Symbols of the hits that fit best (the symbol itself, else in another case, else by alias), and their summary."""
    same = [hit for hit in hits if str(hit.get("symbol", "")) == name]
    other_case = [hit for hit in hits if str(hit.get("symbol", "")).casefold() == name.casefold()]
    best = same or other_case or hits
    symbols = sorted({str(hit.get("symbol", name)) for hit in best})
    summaries = [clean(hit.get("summary")) for hit in best]
    return symbols, next((summary for summary in summaries if summary), "")
