"""Sections out of SpatialData: the image at a working resolution, shapes in its frame, what was measured."""

from __future__ import annotations

import logging

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import shapely
from spatialdata import SpatialData, read_zarr
from spatialdata.transformations import Identity, Scale, remove_transformation

from stpredict import _coverage
from stpredict._spatialdata import SectionSpec, image_section, section, section_name, training_section, usable_rows
from stpredict._window import Window
from stpredict.datasets import her2st
from stpredict.metrics import log1p_cp10k

from .builders import boxes, circles, counts_table, make_spots, mask_labels, polygons, rgb, square_grid

GENES = ["G7", "G0", "G3"]


def test_section_is_in_working_pixels(spots):
    found = section(spots, at_mpp=1.0)  # 0.5 um per pixel: two pixels make one
    assert (found.mpp, found.image.scale) == (1.0, (2.0, 2.0))
    assert (found.image.height, found.image.width) == (100, 120)
    np.testing.assert_allclose(shapely.get_coordinates(found.geometry), square_grid() / 2)
    np.testing.assert_allclose(found.radius, 5.0)
    np.testing.assert_allclose(found.area, np.pi * 25)
    assert found.ids.tolist() == [f"s{i}" for i in range(20)]
    assert found.expression is None and found.genes is None and found.dropped == {}


def test_the_image_and_the_shapes_are_in_one_frame():
    """A white disk on black, and a circle on it: all inside is white, whatever the resolution and the pyramid."""
    y, x = np.mgrid[:200, :240] + 0.5
    disk = np.where(np.hypot(x - 130, y - 70) < 30, 255, 0).astype(np.uint8)
    for scale_factors in (None, [2, 2]):
        image = rgb(scale_factors=scale_factors)
        levels = [image] if scale_factors is None else [image[f"scale{i}"]["image"] for i in range(3)]
        for i, level in enumerate(levels):
            part = disk.reshape(200 >> i, 1 << i, 240 >> i, 1 << i).mean(axis=(1, 3))
            level.data = level.data * 0 + part.round().astype(np.uint8)
        sdata = SpatialData(images={"image": image}, shapes={"spots": circles([[130.0, 70.0]], 30.0)})
        for at_mpp in (0.5, 1.3, 2.0):
            found = section(sdata, at_mpp=at_mpp)
            pixels = found.image.read(found.image.window)[..., 0] / 255
            window = found.image.window
            share = _coverage.coverage(found.shapes, window).toarray().reshape(window.shape)
            assert np.abs(pixels - share)[1:-1, 1:-1].mean() < 0.01  # black outside, white inside, grey on the rim
            assert np.abs(pixels - share).max() < 0.55


@pytest.mark.parametrize(("at_mpp", "level"), [(0.5, 0), (0.9, 0), (1.0, 1), (1.9, 1), (2.0, 2), (9.0, 2)])
def test_the_pyramid_level_just_finer_is_read(at_mpp, level):
    sdata = make_spots(images={"image": rgb(scale_factors=[2, 2])})
    view = section(sdata, at_mpp=at_mpp).image
    assert view.pixels.shape == (3, 200 >> level, 240 >> level)
    assert view.scale == pytest.approx((at_mpp / 0.5 / 2**level,) * 2)
    assert (view.height, view.width) == (np.ceil(200 * 0.5 / at_mpp), np.ceil(240 * 0.5 / at_mpp))


def test_an_argument_for_mpp_moves_the_frame(spots):
    for element in (spots["image"], spots["spots"]):
        remove_transformation(element, "micrometers")
    with pytest.warns(UserWarning, match="mpp=0.25 um per pixel is hardly right.*shapes 'spots' say 5 by their size"):
        found = section(spots, SectionSpec(mpp=0.25), at_mpp=1.0)
    np.testing.assert_allclose(found.radius, 2.5)


def test_too_coarse_an_image_warns_or_raises(spots):
    with pytest.warns(UserWarning, match="image 'image' has 0.5 um per pixel, the model sees at 0.3"):
        section(spots, at_mpp=0.3)
    with pytest.raises(ValueError, match="image 'image' has 0.5 um per pixel.*Use a finer image"):
        section(spots, at_mpp=0.2)


