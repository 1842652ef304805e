"""What `pl.expression` draws: each value in its own shape, nothing where there is none."""

from __future__ import annotations

import warnings

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from shapely import Polygon, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from stpredict import pl
from stpredict.pl._map import shapes_view

COUNTS_NEEDED = 500


def drawn(ax: plt.Axes) -> pd.DataFrame:
    """Centre and colour of every shape on the axes."""
    (collection,) = ax.collections
    boxes = [path.get_extents(collection.get_transform() - ax.transData) for path in collection.get_paths()]
    centres = np.array([[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2] for b in boxes])
    return pd.DataFrame({"x": centres[:, 0], "y": centres[:, 1], "color": list(collection.get_facecolors())})


def expected(sdata: SpatialData, values: np.ndarray) -> pd.DataFrame:
    """By instance id: where each row's spot lies, and its value."""
    table = sdata.tables["table"]
    spots = sdata.shapes["spots"].loc[table.obs["instance_id"]]
    return pd.DataFrame({"x": spots.geometry.x.to_numpy(), "y": spots.geometry.y.to_numpy(), "value": values})


def assert_drawn(ax: plt.Axes, truth: pd.DataFrame, norm: Normalize, cmap: str = "viridis") -> None:
    truth = truth.dropna()
    got = drawn(ax)
    assert len(got) == len(truth)
    joined = got.round(6).merge(truth.round({"x": 6, "y": 6}), on=["x", "y"])
    assert len(joined) == len(truth)
    np.testing.assert_allclose(np.stack(joined["color"]), colormaps[cmap](norm(joined["value"])), atol=1e-6)


def test_every_spot_gets_its_own_value_whatever_the_order_of_rows(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    assert list(table.obs["instance_id"]) != list(sdata.shapes["spots"].index)
    values = np.asarray(table[:, "SCD"].layers["pixnet"]).ravel()
    ax = pl.expression(sdata, "pixnet", gene="SCD")
    assert_drawn(ax, expected(sdata, values), Normalize(values.min(), values.max()))


def test_the_table_is_the_only_one_or_that_of_the_shapes(bare: SpatialData) -> None:
    bare.tables["measured"] = bare.tables.pop("table")
    drawn_alone = drawn(pl.expression(bare, "pixnet", gene="GNAS"))
    other = bare.tables["measured"].copy()
    other.obs["region"] = pd.Categorical(["cells"] * len(other))
    other.uns["spatialdata_attrs"] = {**other.uns["spatialdata_attrs"], "region": "cells"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cells themselves are not there
        bare.tables["of_cells"] = other
    assert drawn(pl.expression(bare, "pixnet", gene="GNAS")).equals(drawn_alone)
    bare.tables["measured"].uns["spatialdata_attrs"]["region"] = "cells"
    with pytest.raises(ValueError, match=r"none of the tables \['measured', 'of_cells'\] annotates the shapes 'spots'"):
        pl.expression(bare, "pixnet", gene="GNAS")


def test_nan_is_not_drawn_and_not_zero(bare: SpatialData) -> None:
    table = bare.tables["table"]
    table.layers["pixnet"][[2, 7, 11], 0] = np.nan
    values = table.layers["pixnet"][:, 0]
    ax = pl.expression(bare, "pixnet", gene="GNAS")
    assert_drawn(ax, expected(bare, values), Normalize(np.nanmin(values), np.nanmax(values)))
    assert ax.figure.axes[-1].get_ylim()[0] == pytest.approx(np.nanmin(values))


def test_shapes_without_a_row_are_absent(bare: SpatialData) -> None:
    bare.tables["table"] = bare.tables["table"][:10].copy()
    assert len(drawn(pl.expression(bare, "pixnet", gene="GNAS"))) == 10


def test_the_measurement_follows_the_protocol(bare: SpatialData) -> None:
    table = bare.tables["table"]
    counts = table.X.toarray().astype(float)
    counts[3] = [1, 0, 0, 2, 0]
    table.X = type(table.X)(counts.astype(np.float32))
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, 2]
    values[counts.sum(1) < COUNTS_NEEDED] = np.nan
    assert np.isnan(values).sum() == 1
    ax = pl.expression(bare, None, gene="C3")  # a colour to matplotlib, a gene to us
    assert_drawn(ax, expected(bare, values), Normalize(np.nanmin(values), np.nanmax(values)))
    assert ax.figure.axes[-1].get_ylabel() == "log1p cp10k"


def test_the_image_lies_beneath_and_the_view_is_cut_to_the_shapes(make_sdata) -> None:
    sdata = make_sdata(turn=40.0)
    ax = pl.expression(sdata, "pixnet", gene="GNAS", coordinate_system="micrometers")
    assert len(ax.images) == 1
    assert ax.images[0].get_zorder() < ax.collections[0].get_zorder()
    points = drawn(ax)[["x", "y"]].to_numpy()
    (x0, x1), (y1, y0) = ax.get_xlim(), ax.get_ylim()
    assert (points > [x0, y0]).all()
    assert (points < [x1, y1]).all()
    assert x1 - x0 < 1.2 * (np.ptp(points[:, 0]) + 28)  # spots of 14 px at 2 um
    scale_bar = [artist for artist in ax.artists if type(artist).__name__ == "ScaleBar"]
    assert scale_bar[0].dx == 1.0
    assert len(ax.get_xticks()) == 0


def test_without_micrometres_ticks_stay(sdata: SpatialData) -> None:
    for element in (*sdata.images.values(), *sdata.shapes.values()):
        nodes = element.values() if hasattr(element, "children") else [element]
        for node in nodes:
            (node["image"] if hasattr(node, "data_vars") else node).attrs["transform"].pop("micrometers")
    ax = pl.expression(sdata, "pixnet", gene="GNAS")
    assert not ax.artists
    assert len(ax.get_xticks()) > 0


def test_polygons_with_their_own_table(bare: SpatialData) -> None:
    cells = [box(10, 10, 30, 20), Polygon([(40, 40), (70, 40), (55, 70)]), box(90, 20, 110, 60)]
    frame = gpd.GeoDataFrame(geometry=cells, index=[7, 5, 9])
    bare.shapes["cells"] = ShapesModel.parse(frame, transformations=dict(bare.shapes["spots"].attrs["transform"]))
    table = bare.tables["table"][:3].copy()
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["cells"] * 3), [9, 7, 5]
    table.layers["pixnet"][:, 0] = [3.0, 1.0, 2.0]
    bare.tables["cell_table"] = TableModel.parse(
        table, region="cells", region_key="region", instance_key="instance_id", overwrite_metadata=True
    )
    ax = pl.expression(bare, "pixnet", gene="GNAS", table_name="cell_table")
    got = drawn(ax).sort_values("x")
    np.testing.assert_allclose(got["x"], [20, 55, 100])
    np.testing.assert_allclose(np.stack(got["color"]), colormaps["viridis"]([0.0, 0.5, 1.0]), atol=1e-6)


