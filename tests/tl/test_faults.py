"""Faults under a prediction: each says what is safe, and leaves the store as it was."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from spatialdata import read_zarr

RUN = {"device": "cpu", "precision": "32", "progress": False}


def _predict(sdata, model, **settings):
    import stpredict as stp

    stp.tl.predict(sdata, model, **(RUN | settings))


@pytest.fixture
def store(make, tmp_path):
    """A store of four tiles."""
    make(7, size=1024).write(tmp_path / "slide.zarr")
    return tmp_path / "slide.zarr"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk, *, leave):
    free = os.statvfs(disk)
    (disk / "other").write_bytes(b"0" * (free.f_bavail * free.f_frsize - leave))


def test_a_disk_that_fills_leaves_the_store_and_says_so(make, pixnet, small_disk, monkeypatch, files_of):
    from stpredict._spatialdata import PartialFiles

    path = small_disk / "slide.zarr"
    make(7, size=1024).write(path)
    sdata = read_zarr(path)
    before = files_of(path)
    keep = PartialFiles.keep

    def filled(self, piece, part):
        keep(self, piece, part)
        if not (small_disk / "other").exists():
            _fill(small_disk, leave=0)  # a chunk may be smaller than anything else

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device") as caught:
        patch.setattr(PartialFiles, "keep", filled)
        _predict(sdata, pixnet, output="raster", shapes_key="spots")
    assert files_of(path) == before
    assert "pixnet" not in sdata.images
    assert [each.name for each in small_disk.iterdir() if each.name.startswith(".")] == [
        ".slide.zarr.stpredict-run-pixnet"
    ]
    assert "is as it was. 1 finished chunks are kept" in caught.value.__notes__[0]
    (small_disk / "other").unlink()
    _predict(sdata, pixnet, output="raster", shapes_key="spots", resume=True)
    assert np.isfinite(read_zarr(path).images["pixnet"].to_numpy()).all()
    assert not [each.name for each in small_disk.iterdir() if each.name.startswith(".")]


def test_a_raster_that_cannot_fit_is_refused_before_the_work(make, pixnet, small_disk):
    path = small_disk / "slide.zarr"
    make(7, size=1024).write(path)
    _fill(small_disk, leave=20_480)
    with pytest.raises(ValueError, match=r"the raster of 3 genes x 256 x 256 pixels takes 0.49 MB, and the disk of"):
        _predict(read_zarr(path), pixnet, output="raster", shapes_key="spots")
    assert not [each.name for each in small_disk.iterdir() if each.name.startswith(".")]


def test_a_damaged_chunk_is_named(store, pixnet, files_of):
    chunk = next(
        path for path in sorted((store / "images" / "image").rglob("*")) if path.parent.parent.parent.name == "c"
    )
    chunk.write_bytes(chunk.read_bytes()[:50])
    before = files_of(store)
    with pytest.raises(OSError, match=r"image .*cannot be read .* is damaged"):
        _predict(read_zarr(store), pixnet)
    assert files_of(store) == before
    assert [path.name for path in store.parent.iterdir()] == ["slide.zarr"]


@pytest.mark.slow
def test_an_image_that_changes_under_the_run_is_noticed(store, pixnet, monkeypatch):
    import zarr

    from stpredict._spatialdata import PartialFiles

    sdata, keep = read_zarr(store), PartialFiles.keep

    def disturbed(self, piece, part):
        keep(self, piece, part)
        array = next(array for _, array in zarr.open_group(store / "images" / "image", mode="r+").arrays())
        array[:] = 255 - array[:]

    monkeypatch.setattr(PartialFiles, "keep", disturbed)
    with pytest.raises(ValueError, match=r"was changed by another process while it was predicted. Nothing was written"):
        _predict(sdata, pixnet, batch_size=4)
    assert "pixnet" not in read_zarr(store).tables["table"].layers
    assert [path.name for path in store.parent.iterdir()] == ["slide.zarr"]


@pytest.mark.slow
def test_a_table_that_changes_under_the_run_is_noticed(store, pixnet, monkeypatch):
    from stpredict._spatialdata import PartialFiles

    sdata, keep = read_zarr(store), PartialFiles.keep

    def disturbed(self, piece, part):
        keep(self, piece, part)
        other = read_zarr(store)
        table = other.tables["table"][:-1].copy()
        del other.tables["table"]
        other.delete_element_from_disk("table")
        other.tables["table"] = table
        other.write_element("table")

    monkeypatch.setattr(PartialFiles, "keep", disturbed)
    with pytest.raises(ValueError, match=r"obs_names of table 'table' differ between the store"):
        _predict(sdata, pixnet, batch_size=4)
    assert "pixnet" not in sdata.tables["table"].layers
    assert [path.name for path in store.parent.iterdir()] == ["slide.zarr"]
