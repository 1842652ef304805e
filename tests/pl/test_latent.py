"""What `pl.latent` draws: clusters that are those of scanpy, each shape in the colour of its own row."""

from __future__ import annotations

import itertools

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb, to_rgba
from shapely import box
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from stpredict import pl
from stpredict.pl._categories import PALETTE
from stpredict.pl._clusters import leiden, neighbour_graph, umap

KEY = "X_pixnet"
SETTINGS = {"n_neighbors": 5}


@pytest.fixture
def three(bare: SpatialData) -> SpatialData:
    """Rows of three far groups of 12, 8 and 4, in the shuffled order of the table; obs["truth"] names them."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1, 2], [12, 8, 4]))
    table = bare.tables["table"]
    values = np.array([[0, 0, 0], [50, 0, 0], [0, 50, 9]])[group] + rng.normal(0, 1, (24, 3))
    table.obsm[KEY] = values.astype(np.float32)
    table.obs["truth"] = pd.Categorical(np.array(["tumour", "stroma", "fat"])[group])
    return bare


def drawn(ax: plt.Axes) -> pd.DataFrame:
    """Centre and colour of every shape on the axes."""
    (collection,) = ax.collections
    boxes = [path.get_extents(collection.get_transform() - ax.transData) for path in collection.get_paths()]
    centres = np.array([[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2] for b in boxes])
    return pd.DataFrame({"x": centres[:, 0], "y": centres[:, 1], "color": list(collection.get_facecolors())})


def colour_by_row(ax: plt.Axes, sdata: SpatialData) -> list[tuple[float, ...] | None]:
    """The colour of each table row's own shape; None where it is not drawn."""
    spots = sdata.shapes["spots"].loc[sdata.tables["table"].obs["instance_id"]]
    where = {(round(x, 3), round(y, 3)): tuple(np.round(c, 4)) for x, y, c in drawn(ax).itertuples(index=False)}
    return [where.get((round(point.x, 3), round(point.y, 3))) for point in spots.geometry]


def legend(ax: plt.Axes) -> dict[str, tuple[float, ...]]:
    found = ax.get_legend()
    colours = [tuple(np.round(to_rgba(handle.get_color()), 4)) for handle in found.legend_handles]
    return dict(zip([text.get_text() for text in found.get_texts()], colours, strict=True))


@pytest.mark.slow  # umap compiles for many seconds
def test_clusters_are_those_of_scanpy_and_find_what_is_apart(three: SpatialData) -> None:
    import scanpy as sc

    values, truth = three.tables["table"].obsm[KEY], three.tables["table"].obs["truth"]
    graph = neighbour_graph(values, n_neighbors=5, seed=0)
    codes = leiden(graph, resolution=0.1, seed=0)
    assert adjusted_rand_score(truth, codes) == 1.0
    sizes = np.bincount(codes)
    assert (np.diff(sizes) <= 0).all()  # the largest first
    theirs = type(graph)(values.copy())
    sc.pp.neighbors(theirs, n_neighbors=5, use_rep="X")
    for resolution in (0.1, 1.0):
        sc.tl.leiden(theirs, resolution=resolution, flavor="igraph", n_iterations=2, directed=False)
        mine = leiden(graph, resolution=resolution, seed=0)
        assert adjusted_rand_score(mine, theirs.obs["leiden"]) == 1.0


@pytest.mark.slow  # pynndescent compiles for seconds
def test_thousands_of_rows_have_neighbours_too() -> None:
    values = np.random.default_rng(0).normal(size=(4200, 2)).astype(np.float32)  # scanpy's own choice changes at 4096
    graph = neighbour_graph(values, n_neighbors=4, seed=0)
    wanted = np.sort(np.linalg.norm(values - values[7], axis=1))[1:4]
    np.testing.assert_allclose(np.sort(graph.obsp["distances"][[7]].data), wanted, rtol=1e-4)


@pytest.mark.slow
def test_every_shape_has_the_colour_of_its_own_row(three: SpatialData) -> None:
    table = three.tables["table"]
    assert list(table.obs["instance_id"]) != list(three.shapes["spots"].index)
    ax = pl.latent(three, KEY, resolution=0.1, **SETTINGS)
    names = {colour: name for name, colour in legend(ax).items()}
    shown = [names[colour] for colour in colour_by_row(ax, three)]
    codes = leiden(neighbour_graph(table.obsm[KEY], n_neighbors=5, seed=0), resolution=0.1, seed=0)
    assert shown == [str(code) for code in codes]
    assert list(names.values()) == ["0", "1", "2"]
    assert ax.get_title() == f"{KEY}, 3 clusters"
    assert ax.get_legend().get_title().get_text() == "cluster"


