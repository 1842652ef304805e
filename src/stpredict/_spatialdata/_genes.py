"""Genes of a model against genes of a table: by name, by Ensembl id without version, or by the table's other column."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("stpredict")

ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})(\.\d+)?$")
OTHER_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "gene_symbols", "gene_name", "feature_name")


def match_genes(
    wanted: Sequence[str],
    available: Sequence[str],
    *,
    what: str,
    var: pd.DataFrame | None = None,
    advice: str = "",
) -> tuple[NDArray[np.int64], list[str]]:
    """Where each wanted gene stands among the available ones, and which are not there.

    Parameters
    ----------
    wanted, available : Sequence[str]
        Gene symbols or Ensembl ids; the version of an id (".12") does not count.
    what : str
        What holds the available genes, for messages: "table 'table'".
    var : DataFrame, optional
        The table's `var`, rows as in `available`: where it has a column with the other kind of identifier and that
        finds more genes, it is used, and logged.
    advice : str, default ""
        What the caller can do about genes that are not there, for the message.

    Returns
    -------
    tuple[ndarray, list[str]]
        (len(wanted),) positions, -1 where a gene is missing, and the missing genes in the order asked. A partial match
        is logged.

    Raises
    ------
    ValueError
        For names that occur twice among the wanted or among the available, and where the two have nothing in common.
    """
    wanted, available = list(map(str, wanted)), list(map(str, available))
    if not wanted:
        raise ValueError(f"no genes were asked of {what}.")
    _check_unique([_plain(gene) for gene in wanted], "the genes asked")
    _check_unique(available, f"the genes of {what}")
    positions = _positions(wanted, available, what)
    column = _best_column(wanted, var, int((positions >= 0).sum()))
    if column is not None and var is not None:
        logger.info("%s: genes are matched by var[%r].", what, column)
        positions = _positions(wanted, var[column].astype(str).tolist(), f"{what}, var[{column!r}]")
    missing = [gene for gene, position in zip(wanted, positions, strict=True) if position < 0]
    if len(missing) == len(wanted):
        raise ValueError(f"{_nothing_in_common(wanted, available, what)} {advice}".strip())
    if missing:
        some = f"{missing[:10]}{' ...' if len(missing) > 10 else ''}"
        logger.warning("%s has %d of %d genes; missing: %s", what, len(wanted) - len(missing), len(wanted), some)
    return positions, missing


def _positions(wanted: list[str], available: list[str], what: str) -> NDArray[np.int64]:
    """(len(wanted),) the exact name; where that is not there, the id without its version; else -1."""
    exact: dict[str, list[int]] = {}
    plain: dict[str, list[int]] = {}
    for i, name in enumerate(available):
        exact.setdefault(name, []).append(i)
        plain.setdefault(_plain(name), []).append(i)
    out = np.full(len(wanted), -1, dtype=np.int64)
    for row, gene in enumerate(wanted):
        found = exact.get(gene) or plain.get(_plain(gene), [])
        if len(found) > 1:
            raise ValueError(
                f"gene {gene!r} occurs {len(found)} times in {what}: {[available[i] for i in found[:5]]}. "
                "Make the names unique, for example by summing the counts of equal genes."
            )
        if found:
            out[row] = found[0]
    return out


def _best_column(wanted: list[str], var: pd.DataFrame | None, n_by_name: int) -> str | None:
    """The column of `var` that finds more of the wanted genes than the names do, if there is one."""
    best, n_best = None, n_by_name
    for column in OTHER_COLUMNS:
        if var is not None and column in var:
            there = {_plain(name) for name in var[column].astype(str)}
            n = sum(_plain(gene) in there for gene in wanted)
            best, n_best = (column, n) if n > n_best else (best, n_best)
    return best


def _plain(name: str) -> str:
    match = ENSEMBL.match(name)
    return match.group(1) if match else name


def _check_unique(names: list[str], what: str) -> None:
    index = pd.Index(names)
    if not index.is_unique:
        twice = index[index.duplicated()].unique().tolist()
        raise ValueError(
            f"{what} are not unique: {twice[:5]} ({len(twice)} names occur more than once). "
            "Make them unique; AnnData.var_names_make_unique renames, summing equal genes is better."
        )


def _nothing_in_common(wanted: list[str], available: list[str], what: str) -> str:
    said = f"none of {len(wanted)} genes is in {what}: asked for {wanted[:3]}, there are {available[:3]} ... "
    kinds = [any(ENSEMBL.match(name) for name in names[:50]) for names in (wanted, available)]
    if kinds[0] != kinds[1]:
        names = ("Ensembl ids", "gene symbols")
        return (
            f"{said}The genes asked are {names[0 if kinds[0] else 1]}, those of {what} are "
            f"{names[0 if kinds[1] else 1]}: rename var_names, or add a var column 'gene_ids' or 'gene_name' with "
            "the other kind."
        )
    if {gene.upper() for gene in wanted} & {gene.upper() for gene in available}:
        return f"{said}They agree when case is ignored: another species (mouse Gnas, human GNAS)?"
    return f"{said}Another species, or another kind of identifier?"
