"""A raster read inside shapes: against the layer, exactextract, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from geopandas import GeoDataFrame
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def raster_sdata(sdata):
    """Gene maps "maps" at 4 px of the image, and cells: overlapping, with a hole, in two parts, half a raster pixel."""
    values = np.random.default_rng(0).uniform(0, 5, (3, 128, 128)).astype(np.float32)
    systems = {"global": Scale([4.0, 4.0], axes=("x", "y"))}
    sdata.images["maps"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), c_coords=["red", "green", "blue"], transformations=systems
    )
    ring = shapely.box(100, 100, 180, 190).difference(shapely.box(120, 130, 150, 160))
    parts = shapely.MultiPolygon([shapely.box(300, 20, 331, 47), shapely.box(400, 20, 433, 50)])
    cells = [
        shapely.box(90, 110, 140, 150),
        ring,
        parts,
        shapely.box(201, 201, 203, 203),
        shapely.box(480, 480, 540, 500),
    ]
    frame = GeoDataFrame(geometry=cells, index=[f"c{i}" for i in range(5)])
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations={"global": Identity()})
    return sdata, values, cells


def _aggregate(sdata, **settings):
    import stpredict as stp

    stp.tl.aggregate(sdata, "maps", shapes_key="cells", **settings)
    return sdata.tables["cells_maps"]  # the first call makes it, the others add layers


def _weights(cells):
    grid = [[shapely.box(4 * x, 4 * y, 4 * x + 4, 4 * y + 4) for x in range(128)] for y in range(128)]
    return np.array([shapely.area(shapely.intersection(np.array(grid), cell)) for cell in cells]) / 16  # raster pixels


def test_mean_and_sum_are_those_of_shapely(raster_sdata):
    sdata, values, cells = raster_sdata
    weights = _weights(cells)
    total = np.einsum("nyx,gyx->ng", weights, values.astype(float))
    mean = _aggregate(sdata)
    np.testing.assert_allclose(mean.X, total / weights.sum(axis=(1, 2))[:, None], rtol=1e-5)
    np.testing.assert_allclose(_aggregate(sdata, stat="sum", key_added="total").layers["total"], total, rtol=1e-5)
    np.testing.assert_allclose(mean.obs["maps_coverage"], [1, 1, 1, 1, 32 / 60], atol=1e-9)


def test_means_are_those_of_exactextract(raster_sdata):
    exactextract = pytest.importorskip("exactextract")
    from exactextract.raster import NumPyRasterSource

    sdata, values, cells = raster_sdata
    flipped = [shapely.transform(cell, lambda xy: np.column_stack([xy[:, 0], 512 - xy[:, 1]])) for cell in cells]
    frame = GeoDataFrame(geometry=flipped, crs="EPSG:3857")
    got = _aggregate(sdata).X
    for j in range(3):
        source = NumPyRasterSource(values[j], xmin=0, ymin=0, xmax=512, ymax=512)
        theirs = exactextract.exact_extract(source, frame, "mean", output="pandas")["mean"]
        np.testing.assert_allclose(got[:, j], theirs, rtol=1e-5)


@pytest.mark.parametrize("chunks", [(3, 128, 128), (2, 32, 48)])
def test_blocks_of_pixels_and_genes_do_not_show(raster_sdata, monkeypatch, chunks):
    from stpredict.tl import _readout as module

    sdata, _values, _cells = raster_sdata
    whole = _aggregate(sdata).X
    sdata.images["maps"].data = sdata.images["maps"].data.rechunk(chunks)
    monkeypatch.setattr(module, "BLOCK_CELLS", 128 * 7)
    monkeypatch.setattr(module, "MOST_CELLS", 1)
    monkeypatch.setattr(module, "VALUE_BYTES", 8)
    np.testing.assert_allclose(_aggregate(sdata, key_added="strips").layers["strips"], whole, rtol=1e-6)


@pytest.mark.parametrize("block_cells", [2**20, 32 * 48 * 3, 1])
@pytest.mark.parametrize("value_bytes", [2**27, 4 * 2 * 32 * 48])
def test_every_chunk_is_read_once(raster_sdata, monkeypatch, block_cells, value_bytes):
    from stpredict.tl import _readout as module

    sdata, _values, _cells = raster_sdata
    sdata.shapes["all"] = ShapesModel.parse(GeoDataFrame(geometry=[shapely.box(0, 0, 512, 512)]))
    read = []
    data = sdata.images["maps"].data.rechunk((2, 32, 48))
    counted = data.map_blocks(lambda block: (read.append(1), block)[1], meta=np.empty((0, 0, 0), np.float32))
    sdata.images["maps"].data = counted
    monkeypatch.setattr(module, "BLOCK_CELLS", block_cells)
    monkeypatch.setattr(module, "VALUE_BYTES", value_bytes)
    import stpredict as stp

    stp.tl.aggregate(sdata, "maps", shapes_key="all")
    assert len(read) == 2 * 4 * 3


def test_nan_pixels_do_not_count(raster_sdata):
    sdata, values, cells = raster_sdata
    holed = values.copy()
    holed[:, :, :30] = np.nan
    systems = {"global": Scale([4.0, 4.0], axes=("x", "y"))}
    sdata.images["maps"] = Image2DModel.parse(
        holed, dims=("c", "y", "x"), c_coords=["red", "green", "blue"], transformations=systems
    )
    table = _aggregate(sdata)
    weights = _weights(cells)[:, :, 30:]
    wanted = np.einsum("nyx,gyx->ng", weights, values[:, :, 30:].astype(float)) / weights.sum(axis=(1, 2))[:, None]
    np.testing.assert_allclose(table.X, wanted, rtol=1e-5)
    assert table.obs["maps_coverage"].iloc[0] == pytest.approx(20 / 50)


@pytest.mark.parametrize("most_cells", [2**24, 1])
@pytest.mark.parametrize("value_bytes", [2**27, 2 * 4 * 128 * 7, 8])
def test_pixels_that_are_nan_in_some_genes_do_not_count_in_those(raster_sdata, monkeypatch, most_cells, value_bytes):
    from stpredict.tl import _readout as module

    sdata, values, cells = raster_sdata
    holed = values.copy()
    holed[0, :, :30], holed[2, 40:, :] = np.nan, np.nan
    systems = {"global": Scale([4.0, 4.0], axes=("x", "y"))}
    sdata.images["maps"] = Image2DModel.parse(
        holed, dims=("c", "y", "x"), c_coords=["red", "green", "blue"], transformations=systems
    )
    monkeypatch.setattr(module, "BLOCK_CELLS", 128 * 7)
    monkeypatch.setattr(module, "MOST_CELLS", most_cells)
    monkeypatch.setattr(module, "VALUE_BYTES", value_bytes)
    weights = _weights(cells)[:, None] * ~np.isnan(holed)
    area = weights.sum(axis=(2, 3))
    with np.errstate(invalid="ignore"):
        wanted = np.einsum("ngyx,gyx->ng", weights, values.astype(float)) / area
    table = _aggregate(sdata)
    assert np.isnan(wanted).sum() == 2
    np.testing.assert_allclose(table.X, wanted, rtol=1e-5)
    full = np.array([1, 1, 1, 1, 32 / 60])
    np.testing.assert_allclose(table.obs["maps_coverage"], full, rtol=1e-6)  # the gene that is there most


def test_what_lies_inside_is_worked_out_once(raster_sdata, monkeypatch):
    from stpredict import _coverage
    from stpredict.tl import _readout as _blocks

    sdata, _, cells = raster_sdata
    _blocks.clear()
    calls = []
    true = _coverage.coverage
    monkeypatch.setattr(_coverage, "coverage", lambda *args, **kwargs: (calls.append(1), true(*args, **kwargs))[1])
    one = _aggregate(sdata).X.copy()
    first = len(calls)
    assert first
    np.testing.assert_array_equal(_aggregate(sdata, key_added="again", genes=["blue"]).layers["again"][:, 2], one[:, 2])
    _aggregate(sdata, key_added="total", stat="sum")
    assert len(calls) == first
    moved = [shapely.transform(cells[0], lambda xy: xy + 1), *cells[1:]]
    frame = GeoDataFrame(geometry=moved, index=[f"c{i}" for i in range(5)])
    sdata.shapes["cells"] = ShapesModel.parse(frame, transformations={"global": Identity()})
    other = _aggregate(sdata, key_added="moved").layers["moved"]
    assert len(calls) == 2 * first
    assert (other[0] != one[0]).all()
    monkeypatch.setattr(_blocks, "KEPT_BYTES", 0)
    _blocks.clear()
    _aggregate(sdata, key_added="unkept")
    _aggregate(sdata, key_added="unkept2")
    assert len(calls) == 4 * first


def test_labels_are_read_as_scipy_reads_them(raster_sdata):
    """On the raster's own grid, and at a third of its pixels, turned by 30 degrees against its outlines as shapes."""
    from scipy import ndimage
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Affine

    import stpredict as stp

    sdata, values, _ = raster_sdata
    labels = np.random.default_rng(3).integers(0, 6, (16, 16)).repeat(8, axis=0).repeat(8, axis=1) * 11
    systems = {"global": Scale([4.0, 4.0], axes=("x", "y"))}
    sdata.labels["nuclei"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=systems)
    stp.tl.aggregate(sdata, "maps", shapes_key="nuclei")
    table = sdata.tables["nuclei_maps"]
    assert table.obs["instance_id"].tolist() == [11, 22, 33, 44, 55]
    wanted = np.array([ndimage.mean(channel, labels, table.obs["instance_id"]) for channel in values]).T
    np.testing.assert_allclose(table.X, wanted, rtol=1e-5)
    np.testing.assert_allclose(table.obs["maps_coverage"], 1.0)
    turned = Affine([[1.1, -0.7, 200.0], [0.7, 1.1, 20.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    small = labels[:, :100]
    sdata.labels["turned"] = Labels2DModel.parse(small, dims=("y", "x"), transformations={"global": turned})
    frame = GeoDataFrame(geometry=[_pixels(small == label) for label in (11, 22, 33, 44, 55)])
    sdata.shapes["outlines"] = ShapesModel.parse(frame, transformations={"global": turned})
    for key in ("turned", "outlines"):
        stp.tl.aggregate(sdata, "maps", shapes_key=key)
    np.testing.assert_allclose(sdata.tables["turned_maps"].X, sdata.tables["outlines_maps"].X, rtol=1e-5)


def _pixels(mask):
    y, x = np.nonzero(mask)
    return shapely.union_all(shapely.box(x, y, x + 1, y + 1))


def test_labels_without_an_instance_are_refused(raster_sdata):
    from spatialdata.models import Labels2DModel

    import stpredict as stp

    sdata, _, _ = raster_sdata
    sdata.labels["none"] = Labels2DModel.parse(np.zeros((8, 8), int), dims=("y", "x"))
    with pytest.raises(ValueError, match="labels 'none' hold no instance: every pixel is 0"):
        stp.tl.aggregate(sdata, "maps", shapes_key="none")


def test_the_raster_of_a_model_reads_back_as_its_layer(sdata, pixnet):
    import stpredict as stp

    stp.tl.predict(sdata, pixnet, output="both", **RUN)
    stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", key_added="again")
    table = sdata.tables["table"]
    one, other = (table.layers[key][:, table.var["pixnet"]] for key in ("pixnet", "again"))
    np.testing.assert_allclose(one, other, atol=4e-3)  # rasters have 11 bits
    assert table.uns["stpredict"]["again"]["raster"] == "pixnet"


def test_a_link_is_applied_after_pooling(raster_sdata):
    sdata, _, _ = raster_sdata
    plain = _aggregate(sdata).X.copy()
    sdata.attrs = {"stpredict": {"images/maps": {"link": "log1p"}}}
    np.testing.assert_allclose(_aggregate(sdata, key_added="linked").layers["linked"], np.log1p(plain), rtol=1e-6)
    sdata.attrs = {"stpredict": {"images/maps": {"link": "log1p", "latent": True}}}
    np.testing.assert_array_equal(_aggregate(sdata, key_added="latent").layers["latent"], plain)


def test_bad_requests_are_named(raster_sdata):
    import stpredict as stp

    sdata, _, _ = raster_sdata
    with pytest.raises(ValueError, match="stat='max' must be one of 'mean', 'sum'"):
        _aggregate(sdata, stat="max")
    with pytest.raises(ValueError, match=r"raster 'maps' lacks 1 of 2 genes: \['mauve'\]"):
        _aggregate(sdata, genes=["red", "mauve"])
    with pytest.raises(ValueError, match=r"(?s)'mapps'.*maps"):
        stp.tl.aggregate(sdata, "mapps", shapes_key="cells")