def test_the_title_gives_the_agreement_with_labels(three: SpatialData) -> None:
    table = three.tables["table"]
    ax = pl.latent(three, KEY, resolution=0.1, labels="truth", **SETTINGS)
    assert ax.get_title() == f"{KEY}, 3 clusters\nARI 1.00 with truth, 24 rows"
    table.obs["other"] = np.random.default_rng(1).permutation(table.obs["truth"].astype(object))
    table.obs.loc[table.obs.index[:3], "other"] = np.nan
    table.obsm[KEY][5] = np.nan
    rest = np.setdiff1d(np.arange(24), [0, 1, 2, 5])
    score = adjusted_rand_score(table.obs["other"].iloc[rest], table.obs["truth"].iloc[rest])
    ax = pl.latent(three, KEY, resolution=0.1, labels="other", **SETTINGS)
    assert score < 0.5
    assert ax.get_title() == f"{KEY}, 3 clusters\nARI {score:.2f} with other, 20 rows"


def test_labels_can_be_the_colours(three: SpatialData) -> None:
    ax = pl.latent(three, KEY, color="truth", **SETTINGS)
    assert list(legend(ax)) == ["fat", "stroma", "tumour"]
    assert colour_by_row(ax, three) == [legend(ax)[name] for name in three.tables["table"].obs["truth"]]


def test_nan_rows_are_left_out(three: SpatialData) -> None:
    table = three.tables["table"]
    table.obsm[KEY][[2, 7], 1] = np.nan
    colours = colour_by_row(pl.latent(three, KEY, **SETTINGS), three)
    assert [i for i, colour in enumerate(colours) if colour is None] == [2, 7]
    ax = pl.latent(three, KEY, basis="umap", **SETTINGS)
    assert len(ax.collections[0].get_offsets()) == 22


def test_umap_keeps_the_groups_apart_and_colours_each_point(three: SpatialData) -> None:
    table = three.tables["table"]
    ax = pl.latent(three, KEY, basis="umap", color="truth", **SETTINGS)
    points = np.asarray(ax.collections[0].get_offsets())
    names = {colour: name for name, colour in legend(ax).items()}
    shown = np.array([names[tuple(np.round(colour, 4))] for colour in ax.collections[0].get_facecolors()])
    wanted = umap(neighbour_graph(table.obsm[KEY], n_neighbors=5, seed=0), seed=0)
    mine, theirs = (
        sorted((*xy, name) for xy, name in zip(np.round(where, 4).tolist(), what, strict=True))
        for where, what in ((points, shown), (wanted, table.obs["truth"]))
    )
    assert mine == theirs
    assert (ax.get_xlabel(), len(ax.get_xticks())) == ("UMAP 1", 0)


def test_the_object_stays_as_it_is(three: SpatialData) -> None:
    table = three.tables["table"]
    before = table.copy()
    for basis in ("tissue", "umap"):
        pl.latent(three, KEY, basis=basis, labels="truth", **SETTINGS)
    assert sorted(table.obsm) == sorted(before.obsm)
    assert (list(table.obs), sorted(table.uns), sorted(table.obsp)) == (
        list(before.obs), sorted(before.uns), sorted(before.obsp)
    )  # fmt: skip
    np.testing.assert_array_equal(table.obsm[KEY], before.obsm[KEY])


def test_the_image_lies_beneath_and_given_axes_are_used(make_sdata) -> None:
    sdata = make_sdata(turn=40.0)
    sdata.tables["table"].obsm[KEY] = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    mine = plt.subplots()[1]
    ax = pl.latent(sdata, KEY, ax=mine, coordinate_system="micrometers", alpha=0.5, **SETTINGS)
    assert ax is mine
    assert len(ax.images) == 1
    assert set(np.stack(drawn(ax)["color"])[:, 3]) == {0.5}


