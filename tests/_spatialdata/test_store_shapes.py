"""New shapes: in memory and in the store, both or neither."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr

from stpredict._spatialdata import add_shapes

from .builders import circles, make_spots, rgb, square_grid


def files(folder):
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    "build", [make_spots, lambda: SpatialData(images={"image": rgb()})], ids=["shapes", "no shapes"]
)
def test_shapes_are_in_memory_and_in_the_store(build, tmp_path):
    build().write(tmp_path / "x.zarr")
    sdata = read_zarr(tmp_path / "x.zarr")
    add_shapes(sdata, "grid", circles(square_grid(2, 2), 5.0))
    for each in (sdata, read_zarr(tmp_path / "x.zarr")):
        np.testing.assert_array_equal(each.shapes["grid"]["radius"], 5.0)
        assert set(each.shapes) == {"grid"} | set(build().shapes)
    assert [each.name for each in tmp_path.iterdir()] == ["x.zarr"]


def test_an_object_in_memory_stays_there(spots):
    add_shapes(spots, "grid", circles(square_grid(2, 2), 5.0))
    assert "grid" in spots.shapes and spots.path is None


@pytest.mark.parametrize(("key", "said"), [
    ("spots", "spots"), ("SPOTS", "SPOTS"), ("image", "image"), ("a b", "a b"), ("__x", "__x"), ("a/b", "a/b"),
])  # fmt: skip
def test_names_that_are_taken_or_cannot_be_kept(key, said, tmp_path):
    make_spots().write(tmp_path / "x.zarr")
    sdata = read_zarr(tmp_path / "x.zarr")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"'{said}'"):
        add_shapes(sdata, key, circles(square_grid(2, 2), 5.0))
    assert set(sdata.shapes) == {"spots"} and files(tmp_path) == before


def test_when_the_store_fails_nothing_has_changed(tmp_path, monkeypatch):
    make_spots().write(tmp_path / "x.zarr")
    sdata = read_zarr(tmp_path / "x.zarr")
    before = files(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(SpatialData, "write_consolidated_metadata", fail)
    with pytest.raises(OSError, match="disk full"):
        add_shapes(sdata, "grid", circles(square_grid(2, 2), 5.0))
    assert set(sdata.shapes) == {"spots"} and files(tmp_path) == before
