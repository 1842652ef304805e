"""What `pl.raster` draws: one channel, where it belongs, and nothing where there is no value."""

from __future__ import annotations

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation

from stpredict import pl


def _overlay(ax: plt.Axes):
    return ax.images[-1]


def _corner(ax: plt.Axes, artist, point: tuple[float, float]) -> np.ndarray:
    """Where a point of an image's own frame lies in the axes' data coordinates."""
    return (artist.get_transform() - ax.transData).transform(point)


def test_the_gene_is_drawn_where_it_belongs(sdata: SpatialData) -> None:
    ax = pl.raster(sdata, "pixnet", gene="SCD")
    drawn = _overlay(ax).get_array()
    channel = sdata.images["pixnet"].sel(c="SCD").to_numpy()
    # the view is cut to what has values, so the drawn part is a window of the channel
    x0, y0 = _corner(ax, _overlay(ax), (0, 0)) / 4
    height, width = drawn.shape
    window = channel[int(y0) : int(y0) + height, int(x0) : int(x0) + width]
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(window))
    np.testing.assert_array_equal(drawn.compressed(), window[~np.isnan(window)].astype(np.float32))
    np.testing.assert_allclose(_corner(ax, _overlay(ax), (width, height)), [(x0 + width) * 4, (y0 + height) * 4])
    assert np.isfinite(channel).sum() == drawn.count()


def test_nan_is_absent_and_the_scale_is_that_of_the_values(bare: SpatialData) -> None:
    ax = pl.raster(bare, "pixnet", gene="GNAS")
    image, channel = _overlay(ax), bare.images["pixnet"].sel(c="GNAS").to_numpy()
    assert image.get_clim() == (np.nanmin(channel), np.nanmax(channel))
    assert 0 < np.ma.getmaskarray(image.get_array()).sum() < image.get_array().size
    assert image.cmap.get_bad()[3] == 0.0
    assert image.get_alpha() == 0.6


def test_text_and_colour_bar(sdata: SpatialData) -> None:
    ax = pl.raster(sdata, "pixnet", gene="GNAS", vmin=1.5, vmax=2.5)
    assert ax.get_title() == "GNAS"
    bar = ax.figure.axes[-1]
    assert bar.get_ylabel() == "log1p cp10k"
    assert bar.get_ylim() == (1.5, 2.5)
    assert [artist for artist in ax.artists if type(artist).__name__ == "ScaleBar"][0].dx == pytest.approx(2.0)
    assert ax.yaxis_inverted()


@pytest.mark.parametrize(
    ("provenance", "label"),
    [
        ({"target": "log1p_cp10k", "link": "log1p"}, "log1p cp10k, before log1p"),
        ({"target": "as_is"}, "units of the training layer"),
        ({}, "raster 'pixnet', unit not recorded"),
    ],
)
def test_the_unit_comes_from_the_provenance(bare: SpatialData, provenance: dict, label: str) -> None:
    bare.attrs["stpredict"]["images/pixnet"] = provenance
    assert pl.raster(bare, "pixnet", gene="GNAS").figure.axes[-1].get_ylabel() == label