def test_rows_off_the_tissue_are_empty_and_stay_in_place():
    sdata = make_spots(labels={"mask": mask_labels(np.mgrid[:200, :240][1] < 120)})
    found = section(sdata, SectionSpec(tissue_key="mask"), at_mpp=1.0)
    assert shapely.is_empty(found.geometry).tolist() == (square_grid()[:, 0] > 130).tolist()
    np.testing.assert_allclose(found.area, np.pi * 25)


@pytest.mark.parametrize("shapes", [
    {"spots": circles([[900.0, 50.0], [50.0, 400.0]], 10.0)},
    {"spots": polygons(boxes((-20, -20, -10, -10)))},
])  # fmt: skip
def test_all_shapes_outside_is_an_error(shapes):
    with pytest.raises(ValueError, match="shapes of 'spots' lie outside image 'image'. Check the transformations"):
        section(SpatialData(images={"image": rgb()}, shapes=shapes), at_mpp=1.0)


def test_all_shapes_off_the_tissue_is_an_error():
    sdata = make_spots(shapes={"mask": polygons(boxes((0, 0, 5, 5)))})
    with pytest.raises(ValueError, match="outside image 'image' and the tissue 'mask'"):
        section(sdata, SectionSpec(tissue_key="mask"), at_mpp=1.0)


def test_image_section_needs_no_shapes():
    found = image_section(SpatialData(images={"image": rgb()}), at_mpp=1.0)
    assert found.n_shapes == 0 and found.image.scale == (2.0, 2.0)


def test_names(spots, tmp_path):
    assert section(spots, at_mpp=1.0, name="mine").name == "mine"
    assert section_name(spots, "image") == "image"
    spots.write(tmp_path / "C5.zarr")
    assert section_name(read_zarr(tmp_path / "C5.zarr"), "image") == "C5"
    spots.attrs["name"] = "left"
    assert training_section(spots, genes=GENES, at_mpp=1.0).name == "left"


def test_a_stored_object_gives_the_same_section(spots, tmp_path):
    before = section(spots, at_mpp=1.3)
    spots.write(tmp_path / "x.zarr")
    after = section(read_zarr(tmp_path / "x.zarr"), at_mpp=1.3)
    np.testing.assert_array_equal(after.image.read(after.image.window), before.image.read(before.image.window))
    assert shapely.equals_exact(after.geometry, before.geometry, 0.0).all()
    np.testing.assert_array_equal(after.ids, before.ids)


def test_expression_is_the_target_of_each_shapes_own_row(spots):
    order = np.random.default_rng(1).permutation(20)
    spots.tables["table"] = spots.tables["table"][order].copy()
    found = training_section(spots, genes=GENES, at_mpp=1.0)
    counts = counts_table(spots.shapes["spots"].index).X.toarray()  # in the order of the shapes
    np.testing.assert_allclose(found.expression, log1p_cp10k(counts[:, [7, 0, 3]], counts.sum(axis=1)), rtol=1e-6)
    assert found.expression.dtype == np.float32 and found.genes == tuple(GENES)
    assert found.ids.tolist() == spots.shapes["spots"].index.tolist()
    assert found.grid is None and found.dropped == {}


def make_flawed():
    """Of 20 spots: 0 shallow, 1 empty, 2 without a row, 3 off the image, 4 out of tissue by the table."""
    xy = square_grid()
    xy[3] = 5.0
    shapes = circles(xy, 10.0)
    ids = [each for i, each in enumerate(shapes.index) if i != 2]
    counts = np.random.default_rng(0).poisson(200, (19, 12))
    counts[0], counts[1] = [499] + [0] * 11, 0
    in_tissue = [1] * 19
    in_tissue[3] = 0
    grid = {"array_row": np.arange(19) + 5, "array_col": np.arange(19)[::-1]}
    return make_spots(
        shapes={"spots": shapes}, tables={"table": counts_table(ids, counts=counts, in_tissue=in_tissue, **grid)}
    )


DROPPED = {
    "without a row in table 'table'": 1, "not wholly on the image": 1, "in_tissue is 0 in the table": 1,
    "fewer than 500 counts": 2,
}  # fmt: skip


def test_only_usable_spots_and_why_not():
    found = training_section(make_flawed(), SectionSpec(min_counts=500), genes=GENES, at_mpp=1.0)
    assert found.ids.tolist() == [f"s{i}" for i in range(5, 20)]
    assert found.dropped == DROPPED
    assert np.isfinite(found.expression).all()
    assert found.grid.tolist() == [[row + 5, 18 - row] for row in range(4, 19)]
    assert len(found.geometry) == len(found.radius) == len(found.area) == 15