@pytest.mark.slow  # datashader compiles for several seconds
def test_many_bins_are_drawn_too(bare: SpatialData) -> None:
    n = 130  # beyond ten thousand, spatialdata-plot draws by datashader
    squares = [box(x * 1.0, y * 0.8, x + 1.0, y * 0.8 + 0.8) for y in range(n) for x in range(n)]
    frame = gpd.GeoDataFrame(geometry=squares, index=np.arange(n * n))
    bare.shapes["bins"] = ShapesModel.parse(frame, transformations=dict(bare.shapes["spots"].attrs["transform"]))
    values = np.repeat([1.0, np.nan, 3.0, 3.0], n * n // 4).astype(np.float32)[:, None]
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * n * n), "instance_id": np.arange(n * n)})
    table = type(bare.tables["table"])(values, obs=obs.set_axis(obs.index.astype(str)), layers={"pixnet": values})
    table.var_names = ["GNAS"]
    bare.tables["bins_pixnet"] = TableModel.parse(table, region="bins", region_key="region", instance_key="instance_id")
    ax = pl.expression(bare, "pixnet", gene="GNAS", table_name="bins_pixnet", ax=plt.subplots(figsize=(3, 3))[1])
    colours = np.unique(np.asarray(ax.images[-1].get_array()).reshape(-1, 4), axis=0)
    shown = colours[colours[:, 3] == 255] / 255
    for value in (0.0, 1.0):
        assert np.abs(shown[:, :3] - colormaps["viridis"](value)[:3]).max(axis=1).min() < 0.02
    assert len(shown) == 2  # and no third colour for NaN
    assert ax.figure.axes[-1].get_ylim() == (1.0, 3.0)


def test_limits_alpha_and_arrows(bare: SpatialData) -> None:
    ax = pl.expression(bare, "pixnet", gene="SCD", vmin=7.0, vmax=7.1, alpha=0.5, cmap="magma")
    assert set(np.stack(drawn(ax)["color"])[:, 3]) == {0.5}
    assert ax.figure.axes[-1].get_ylim() == (7.0, 7.1)
    assert ax.collections[0].get_clim() == (7.0, 7.1)


