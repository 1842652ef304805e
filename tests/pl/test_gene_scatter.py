"""Spot by spot: what is on which axis, and how many."""

from __future__ import annotations

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import pearsonr
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from stpredict import pl


def test_points_titles_and_labels(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    counts = table.X.toarray().astype(float)
    truth = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, 1]
    pred = table.layers["pixnet"][:, 1].astype(float)
    ax = pl.gene_scatter(sdata, "pixnet", gene="SCD")
    offsets = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(
        offsets[np.lexsort(offsets.T)], np.column_stack([truth, pred])[np.lexsort([truth, pred])]
    )
    assert ax.get_title() == f"SCD\nr = {pearsonr(truth, pred).statistic:.2f}, 24 spots"
    assert ax.get_xlabel() == "measured (log1p cp10k)"
    assert ax.get_ylabel() == "pixnet (log1p cp10k)"
    assert ax.get_xlim() == ax.get_ylim()


def test_only_scored_spots_are_points(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    table.layers["pixnet"][4] = np.nan
    dense = table.X.toarray()
    dense[9] = 1
    table.X = type(table.X)(dense)
    ax = pl.gene_scatter(sdata, "pixnet", gene="SCD")
    assert len(ax.collections[0].get_offsets()) == 22
    assert "22 spots" in ax.get_title()


def test_spots_not_wholly_on_the_image_are_not_scored(sdata: SpatialData) -> None:
    spots = sdata.shapes["spots"]
    geometry = list(spots.geometry)
    geometry[0] = Point(3.0, 15.0)  # radius 7
    moved = gpd.GeoDataFrame({"radius": spots["radius"]}, geometry=geometry, index=spots.index)
    sdata.shapes["spots"] = ShapesModel.parse(moved, transformations=dict(spots.attrs["transform"]))
    assert "23 spots" in pl.gene_scatter(sdata, "pixnet", gene="GNAS").get_title()


def test_a_constant_prediction_has_no_correlation(sdata: SpatialData) -> None:
    sdata.tables["table"].layers["pixnet"][:, 0] = 2.5
    assert pl.gene_scatter(sdata, "pixnet", gene="GNAS").get_title() == "GNAS\nr not defined, 24 spots"


def test_it_draws_on_the_axes_given(sdata: SpatialData) -> None:
    figure, ax = plt.subplots()
    assert pl.gene_scatter(sdata, "pixnet", gene="SCD", ax=ax, color="C3") is ax
    assert plt.get_fignums() == [figure.number]
    np.testing.assert_allclose(ax.collections[0].get_facecolors()[0][:3], plt.matplotlib.colors.to_rgb("C3"))


def test_a_gene_that_is_not_there(sdata: SpatialData) -> None:
    with pytest.raises(ValueError, match=r"has no gene 'SCD1' among its 5. Closest: \['SCD'\]"):
        pl.gene_scatter(sdata, "pixnet", gene="SCD1")
    assert plt.get_fignums() == []


def test_no_spot_with_both_values(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    table.layers["other"] = table.layers["pixnet"].copy()
    table.layers["pixnet"][:12] = np.nan
    table.layers["other"][12:] = np.nan
    with pytest.raises(ValueError, match="no scored spot has both"):
        pl.gene_scatter(sdata, "pixnet", gene="SCD", measured="other")