@pytest.mark.parametrize(("radius", "least"), [(10.0, 17), (110.0, 500), (4.0, 3)])  # px of .5 um
def test_how_many_counts_are_needed_is_of_the_shapes_area_alone(radius, least):
    ids = [f"s{i}" for i in range(3)]
    counts = np.zeros((3, 12), int)
    counts[:, 0] = (least - 1, least, least * 9)
    shapes = circles(np.array([[300.0, 300.0], [320.0, 320.0], [340.0, 340.0]]), radius, ids=ids)
    sdata = SpatialData(
        images={"image": rgb(640, 640)}, shapes={"spots": shapes}, tables={"table": counts_table(ids, counts=counts)}
    )
    rows, dropped = usable_rows(sdata)
    assert rows.tolist() == [1, 2]
    assert list(dropped.values()) == [1]
    assert training_section(sdata, genes=GENES, at_mpp=1.0).ids.tolist() == ["s1", "s2"]
    assert usable_rows(sdata, SectionSpec(min_counts=least * 9))[0].tolist() == [2]


def test_usable_rows_are_the_same_spots_without_an_mpp():
    sdata = make_flawed()
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        del element.attrs["transform"]["micrometers"]
    rows, dropped = usable_rows(sdata)
    assert rows.tolist() == list(range(4, 19)) and dropped == DROPPED


@pytest.mark.parametrize("values", [[True, False], [1, 0], ["1", "0"], [1.0, 0.0], ["True", "False"]])
def test_in_tissue_of_any_type(spots, values):
    spots.tables["table"].obs["in_tissue"] = [values[0]] * 15 + [values[1]] * 5
    assert training_section(spots, genes=GENES, at_mpp=1.0).n_shapes == 15


def test_in_tissue_that_is_neither_is_refused(spots):
    spots.tables["table"].obs["in_tissue"] = ["yes"] * 20
    with pytest.raises(ValueError, match=r'obs\["in_tissue"\] must be 0 or 1, got \[\'yes\'\]'):
        training_section(spots, genes=GENES, at_mpp=1.0)


def test_spots_mostly_off_the_tissue_are_dropped_and_others_clipped():
    # columns at x = 30, 70, 110, 150, 190 with radius 10
    sdata = make_spots(shapes={"mask": polygons(boxes((0, 0, 147, 200)))})
    found = training_section(sdata, SectionSpec(tissue_key="mask"), genes=GENES, at_mpp=1.0)
    assert found.dropped == {"not on the tissue": 8}
    sdata.shapes["mask"] = polygons(boxes((0, 0, 151, 200)))
    found = training_section(sdata, SectionSpec(tissue_key="mask"), genes=GENES, at_mpp=1.0)
    assert found.dropped == {"not on the tissue": 4} and np.isnan(found.radius).sum() == 4


def test_a_layer_and_values_as_they_are(spots):
    table = spots.tables["table"]
    table.layers["norm"] = table.X.toarray() * 0.5 - 3.0
    found = training_section(spots, SectionSpec(layer="norm", target="as_is", min_counts=1e9), genes=GENES, at_mpp=1.0)
    np.testing.assert_allclose(found.expression, table.layers["norm"][:, [7, 0, 3]])
    with pytest.raises(ValueError, match=r"table 'table', layer 'norm' has \d+ values that are not whole.*as_is"):
        training_section(spots, SectionSpec(layer="norm"), genes=GENES, at_mpp=1.0)


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.5])
def test_what_is_no_count_is_refused(spots, bad):
    spots.tables["table"].X.data[5] = bad
    with pytest.raises(ValueError, match=r"table 'table', X has 1 values.*layer=.*target=\"as_is\""):
        training_section(spots, genes=GENES, at_mpp=1.0)


def test_missing_genes_raise_or_are_nan(spots, caplog):
    with pytest.raises(ValueError, match=r"table 'table' lacks 1 of 2 genes: \['XIST'\]. Choose a panel"):
        training_section(spots, genes=["XIST", "G1"], at_mpp=1.0)
    with caplog.at_level(logging.WARNING, logger="stpredict"):
        found = training_section(spots, genes=["XIST", "G1"], at_mpp=1.0, missing_genes="nan")
    assert np.isnan(found.expression[:, 0]).all() and np.isfinite(found.expression[:, 1]).all()
    assert "has 1 of 2 genes; missing: ['XIST']" in caplog.text