def test_it_draws_on_the_axes_given_and_leaves_the_object_alone(sdata: SpatialData) -> None:
    figure, axes = plt.subplots(1, 2)
    before = set(sdata.images), set(sdata.shapes), dict(sdata.attrs)
    assert pl.raster(sdata, "pixnet", gene="GNAS", ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
    assert not axes[0].images
    assert (set(sdata.images), set(sdata.shapes), dict(sdata.attrs)) == before
    assert not hasattr(sdata, "plotting_tree")


@pytest.mark.parametrize(("turn", "system"), [(0.0, "global"), (37.0, "micrometers")])
def test_raster_and_image_lie_over_each_other(make_sdata, turn: float, system: str) -> None:
    sdata = make_sdata(turn=turn)
    ax = pl.raster(sdata, "pixnet", gene="GNAS", coordinate_system=system)
    photo, overlay = ax.images
    assert photo.get_array().shape[2] == 3
    to_system = {
        key: get_transformation(sdata.images[key], system).to_affine_matrix(("x", "y"), ("x", "y"))
        for key in ("image", "pixnet")
    }
    for artist, key in ((photo, "image"), (overlay, "pixnet")):
        back = np.linalg.inv(to_system[key]) @ np.append(_corner(ax, artist, (0, 0)), 1)
        assert back[:2] == pytest.approx(np.rint(back[:2]), abs=1e-6)  # a whole pixel of its own element
        edges = (_corner(ax, artist, (1, 0)) - _corner(ax, artist, (0, 0))), to_system[key][:2, 0]
        np.testing.assert_allclose(*edges, atol=1e-9)


def test_without_an_image_the_map_stands_alone(bare: SpatialData) -> None:
    assert len(pl.raster(bare, "pixnet", gene="GNAS").images) == 1


def test_only_the_gene_is_read() -> None:
    read = []

    def block(block_info=None) -> np.ndarray:
        read.append(block_info[None]["array-location"][0])
        return np.full(block_info[None]["chunk-shape"], 1.0 + block_info[None]["array-location"][0][0], np.float16)

    values = da.map_blocks(
        block, chunks=((1,) * 250, (64, 64), (64, 64)), dtype=np.float16, meta=np.empty((0, 0, 0), np.float16)
    )
    sdata = SpatialData(
        images={"big": Image2DModel.parse(values, dims=("c", "y", "x"), c_coords=[f"g{i}" for i in range(250)])}
    )
    sdata.attrs["stpredict"] = {"images/big": {}}
    read.clear()
    ax = pl.raster(sdata, "big", gene="g17")
    assert {tuple(channel) for channel in read} == {(17, 18)}
    assert ax.images[0].get_array().max() == 18.0


def test_a_large_raster_is_drawn_at_display_scale(bare: SpatialData) -> None:
    values = np.zeros((2, 2000, 3000), np.float16)
    values[1, :, :1500] = 3.0
    values[1, :10] = np.nan
    transformations = {"global": Scale([128 / 3000, 128 / 3000], axes=("x", "y"))}
    bare.images["wide"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), c_coords=["a", "b"], transformations=transformations
    )
    bare.attrs["stpredict"]["images/wide"] = {}
    ax = pl.raster(bare, "wide", gene="b", ax=plt.subplots(figsize=(3, 2))[1])
    drawn = _overlay(ax).get_array()
    assert max(drawn.shape) < 1600
    assert drawn.mean() == pytest.approx(1.5, abs=0.01)
    assert drawn.count() / drawn.size == pytest.approx(0.995, abs=0.004)


class TestBadInput:
    def test_a_gene_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match=r"raster 'pixnet' has no gene 'gnsa' among its 5. Closest: \['GNAS'\]"):
            pl.raster(sdata, "pixnet", gene="gnsa")

    def test_a_raster_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="no raster 'pixnett'. Closest: 'pixnet'"):
            pl.raster(sdata, "pixnett", gene="GNAS")

    def test_several_images_and_no_key(self, sdata: SpatialData) -> None:
        sdata.images["other"] = sdata.images["image"]
        with pytest.raises(ValueError, match=r"several images: \['image', 'other'\].*image_key="):
            pl.raster(sdata, "pixnet", gene="GNAS")
        assert len(pl.raster(sdata, "pixnet", gene="GNAS", image_key="other").images) == 2

    def test_a_coordinate_system_that_is_not_there(self, sdata: SpatialData) -> None:
        with pytest.raises(
            ValueError, match=r"no transformation to coordinate system 'um'; it maps to \['global', 'micro"
        ):
            pl.raster(sdata, "pixnet", gene="GNAS", coordinate_system="um")

    def test_nothing_but_nan(self, sdata: SpatialData) -> None:
        sdata.images["pixnet"].loc["GNAS"] = np.nan
        with pytest.raises(ValueError, match="every value is NaN"):
            pl.raster(sdata, "pixnet", gene="GNAS")

    def test_limits_in_the_wrong_order(self, sdata: SpatialData) -> None:
        with pytest.raises(ValueError, match="from 3 down to 1"):
            pl.raster(sdata, "pixnet", gene="GNAS", vmin=3, vmax=1)

    def test_an_image_elsewhere(self, sdata: SpatialData) -> None:
        far = Image2DModel.parse(
            np.zeros((3, 8, 8), np.uint8), dims=("c", "y", "x"),
            transformations={"global": Scale([0.001, 0.001], axes=("x", "y"))},
        )  # fmt: skip
        sdata.images["far"] = far
        with pytest.raises(ValueError, match="nothing of image 'far' lies in what is drawn: x "):
            pl.raster(sdata, "pixnet", gene="GNAS", image_key="far")
        assert plt.get_fignums() == []


