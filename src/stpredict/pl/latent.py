"""The latent image space: clusters on the tissue, or as UMAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from sklearn.metrics import adjusted_rand_score

from stpredict._arguments import check_arguments
from stpredict._spatialdata import missing_key, resolve_shapes
from stpredict.pl._axes import frame_map, new_axes
from stpredict.pl._categories import Groups, column_groups, group_colours, group_legend
from stpredict.pl._clusters import leiden, neighbour_graph, umap
from stpredict.pl._map import draw_values, shapes_view
from stpredict.pl._values import find_table, on_shapes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from numpy.typing import NDArray
    from spatialdata import SpatialData

INK_PT2 = 2e4  # of all points of a UMAP together, in square points


def latent(
    sdata: SpatialData,
    key: str,
    *,
    table_name: str | None = None,
    basis: Literal["tissue", "umap"] = "tissue",
    color: str | None = None,
    resolution: float = 1.0,
    n_neighbors: int = 15,
    seed: int = 0,
    labels: str | None = None,
    shapes_key: str | None = None,
    image_key: str | None = None,
    ax: Axes | None = None,
    alpha: float = 1.0,
    coordinate_system: str = "global",
) -> Axes:
    """What a model sees, before any gene is asked: Leiden clusters of its latent, on the tissue or as UMAP.

    Parameters
    ----------
    sdata : SpatialData
        A SpatialData object.
    key : str
        Entry of obsm, as `stp.tl.embed` writes it. Rows with NaN are left out.
    table_name : str, optional
        None: the only table that has the entry.
    basis : {"tissue", "umap"}, default "tissue"
        "tissue": the shapes over the H&E; "umap": every row as a point.
    color : str, optional
        Column of obs to colour by, names or whole numbers; None: the clusters. Rows without a name are not drawn.
    resolution : float, default 1.0
        Of scanpy's Leiden clusters (igraph, two iterations).
    n_neighbors : int, default 15
        Number of nearest neighbours, Euclidean, of the latent as it is; at least 2.
    seed : int, default 0
        Of all that is random.
    labels : str, optional
        Column of obs with labels to compare the clusters with, such as a pathologist's: the title gives the adjusted
        Rand index over the rows that have a label and a value, and how many those are.
    shapes_key, image_key : str, optional
        As in `pl.expression`.
    ax : Axes, optional
        As in `pl.expression`.
    alpha : float, default 1.0
        As in `pl.expression`.
    coordinate_system : str, default "global"
        As in `pl.expression`.

    Returns
    -------
    Axes
        The axes. The object stays as it is: clusters are in the figure alone.

    Raises
    ------
    ValueError
        For an entry, table, column, shapes or image that is not there (with the closest names), for fewer rows than
        neighbours, and for more groups than can be told apart by colour.
    ImportError
        Without scanpy.

    References
    ----------
    GeneQuery (arXiv 2411.18391), section 4.7.
    """
    check_arguments(latent, locals())
    table_name = _table_name(sdata, key, table_name)
    table = sdata.tables[find_table(sdata, table_name, shapes_key)]
    values = _values(table, key, table_name)
    shown = np.isfinite(values).all(axis=1)
    wanted, truth = (
        None if column is None else column_groups(table.obs, column, shown, argument=argument)
        for column, argument in ((color, "color"), (labels, "labels"))
    )
    graph = neighbour_graph(values[shown], n_neighbors=n_neighbors, seed=seed)
    clusters = _clusters(leiden(graph, resolution=resolution, seed=seed), shown)
    groups = clusters if wanted is None else wanted
    colours = group_colours(groups, remedy="lower resolution=" if wanted is None else "choose another color=")
    title = f"{key}, {len(clusters.names)} clusters" + (
        "" if truth is None else f"\n{_agreement(clusters, truth, labels)}"
    )
    if basis == "umap":
        ax = _scatter(ax, umap(graph, seed=seed), groups.codes[shown], colours, alpha=alpha, title=title)
    else:
        ax = _map(
            sdata, groups.codes, colours, table_name=table_name, shapes_key=shapes_key, image_key=image_key, ax=ax,
            alpha=alpha, coordinate_system=coordinate_system, title=title,
        )  # fmt: skip
    group_legend(ax, groups.names, title=color or "cluster")
    return ax


def _table_name(sdata: SpatialData, key: str, table_name: str | None) -> str:
    """The table given, else the only one that has the entry."""
    holders = [name for name, table in sdata.tables.items() if key in table.obsm]
    if table_name is None and len(holders) > 1:
        raise ValueError(f"several tables have obsm[{key!r}]: {sorted(holders)}. Choose one with table_name=.")
    if table_name is None and not holders:
        raise missing_key(
            key, {name for table in sdata.tables.values() for name in table.obsm}, what="obsm entry", argument="key"
        )
    return holders[0] if table_name is None else table_name


def _values(table: AnnData, key: str, table_name: str) -> NDArray[np.float32]:
    """(n_obs, d) of an entry of obsm."""
    if key not in table.obsm:
        raise missing_key(key, table.obsm, what=f"obsm entry of table {table_name!r}", argument="key")
    values: NDArray[np.float32] = np.asarray(table.obsm[key], dtype=np.float32)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"obsm[{key!r}] of table {table_name!r} has no columns: shape {values.shape}.")
    return values


def _clusters(codes: NDArray[np.int64], shown: NDArray[np.bool_]) -> Groups:
    """The clusters of the shown rows as groups of all rows."""
    every = np.full(len(shown), -1, dtype=np.int64)
    every[shown] = codes
    return Groups(every, tuple(str(code) for code in range(codes.max() + 1)))


def _agreement(clusters: Groups, truth: Groups, labels: str | None) -> str:
    """The adjusted Rand index for the title."""
    both = (clusters.codes >= 0) & (truth.codes >= 0)
    if not both.any():
        raise ValueError(f"no row has both a label in obs[{labels!r}] and a value: there is nothing to compare.")
    score = adjusted_rand_score(truth.codes[both], clusters.codes[both])
    return f"ARI {score:.2f} with {labels}, {int(both.sum()):,} rows"


def _scatter(
    ax: Axes | None,
    points: NDArray[np.float64],
    codes: NDArray[np.int64],
    colours: ScalarMappable,
    *,
    alpha: float,
    title: str,
) -> Axes:
    ax = new_axes((0.0, 0.0, 1.0, 1.0))[0] if ax is None else ax
    named = np.flatnonzero(codes >= 0)
    order = np.random.default_rng(0).permutation(named)  # else the last group would cover the others
    size = float(np.clip(INK_PT2 / len(codes), 1.0, 30.0))
    ax.scatter(points[order, 0], points[order, 1], c=colours.to_rgba(codes[order]), s=size, alpha=alpha, linewidths=0)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    ax.spines[:].set_visible(False)
    return ax


def _map(
    sdata: SpatialData,
    codes: NDArray[np.int64],
    colours: ScalarMappable,
    *,
    table_name: str,
    shapes_key: str | None,
    image_key: str | None,
    ax: Axes | None,
    alpha: float,
    coordinate_system: str,
    title: str,
) -> Axes:
    shapes_key = resolve_shapes(sdata, shapes_key, table_name=table_name)
    values = on_shapes(sdata, np.where(codes >= 0, codes, np.nan), table_name=table_name, shapes_key=shapes_key)
    view = shapes_view(sdata, shapes_key, coordinate_system)
    ax = draw_values(
        sdata, shapes_key, values, view=view, image_key=image_key, ax=ax, colours=colours, alpha=alpha,
        coordinate_system=coordinate_system,
    )  # fmt: skip
    frame_map(ax, view, title=title)
    return ax