def test_no_usable_spot_says_why(spots):
    with pytest.raises(
        ValueError, match=r"no usable spot in shapes 'spots' .* of 20, dropped \{'fewer than 1e\+06 cou"
    ):
        training_section(spots, SectionSpec(min_counts=1e6), genes=GENES, at_mpp=1.0)


@pytest.mark.parametrize(("change", "said"), [
    ({"layer": "count"}, "no layer 'count'. Closest: 'counts'"),
    ({"table_name": "tables"}, "no table 'tables'. Closest: 'table'"),
    ({"shapes_key": "spot"}, "no shapes 'spot'. Closest: 'spots'"),
    ({"image_key": "imag"}, "no image 'imag'. Closest: 'image'"),
    ({"tissue_key": "tissue"}, "no tissue shapes or labels 'tissue'"),
    ({"target": "cpm"}, "unknown target 'cpm'"),
    ({"genes": ["A"]}, "none of 1 genes is in table 'table'"),
])  # fmt: skip
def test_what_is_not_there_is_named(spots, change, said):
    spots.tables["table"].layers["counts"] = spots.tables["table"].X
    with pytest.raises(ValueError, match=said):
        training_section(
            spots,
            SectionSpec(**{key: value for key, value in change.items() if key != "genes"}),
            genes=change.get("genes", GENES),
            at_mpp=1.0,
        )


def test_no_mpp_names_the_three_ways():
    image, shapes = rgb(transformations={"global": Identity()}), circles(square_grid(1, 3), 9.0)
    with pytest.raises(ValueError, match="Three ways"):
        section(SpatialData(images={"image": image}, shapes={"spots": shapes}), at_mpp=1.0)


def test_nothing_of_the_object_is_changed(spots):
    before = spots.tables["table"].copy()
    geometry = spots.shapes["spots"].copy()
    training_section(spots, genes=GENES, at_mpp=1.0)
    assert (spots.tables["table"].X != before.X).nnz == 0
    assert list(spots.tables["table"].obs) == list(before.obs) and list(spots.tables["table"].var) == list(before.var)
    assert spots.shapes["spots"].equals(geometry) and spots.attrs == {}


def test_her2st_is_what_its_page_says(data):
    (sdata,) = her2st("C5", path=data / "her2st")
    genes = ["ERBB2", "GNAS"]
    found = training_section(sdata, genes=genes, at_mpp=1.0)
    assert 170 < found.n_shapes <= 181 and found.name == "C5"
    assert sum(found.dropped.values()) == 181 - found.n_shapes
    np.testing.assert_allclose(found.radius, 50.0, rtol=0.02)  # spots of 100 um
    # the spots' own pixels are darker than glass: they lie on tissue
    means = [read_mean(found, row) for row in range(0, found.n_shapes, 12)]
    assert np.mean(means) < 215


def read_mean(found, row):
    y0, x0, y1, x1 = _coverage.bounds(found.shapes)[row]
    return found.image.read(Window(int(y0), int(x0), int(y1 - y0), int(x1 - x0))).mean()


def test_anisotropic_system_keeps_one_scale():
    image = rgb(transformations={"um": Scale([0.5, 0.6], axes=("x", "y"))})
    shapes = circles(square_grid(1, 3), 9.0, transformations={"um": Scale([0.5, 0.6], axes=("x", "y"))})
    found = section(SpatialData(images={"image": image}, shapes={"spots": shapes}), at_mpp=1.0)
    assert found.image.scale == pytest.approx((1 / np.sqrt(0.3),) * 2)
    np.testing.assert_allclose(found.radius, 9.0 * np.sqrt(0.3))


@pytest.mark.parametrize("lazy", [
    lambda x: da.from_array(x.toarray(), chunks=(7, -1)),
    lambda x: da.from_array(x.toarray(), chunks=(7, -1)).map_blocks(sp.csr_matrix),
], ids=["dense blocks", "sparse blocks"])  # fmt: skip
def test_counts_that_are_read_lazily_give_the_same_section(spots, lazy):
    before = training_section(spots, genes=GENES, at_mpp=1.0)
    spots.tables["table"].X = lazy(spots.tables["table"].X)
    np.testing.assert_array_equal(training_section(spots, genes=GENES, at_mpp=1.0).expression, before.expression)