def test_a_crop_is_all_that_is_read_drawn_and_scaled(sdata: SpatialData) -> None:
    ax = pl.raster(sdata, "pixnet", gene="SCD", crop=(40, 20, 88, 60))
    channel = sdata.images["pixnet"].sel(c="SCD").to_numpy()[5:15, 10:22]  # 4 px a cell
    drawn = _overlay(ax).get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(channel))
    np.testing.assert_array_equal(drawn.compressed(), channel[np.isfinite(channel)].astype(np.float32))
    assert _overlay(ax).get_clim() == (np.nanmin(channel), np.nanmax(channel))
    assert (ax.get_xlim(), ax.get_ylim()) == ((40, 88), (60, 20))
    in_um = pl.raster(sdata, "pixnet", gene="SCD", crop=[80, 40, 176, 120], coordinate_system="micrometers")
    np.testing.assert_array_equal(_overlay(in_um).get_array().filled(-1), drawn.filled(-1))


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ((40, 20, 40, 60), "crop=.*must be x0, y0, x1, y1 with x0 < x1"),
        ((0, 0, np.nan, 60), "crop=.* must be a list, each of it a finite number or None"),
        ((0, 0, np.inf, 60), "crop"),
        ((0, 0, 60), "crop=.*must be x0, y0, x1, y1"),
        ("all", "crop"),
        ((1000, 0, 1200, 60), "has nothing of what is drawn, which lies at x 0 to 128, y 0 to 96"),
    ],
)
def test_a_crop_that_is_no_box_on_the_map_is_refused(sdata: SpatialData, crop: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pl.raster(sdata, "pixnet", gene="SCD", crop=crop)


def test_the_scale_of_a_turned_crop_is_that_of_what_is_shown(make_sdata) -> None:
    sdata = make_sdata(turn=45)
    element = sdata.images["pixnet"]
    affine = get_transformation(element, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    h, w = element.sizes["y"], element.sizes["x"]
    x, y = np.einsum(
        "ij,jyx->iyx", affine[:2], np.stack([*np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), np.ones((h, w))])
    )
    finite = np.isfinite(element.sel(c="SCD").to_numpy())
    centre = x[finite].mean(), y[finite].mean()
    crop = (centre[0] - 15, centre[1] - 15, centre[0] + 15, centre[1] + 15)
    far = (np.abs(x - centre[0]) > 15 + 6) | (np.abs(y - centre[1]) > 15 + 6)
    values = element.to_numpy()
    values[:, far] = 100.0
    sdata.images["pixnet"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), c_coords=list(element.c.to_numpy()),
        transformations=get_transformation(element, get_all=True),
    )  # fmt: skip
    ax = pl.raster(sdata, "pixnet", gene="SCD", crop=np.array(crop))
    assert _overlay(ax).get_clim()[1] < 50


def test_a_crop_without_values_draws_nothing_and_opens_no_figure(sdata: SpatialData) -> None:
    with pytest.raises(ValueError, match="every value is NaN in raster 'pixnet' at x 0 to 12, y 0 to 90"):
        pl.raster(sdata, "pixnet", gene="SCD", crop=(0, 0, 12, 90))
    assert plt.get_fignums() == []


def test_a_turned_crop_of_whole_numbers_has_no_zeros_of_what_is_not_shown(make_sdata) -> None:
    sdata = make_sdata(turn=45)
    element = sdata.images["pixnet"]
    values = np.random.default_rng(0).integers(120, 250, element.shape, dtype=np.uint8)
    sdata.images["pixnet"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), c_coords=list(element.c.to_numpy()),
        transformations=get_transformation(element, get_all=True),
    )  # fmt: skip
    ax = pl.raster(sdata, "pixnet", gene="SCD", crop=(40, 40, 80, 80))
    assert _overlay(ax).get_clim()[0] >= 120