def test_a_constant_gene_still_has_a_scale(bare: SpatialData) -> None:
    bare.tables["table"].layers["pixnet"][:, 0] = 2.0
    ax = pl.expression(bare, "pixnet", gene="GNAS")
    assert ax.figure.axes[-1].get_ylim() == (1.5, 2.5)


class TestBadInput:
    def test_a_layer_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="no layer 'pixnte'. Closest: 'pixnet'"):
            pl.expression(sdata, "pixnte", gene="GNAS")

    def test_a_table_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="no table 'tabel'. Closest: 'table'"):
            pl.expression(sdata, "pixnet", gene="GNAS", table_name="tabel")

    def test_a_gene_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match=r"table 'table' has no gene 'Erbb' among its 5. Closest: \['ERBB2'\]"):
            pl.expression(sdata, "pixnet", gene="Erbb")

    def test_a_gene_outside_the_panel(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="the panel of layer 'pixnet' has no gene 'FASN' among its 4"):
            pl.expression(sdata, "pixnet", gene="FASN")

    def test_shapes_that_the_table_does_not_annotate(self, sdata: SpatialData) -> None:
        sdata.shapes["cells"] = sdata.shapes["spots"]
        with pytest.raises(ValueError, match=r"annotates \['spots'\], not 'cells'"):
            pl.expression(sdata, "pixnet", gene="GNAS", shapes_key="cells")
        with pytest.raises(ValueError, match="no shapes 'cell'. Closest: 'cells'"):
            pl.expression(sdata, "pixnet", gene="GNAS", shapes_key="cell")

    def test_counts_that_are_none(self, sdata: SpatialData) -> None:
        sdata.tables["table"].X = sdata.tables["table"].X * 0.5
        with pytest.raises(ValueError, match="does not hold raw counts"):
            pl.expression(sdata, None, gene="GNAS")


def test_a_crop_shows_the_shapes_in_it_and_scales_to_them(sdata: SpatialData) -> None:
    table, spots = sdata.tables["table"], sdata.shapes["spots"]
    truth = expected(sdata, np.asarray(table[:, "SCD"].layers["pixnet"]).ravel())
    x, y, r = truth["x"], truth["y"], spots["radius"].iloc[0]
    seen = (x + r > 30) & (x - r < 70) & (y + r > 10) & (y - r < 60)
    assert 0 < seen.sum() < len(truth)
    ax = pl.expression(sdata, "pixnet", gene="SCD", crop=(30, 10, 70, 60))
    assert_drawn(ax, truth[seen], Normalize(truth["value"][seen].min(), truth["value"][seen].max()))
    assert (ax.get_xlim(), ax.get_ylim()) == ((30, 70), (60, 10))


def test_a_crop_between_the_shapes_has_nothing_to_draw(sdata: SpatialData) -> None:
    with pytest.raises(ValueError, match="has nothing of what is drawn"):
        pl.expression(sdata, "pixnet", gene="SCD", crop=(-50, -50, -40, -40))
    x0, y0, _, _ = shapes_view(sdata, "spots", "global")
    with pytest.raises(ValueError, match="no shape of 'spots' lies in crop="):
        pl.expression(sdata, "pixnet", gene="SCD", crop=(x0, y0, x0 + 0.1, y0 + 0.1))


def test_a_circle_beside_the_corner_of_a_crop_is_not_in_it(sdata: SpatialData) -> None:
    spots = sdata.shapes["spots"]
    x, y, r = spots.geometry.x.iloc[0], spots.geometry.y.iloc[0], spots["radius"].iloc[0]
    corner = 0.8 * r  # its box reaches there, its disc does not
    crop = (x - 1.2 * r, y - 1.2 * r, x - corner, y - corner)
    with pytest.raises(ValueError, match="no shape of 'spots' lies in crop="):
        pl.expression(sdata, "pixnet", gene="SCD", crop=crop)


def test_a_crop_beside_the_picture_is_drawn_without_it(sdata: SpatialData) -> None:
    half = sdata.images["image"]["scale0"].image.isel(x=slice(0, 40))
    sdata.images["image"] = Image2DModel.parse(
        half.data,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations=get_transformation(half, get_all=True),
    )
    for layer in ("pixnet", None):
        ax = pl.expression(sdata, layer, gene="SCD", crop=sdata.shapes["spots"].total_bounds + [40, 0, 0, 0])
        assert len(ax.images) == 0
        assert len(drawn(ax)) > 0
    assert len(pl.compare(sdata, "pixnet", gene="SCD", crop=(70, 10, 120, 60))[0].images) == 0
