"""Rasters are written region by region, lie on their image, and are refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from spatialdata import SpatialData, get_dask_backing_files, read_zarr
from spatialdata.transformations import get_transformation

from stpredict._spatialdata import open_store
from stpredict._spatialdata._store import _raster, _results

from .samples import RECORD, backed, fill, make_sdata, make_target


@pytest.fixture(params=["memory", "backed"])
def sdata(request: pytest.FixtureRequest, tmp_path: Path) -> SpatialData:
    """The object in memory, and the same read from a store."""
    return backed(tmp_path) if request.param == "backed" else make_sdata()


def test_raster_of_a_backed_object_reads_from_the_store_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    with make_target(sdata) as target:
        fill(target, np.ones((3, 10, 16)))
        _results.commit(sdata, [target.image(RECORD)])
    files = get_dask_backing_files(sdata.images["pixnet"])
    assert [Path(file).is_relative_to(tmp_path / "slide.zarr" / "images" / "pixnet") for file in files] == [True]
    assert sdata.is_self_contained()
    assert [path.name for path in tmp_path.iterdir()] == ["slide.zarr"]
    assert sdata.has_consolidated_metadata()


def test_raster_lies_on_the_image_in_every_coordinate_system(sdata: SpatialData) -> None:
    with make_target(sdata) as target:
        fill(target, np.ones((3, 10, 16)))
        _results.commit(sdata, [target.image(RECORD)])
    source = get_transformation(sdata.images["image"], get_all=True)
    for each in [sdata, *([read_zarr(sdata.path)] if sdata.path else [])]:
        raster = get_transformation(each.images["pixnet"], get_all=True)
        assert set(raster) == {"global", "micrometers", "turned"}
        for name, transformation in raster.items():
            onto = transformation.to_affine_matrix(("x", "y"), ("x", "y"))
            image = source[name].to_affine_matrix(("x", "y"), ("x", "y"))
            np.testing.assert_allclose(onto @ [3.0, 2.0, 1.0], image @ [12.0, 8.0, 1.0])


def test_pixels_that_are_never_written_are_nan_and_zeros_are_zeros(sdata: SpatialData) -> None:
    with make_target(sdata, dtype="float32") as target:
        target.write(slice(8, 10), slice(4, 16), np.zeros((3, 2, 12)))
        _results.commit(sdata, [target.image({})])
    expected = np.full((3, 10, 16), np.nan, np.float32)
    expected[:, 8:, 4:] = 0
    np.testing.assert_array_equal(sdata.images["pixnet"].to_numpy(), expected)
    if sdata.path:
        np.testing.assert_array_equal(read_zarr(sdata.path).images["pixnet"].to_numpy(), expected)
        assert zarr.open_array(sdata.path / "images/pixnet/s0").nchunks_initialized == 3


def test_a_raster_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    with pytest.raises(RuntimeError, match="cancelled"), make_target(sdata) as target:
        target.write(slice(0, 4), slice(0, 16), np.ones((3, 4, 16)))
        assert len(list(tmp_path.iterdir())) == 2
        raise RuntimeError("cancelled")
    assert [path.name for path in tmp_path.iterdir()] == ["slide.zarr"]
    assert list(read_zarr(sdata.path).images) == ["image"]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (slice(0, 3), slice(0, 4), "rows 0:3 are not whole chunks of 4 pixels inside 0:10"),
        (slice(0, 4), slice(2, 8), "columns 2:8 are not whole chunks"),
        (slice(8, 12), slice(0, 4), "rows 8:12 are not whole chunks"),
        (slice(4, 8), slice(4, 8), "was written before"),
    ],
)
def test_regions_that_would_touch_a_chunk_twice_are_refused(
    sdata: SpatialData, rows: slice, columns: slice, message: str
) -> None:
    with make_target(sdata) as target:
        target.write(slice(4, 8), slice(0, 16), np.ones((3, 4, 16)))
        with pytest.raises(ValueError, match=message):
            target.write(rows, columns, np.ones((3, rows.stop - rows.start, columns.stop - columns.start)))
        with pytest.raises(ValueError, match=r"needs values of shape \(3, 4, 4\), got \(2, 4, 4\)"):
            target.write(slice(0, 4), slice(0, 4), np.ones((2, 4, 4)))


def test_values_that_the_type_cannot_hold_are_refused(sdata: SpatialData) -> None:
    with make_target(sdata, dtype="float16") as target:
        target.write(slice(0, 4), slice(0, 4), np.full((3, 4, 4), 65504.0))
        with pytest.raises(ValueError, match=r"up to 7e\+04 do not fit float16.*float32"):
            target.write(slice(0, 4), slice(4, 8), np.full((3, 4, 4), 70000.0))
    with make_target(sdata, "wide") as target:
        target.write(slice(0, 4), slice(0, 4), np.full((3, 4, 4), 70000.0))
        with pytest.raises(ValueError, match=r"up to 1e\+39 do not fit float32 \(at most 3.403e\+38\)\.$"):
            target.write(slice(0, 4), slice(4, 8), np.full((3, 4, 4), 1e39))


def test_float32_has_the_values_of_float16_where_that_is_exact_enough_and_more_beyond(sdata: SpatialData) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(3, 10, 16)) * 10.0 ** rng.integers(-4, 4, (3, 10, 16))).astype(np.float32)
    values[0, 0, :3], values[0, 1, :4] = [np.nan, np.inf, 0], [2049, 2051, -2049, 1 + 2.0**-11]  # ties, to even
    values[1, 0, :2] = np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # two other forms of NaN
    raster = {}
    for dtype in ("float32", "float16"):
        with make_target(sdata, dtype, dtype=dtype) as target:
            fill(target, values)
            _results.commit(sdata, [target.image({})])
        raster[dtype] = sdata.images[dtype].to_numpy()
        assert raster[dtype].dtype == dtype
    normal = ~(np.abs(values) < np.finfo(np.float16).smallest_normal)
    assert 0.8 < normal.mean() < 1
    np.testing.assert_array_equal(raster["float32"][normal], raster["float16"][normal].astype(np.float32))
    np.testing.assert_allclose(raster["float32"], values, rtol=2.0**-11)
    assert not (raster["float32"].view(np.uint32) & 0x1FFF).any()
    edges = np.array([65520, 1e6, 3.4e38, 2.0**-60, 6e-8], np.float32)
    assert np.isfinite(_raster.stored_values(edges, np.dtype("float32"))).all()
    np.testing.assert_allclose(_raster.stored_values(edges, np.dtype("float32")), edges, rtol=2.0**-11)


def test_numbers_without_any_order_take_what_the_size_check_reckons(tmp_path: Path) -> None:
    sdata = backed(tmp_path)
    for dtype, bits in (("float32", np.uint32), ("float16", np.uint16)):
        values = np.random.default_rng(0).integers(0, 256 ** np.dtype(bits).itemsize, (3, 256, 256)).astype(bits)
        array = np.nan_to_num(values.view(dtype).astype(np.float32), nan=1.0, posinf=1.0, neginf=1.0) / 2
        with make_target(sdata, dtype, dtype=dtype, shape=(256, 256), chunk_px=128) as target:
            fill(target, array, side=128)
            _results.commit(sdata, [target.image({})])
        chunks = Path(sdata.path) / "images" / dtype / "s0" / "c"
        a_value = sum(path.stat().st_size for path in chunks.rglob("*") if path.is_file()) / array.size
        assert _raster._STORED_BYTES[dtype] * 0.8 < a_value <= 1.001 * _raster._STORED_BYTES[dtype]


def test_duplicate_genes_and_types_without_nan_are_refused(sdata: SpatialData) -> None:
    with pytest.raises(ValueError, match=r"unique.*\['g1'\]"):
        make_target(sdata, genes=["g1", "g2", "g1"])
    with pytest.raises(ValueError, match="float dtype"):
        make_target(sdata, dtype="int16")


def test_a_raster_that_does_not_fit_says_both_sizes_and_the_ways_out(
    sdata: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [(5000, 4000), (2500, 2000), (1250, 1000), (625, 500)] if sdata.path else [(5000, 4000)]
    a_value = 2.5 if sdata.path else 4  # bits that are zero take no room on the disk
    need = int(250 * sum(height * width for height, width in levels) * a_value)
    size = "16.6" if sdata.path else "20.0"
    ways = rf"{size} GB.*{size} GB free.*genes=.*raster_mpp=.*output='latent'"
    for free in (need, need - 1):
        monkeypatch.setattr(_raster.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        monkeypatch.setattr(_raster.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if free == need:
            _raster.check_raster_size(open_store(sdata), 250, (5000, 4000))
    with pytest.raises(ValueError, match=("the disk of" if sdata.path else "memory") + ".*" + ways.partition(".*")[2]):
        _raster.check_raster_size(open_store(sdata), 250, (5000, 4000))
    monkeypatch.setattr(_raster.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    monkeypatch.setattr(_raster.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(ValueError, match=r"\d GB.*1.0 GB free.*genes="):
        make_target(sdata, genes=[f"g{i}" for i in range(250)], shape=(5000, 4000))


def test_a_large_raster_of_a_store_has_coarser_levels_from_the_same_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_raster, "COARSEST_PX", 5)
    monkeypatch.setattr(_raster, "SMALLEST_CHUNK_PX", 1)
    sdata = backed(tmp_path)
    values = np.random.default_rng(0).normal(size=(3, 11, 16)).astype(np.float32)
    with make_target(sdata, shape=(11, 16), dtype="float32") as target:
        for y in range(0, 8, 4):
            target.write(slice(y, y + 4), slice(0, 16), values[:, y : y + 4])
        _results.commit(sdata, [target.image(RECORD)])
    tree = read_zarr(sdata.path).images["pixnet"]
    values[:, 8:] = np.nan
    levels = [next(iter(tree[f"scale{k}"].data_vars.values())).to_numpy() for k in range(3)]
    assert [level.shape for level in levels] == [(3, 11, 16), (3, 5, 8), (3, 2, 4)]
    for k, level in enumerate(levels):
        n, m = (11 >> k) << k, (16 >> k) << k
        means = values[:, :n, :m].reshape(3, n >> k, 1 << k, m >> k, 1 << k).mean(axis=(2, 4))
        np.testing.assert_allclose(level, means, rtol=2.0**-11)
        assert zarr.open_array(sdata.path / f"images/pixnet/s{k}").nchunks_initialized == 8
    shape = get_transformation(tree, get_all=True)["global"].to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(shape[:2, :2], 4 * np.eye(2))
