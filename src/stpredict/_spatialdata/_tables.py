"""Tables: their counts, match genes by name or Ensembl id, and join rows to shapes by instance id."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from spatialdata.models import get_table_keys

from stpredict._messages import warn
from stpredict._spatialdata._elements import missing_key, regions
from stpredict._spatialdata._shapes import shapes_element

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


logger = logging.getLogger("stpredict")

ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})(\.\d+)?$")
WHOLE_TRANSCRIPTOME = 7000  # genes; fewer are a panel (the largest, CosMx 6K and Xenium 5K, have 6,175 and 5,001)
OTHER_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "gene_symbols", "gene_name", "feature_name")


def matrix_of(table: AnnData, layer: str | None, *, what: str) -> Any:
    """X, or the layer that is named, whole and in memory; features that are no genes count as 0, with a warning.

    Raises ValueError for a layer that is not there.
    """
    if layer is None:
        if table.X is None:
            raise ValueError(f"{what} is empty. Name the layer with raw counts by layer=.")
        return _of_genes(_in_memory(table.X), table, what)
    existing = [key for key in table.layers.keys() if key is not None]  # anndata 0.13 lists X as None
    if layer not in existing:
        raise missing_key(layer, existing, what="layer", argument="layer")
    return _of_genes(_in_memory(table.layers[layer]), table, what)


def is_gene(table: AnnData) -> NDArray[np.bool_]:
    """(n_vars,) which features of a table are genes: all, but those that var["feature_types"] calls something else.

    10x tables hold antibodies, control probes and codewords beside "Gene Expression".
    """
    if "feature_types" not in table.var:
        return np.ones(table.n_vars, bool)
    genes = (table.var["feature_types"].astype(str).str.strip().str.lower() == "gene expression").to_numpy()
    return genes if genes.any() else np.ones(table.n_vars, bool)


def n_targeted_genes(table: AnnData) -> int | None:
    """How many genes a table has, where so few that its totals are those of a targeted panel; None: a transcriptome.

    By the number of its genes alone, below 7,000: a transcriptome that was cut to its most variable genes is one, too.
    """
    n_genes = int(is_gene(table).sum())
    return n_genes if n_genes < WHOLE_TRANSCRIPTOME else None


def _of_genes(matrix: Any, table: AnnData, what: str) -> Any:
    genes = is_gene(table)
    if genes.all():
        return matrix
    kinds = sorted(set(table.var["feature_types"].astype(str)[~genes]))
    warn(
        f"{what} has {int((~genes).sum())} features that are no genes by var['feature_types'] "
        f"({', '.join(kinds[:4])}); they are left out of totals and panels.",
    )
    return sparse.csr_array(matrix) @ sparse.diags_array(genes.astype(np.float64))


def _in_memory(matrix: Any) -> Any:
    """A matrix that is read lazily (dask blocks, dense or sparse; a store's sparse data set), in memory."""
    for method in ("compute", "to_memory"):
        if hasattr(matrix, method):
            return getattr(matrix, method)()
    return matrix


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
        For names that occur twice among the wanted, wanted ones that occur twice among the available, and where the two
        have nothing in common.
    """
    wanted, available = list(map(str, wanted)), list(map(str, available))
    if not wanted:
        raise ValueError(f"no genes were asked of {what}.")
    _check_unique([_plain(gene) for gene in wanted], "the genes asked")
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
            present = {_plain(name) for name in var[column].astype(str)}
            n = sum(_plain(gene) in present for gene in wanted)
            best, n_best = (column, n) if n > n_best else (best, n_best)
    return best


def _plain(name: str) -> str:
    match = ENSEMBL.match(name)
    return match.group(1) if match else name


def _check_unique(names: list[str], what: str) -> None:
    index = pd.Index(names)
    if not index.is_unique:
        duplicates = index[index.duplicated()].unique().tolist()
        raise ValueError(
            f"{what} are not unique: {duplicates[:5]} ({len(duplicates)} names occur more than once). "
            "Make them unique; AnnData.var_names_make_unique renames, summing equal genes is better."
        )


def _nothing_in_common(wanted: list[str], available: list[str], what: str) -> str:
    message = f"none of {len(wanted)} genes is in {what}: asked for {wanted[:3]}, there are {available[:3]} ... "
    kinds = [any(ENSEMBL.match(name) for name in names[:50]) for names in (wanted, available)]
    if kinds[0] != kinds[1]:
        names = ("Ensembl ids", "gene symbols")
        return (
            f"{message}The genes asked are {names[0 if kinds[0] else 1]}, those of {what} are "
            f"{names[0 if kinds[1] else 1]}: rename var_names, or add a var column 'gene_ids' or 'gene_name' with "
            "the other kind."
        )
    if {gene.upper() for gene in wanted} & {gene.upper() for gene in available}:
        return f"{message}They agree when case is ignored: another species (mouse Gnas, human GNAS)?"
    return f"{message}Another species, or another kind of identifier?"


def table_rows(sdata: SpatialData, table_name: str, shapes_key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of a table annotate an element, and the position of each one's shape in it.

    Returns rows (m,) of the table in rising order, and positions (m,) in the element: row `rows[k]` belongs to shape
    `positions[k]`. Rows of other regions are left out; shapes that no row annotates are allowed.

    Raises ValueError for a table that annotates nothing or other shapes, for instance ids that occur twice in the
    table or in the element, and for ids that the element lacks.
    """
    if table_name not in sdata.tables:
        raise missing_key(table_name, sdata.tables, what="table", argument="table_name")
    table = sdata.tables[table_name]
    rows = _rows_of_region(table, table_name, shapes_key)
    _, _, instance_key = get_table_keys(table)
    wanted, existing = _comparable(
        pd.Index(table.obs[instance_key].iloc[rows]), shapes_element(sdata, shapes_key).index
    )
    _check_unique_ids(existing, f"shapes {shapes_key!r}")
    _check_unique_ids(wanted, f"table {table_name!r}, obs[{instance_key!r}]")
    positions = existing.get_indexer(wanted).astype(np.int64)
    if (positions < 0).any():
        lost = wanted[positions < 0]
        raise ValueError(
            f"{len(lost)} of {len(wanted)} rows of table {table_name!r} name instance ids that shapes "
            f"{shapes_key!r} lack: {lost[:5].tolist()}; there are {existing[:5].tolist()} ... "
            f"Correct obs[{instance_key!r}] or drop those rows."
        )
    return rows, positions


def rows_of_table(table: AnnData, rows: NDArray[np.int64]) -> AnnData:
    """A copy of some rows of a table, which annotates the shapes of these rows alone."""
    part = table[rows].copy()
    _, region_key, _ = get_table_keys(table)
    left = part.obs[region_key].astype(str).unique().tolist()
    part.obs[region_key] = pd.Categorical(part.obs[region_key].astype(str), categories=left)
    attrs = {**part.uns["spatialdata_attrs"], "region": left if len(left) > 1 else left[0]}
    part.uns["spatialdata_attrs"] = attrs
    return part


def _rows_of_region(table: AnnData, table_name: str, shapes_key: str) -> NDArray[np.int64]:
    annotated = regions(table)
    if shapes_key not in annotated:
        message = f"annotates {annotated}, not {shapes_key!r}" if annotated else "annotates no shapes"
        raise ValueError(
            f"table {table_name!r} {message}. Pass shapes_key= or table_name= so that they belong together, or "
            "set the region with spatialdata.models.TableModel.parse."
        )
    _, region_key, instance_key = get_table_keys(table)
    absent = [key for key in (region_key, instance_key) if key not in table.obs]
    if absent:
        raise ValueError(
            f"table {table_name!r} says that obs[{absent[0]!r}] names its shapes, but has no such column; "
            f"there are {list(table.obs.columns)[:10]}."
        )
    rows = np.flatnonzero(table.obs[region_key].astype(str).to_numpy() == shapes_key)
    if len(rows) == 0:
        raise ValueError(f"table {table_name!r} has no row whose obs[{region_key!r}] is {shapes_key!r}.")
    if table.obs[instance_key].iloc[rows].isna().any():
        raise ValueError(f"table {table_name!r} has rows without an instance id in obs[{instance_key!r}].")
    return rows


def _comparable(left: pd.Index, right: pd.Index) -> tuple[pd.Index, pd.Index]:
    """Both as they are where their types agree, else both as text: ids 7 and "7" are one shape."""
    plain = [_plain_ids(left), _plain_ids(right)]
    if plain[0].inferred_type != plain[1].inferred_type:
        plain = [index.astype(str) for index in plain]
    return plain[0], plain[1]


def _plain_ids(index: pd.Index) -> pd.Index:
    if isinstance(index.dtype, pd.CategoricalDtype):
        index = pd.Index(index.astype(index.categories.dtype))
    if pd.api.types.is_float_dtype(index) and (index == np.floor(index)).all():
        return index.astype(np.int64)
    return index.astype(np.int64) if pd.api.types.is_integer_dtype(index) else index.astype(object)


def _check_unique_ids(index: pd.Index, what: str) -> None:
    if not index.is_unique:
        duplicates = index[index.duplicated()].unique()
        raise ValueError(
            f"{what}: instance ids are not unique: {duplicates[:5].tolist()} ({len(duplicates)} occur more than "
            "once). A value could not be given to one shape; make them unique."
        )
