"""Measured and predicted side by side: one scale, and the correlation of the protocol's spots."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from spatialdata import SpatialData

from stpredict import pl


def _measured(sdata: SpatialData) -> np.ndarray:
    counts = sdata.tables["table"].X.toarray().astype(float)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def _set_row(sdata: SpatialData, row: int, counts: list[int]) -> None:
    table = sdata.tables["table"]
    dense = table.X.toarray()
    dense[row] = counts
    table.X = type(table.X)(dense)


def test_one_colour_scale_one_bar_and_the_correlation(sdata: SpatialData) -> None:
    axes = pl.compare(sdata, "pixnet", gene="GNAS")
    assert axes.shape == (2,)
    both = np.concatenate([_measured(sdata)[:, 0], sdata.tables["table"].layers["pixnet"][:, 0]])
    clims = [ax.collections[0].get_clim() for ax in axes]
    assert clims[0] == clims[1] == pytest.approx((both.min(), both.max()))
    bars = [ax for ax in axes[0].figure.axes if ax not in axes]
    assert len(bars) == 1
    assert bars[0].get_ylabel() == "log1p cp10k"
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    r = pearsonr(_measured(sdata)[:, 0], sdata.tables["table"].layers["pixnet"][:, 0].astype(float)).statistic
    assert axes[0].get_title() == "GNAS\nmeasured"
    assert axes[1].get_title() == f"GNAS\npixnet, r = {r:.2f}, 24 spots"


def test_shallow_spots_enter_neither_map_nor_score(bare: SpatialData) -> None:
    _set_row(bare, 5, [3, 0, 0, 0, 0])  # its cp10k would be the highest of all
    truth, pred = _measured(bare)[:, 0], bare.tables["table"].layers["pixnet"][:, 0].astype(float)
    keep = np.arange(24) != 5
    axes = pl.compare(bare, "pixnet", gene="GNAS")
    assert f"r = {pearsonr(truth[keep], pred[keep]).statistic:.2f}, 23 spots" in axes[1].get_title()
    assert [len(ax.collections[0].get_paths()) for ax in axes] == [23, 24]
    assert axes[0].collections[0].get_clim()[1] < 9
    lowered = pl.compare(bare, "pixnet", gene="GNAS", min_counts=1)
    assert "24 spots" in lowered[1].get_title()
    assert lowered[0].collections[0].get_clim()[1] == pytest.approx(np.log1p(1e4))


def test_rows_without_a_prediction_are_absent_and_not_scored(bare: SpatialData) -> None:
    bare.tables["table"].layers["pixnet"][[1, 2]] = np.nan
    axes = pl.compare(bare, "pixnet", gene="GNAS")
    assert [len(ax.collections[0].get_paths()) for ax in axes] == [24, 22]
    assert "22 spots" in axes[1].get_title()


def test_a_measured_layer_in_its_own_target(bare: SpatialData) -> None:
    table = bare.tables["table"]
    table.layers["normed"] = table.layers["pixnet"] * 2 + 1
    table.uns["stpredict"]["pixnet"]["target"] = "as_is"
    axes = pl.compare(bare, "pixnet", gene="GNAS", measured="normed")
    assert "r = 1.00, 24 spots" in axes[1].get_title()
    assert [ax for ax in axes[0].figure.axes if ax not in axes][0].get_ylabel() == "layer 'normed', unit not recorded"
    with pytest.raises(ValueError, match="predicts target 'as_is'.*measured="):
        pl.compare(bare, "pixnet", gene="GNAS")


def test_without_an_image(bare: SpatialData) -> None:
    axes = pl.compare(bare, "pixnet", gene="GNAS")
    assert not axes[0].images
    assert "24 spots" in axes[1].get_title()


def test_rows_of_other_shapes_are_not_scored(bare: SpatialData) -> None:
    bare.shapes["elsewhere"] = bare.shapes["spots"]
    table = bare.tables["table"]
    table.obs["region"] = pd.Categorical(["spots"] * 14 + ["elsewhere"] * 10)
    table.layers["pixnet"][14:] = np.nan
    table.uns["spatialdata_attrs"]["region"] = ["spots", "elsewhere"]
    assert "14 spots" in pl.compare(bare, "pixnet", gene="GNAS", shapes_key="spots")[1].get_title()
    axes = pl.compare(bare, "pixnet", gene="GNAS", shapes_key="elsewhere")
    assert axes[1].get_title() == "GNAS\npixnet, r not defined, 0 spots"
    assert [len(ax.collections) for ax in axes] == [1, 0]


def test_it_draws_on_two_axes_given(bare: SpatialData) -> None:
    figure, grid = plt.subplots(2, 2)
    axes = pl.compare(bare, "pixnet", gene="GNAS", axes=grid[1])
    assert list(axes) == list(grid[1])
    assert plt.get_fignums() == [figure.number]
    assert not grid[0, 0].collections
    with pytest.raises(ValueError, match="axes"):
        pl.compare(bare, "pixnet", gene="GNAS", axes=grid)
    with pytest.raises(ValueError, match="axes"):
        pl.compare(bare, "pixnet", gene="GNAS", axes=grid[0, 0])


class TestBadInput:
    def test_x_without_counts(self, sdata: SpatialData) -> None:
        sdata.tables["table"].X = sdata.tables["table"].X * 0.5
        with pytest.raises(ValueError, match="X of table 'table' does not hold raw counts.*measured="):
            pl.compare(sdata, "pixnet", gene="GNAS")

    def test_no_spot_deep_enough(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="no row of table 'table' has 10000 counts.*min_counts="):
            pl.compare(sdata, "pixnet", gene="GNAS", min_counts=10_000)

    def test_a_measured_layer_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="no layer 'counts'"):
            pl.compare(sdata, "pixnet", gene="GNAS", measured="counts")


def test_small_shapes_need_fewer_counts_to_be_shown(sdata: SpatialData) -> None:
    table = sdata.tables["table"]  # shapes of 28 um need 500 x (28 / 55)^2 = 130 counts
    counts = np.full((24, 5), 30.0)
    counts[0] = 25.0
    table.X = type(table.X)(counts)
    axes = pl.compare(sdata, "pixnet", gene="GNAS")
    assert [len(ax.collections[0].get_paths()) for ax in axes] == [23, 24]
    assert len(pl.expression(sdata, None, gene="GNAS").collections[0].get_paths()) == 23
    assert "r not defined, 23 spots" in pl.gene_scatter(sdata, "pixnet", gene="GNAS").get_title()
    del sdata.images["image"]  # no scale: as for spots of 55 um and more
    with pytest.raises(ValueError, match="no row of table 'table' has 500 counts"):
        pl.expression(sdata, None, gene="GNAS")


def test_a_crop_is_the_same_on_both_maps_and_leaves_the_correlation(sdata: SpatialData) -> None:
    whole, part = (
        pl.compare(sdata, "pixnet", gene="GNAS"),
        pl.compare(sdata, "pixnet", gene="GNAS", crop=(30, 10, 70, 60)),
    )
    assert [ax.get_title() for ax in whole] == [ax.get_title() for ax in part]
    assert [(ax.get_xlim(), ax.get_ylim()) for ax in part] == [((30, 70), (60, 10))] * 2
    n = [len(ax.collections[0].get_paths()) for ax in part]
    assert n[0] == n[1] < 24