def test_every_two_colours_can_be_told_apart_by_all_eyes() -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    rgb = np.array([to_rgb(colour) for colour in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for sight in (np.eye(3), np.array(protan), np.array(deutan)):  # Machado et al. 2009, severity 1
        seen = np.clip(linear @ sight.T, 0, 1)
        lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
        assert min(float(deltaE_ciede2000(a, b)) for a, b in itertools.combinations(lab, 2)) > 11


@pytest.mark.slow  # datashader compiles for several seconds
def test_many_bins_keep_the_colours_of_the_legend(bare: SpatialData) -> None:
    n = 104  # beyond ten thousand, spatialdata-plot draws by datashader
    squares = [box(x * 1.0, y * 0.8, x + 1.0, y * 0.8 + 0.8) for y in range(n) for x in range(n)]
    frame = gpd.GeoDataFrame(geometry=squares, index=np.arange(n * n))
    bare.shapes["bins"] = ShapesModel.parse(frame, transformations=dict(bare.shapes["spots"].attrs["transform"]))
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * n * n), "instance_id": np.arange(n * n)})
    obs["name"] = np.array(["a", "b", "c"])[np.arange(n * n) // 50 % 3]
    table = type(bare.tables["table"])(obs=obs.set_axis(obs.index.astype(str)))
    table.obsm[KEY] = np.random.default_rng(0).normal(size=(n * n, 2)).astype(np.float32)
    bare.tables["many"] = TableModel.parse(table, region="bins", region_key="region", instance_key="instance_id")
    ax = pl.latent(bare, KEY, color="name", resolution=0.05, table_name="many", ax=plt.subplots(figsize=(3, 3))[1])
    colours = np.unique(np.asarray(ax.images[-1].get_array()).reshape(-1, 4), axis=0)
    shown = colours[colours[:, 3] == 255][:, :3] / 255
    wanted = np.array([to_rgb(colour) for colour in PALETTE[:3]])
    assert np.abs(shown[:, None] - wanted).max(axis=2).min(axis=1).max() < 0.02


class TestBadInput:
    def test_an_entry_that_is_not_there(self, three: SpatialData) -> None:
        with pytest.raises(ValueError, match="no obsm entry 'X_pixnte'. Closest: 'X_pixnet'"):
            pl.latent(three, "X_pixnte")
        with pytest.raises(ValueError, match="no obsm entry of table 'table' 'X_pixnte'. Closest: 'X_pixnet'"):
            pl.latent(three, "X_pixnte", table_name="table")

    def test_several_tables(self, three: SpatialData) -> None:
        three.tables["again"] = three.tables["table"].copy()
        with pytest.raises(ValueError, match=r"several tables have obsm\['X_pixnet'\]: \['again', 'table'\]"):
            pl.latent(three, KEY)

    def test_columns(self, three: SpatialData) -> None:
        with pytest.raises(ValueError, match="no column of obs 'truht'. Closest: 'truth'.*labels="):
            pl.latent(three, KEY, labels="truht")
        three.tables["table"].obs["depth"] = 0.5
        with pytest.raises(
            ValueError, match=r"obs\['depth'\] holds numbers of float64; color= takes a column of names"
        ):
            pl.latent(three, KEY, color="depth")

    def test_settings(self, three: SpatialData) -> None:
        with pytest.raises(ValueError, match="basis='pca' must be one of 'tissue', 'umap'"):
            pl.latent(three, KEY, basis="pca")
        with pytest.raises(ValueError, match="n_neighbors=24 must be at least 2 and below the number of rows .* 24"):
            pl.latent(three, KEY, n_neighbors=24)
        with pytest.raises(ValueError, match="resolution=0 must lie in"):
            pl.latent(three, KEY, resolution=0, **SETTINGS)

    def test_nothing_to_compare(self, three: SpatialData) -> None:
        three.tables["table"].obs["empty"] = pd.Categorical([None] * 24, categories=["a"])
        with pytest.raises(ValueError, match=r"no row has both a label in obs\['empty'\] and a value"):
            pl.latent(three, KEY, labels="empty", **SETTINGS)

    def test_more_groups_than_colours(self, three: SpatialData) -> None:
        three.tables["table"].obs["id"] = three.tables["table"].obs_names
        with pytest.raises(ValueError, match="24 groups, and only 20 colours .* choose another color="):
            pl.latent(three, KEY, color="id", **SETTINGS)
