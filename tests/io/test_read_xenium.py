"""read_xenium on a folder in the layout that Xenium writes, with an aligned H&E image, written here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from spatialdata import read_zarr
from spatialdata.transformations import get_transformation

from stpredict._spatialdata import image_mpp, relative_affine
from stpredict.io import read_xenium

from .tenx import GENES, as_mtx, write_h5

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:pandas.errors.Pandas4Warning")

PIXEL, MPP, SIDE_PX, N = 0.2125, 0.5, 160, 12
XY = ("x", "y")
# H&E pixels to Xenium's: twice and a bit as large, turned by a right angle, shifted
ALIGNED = np.array([[0.0, -MPP / PIXEL, 400.0], [MPP / PIXEL, 0.0, 20.0], [0.0, 0.0, 1.0]])


def make_folder(root: Path) -> Path:
    root.mkdir()
    rng = np.random.default_rng(2)
    (root / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL, "analysis_sw_version": "xenium-3.1.0.0"}))
    xy, angle = rng.uniform(10, 70, (N, 2)), np.linspace(0, 2 * np.pi, 13)
    ids = [f"{chr(97 + i):a>8}-1" for i in range(N)]
    corner = xy[:, None] + 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    edge = pd.DataFrame({"cell_id": np.repeat(ids, 13), "vertex_x": corner[..., 0].ravel()})
    edge = edge.assign(vertex_y=corner[..., 1].ravel(), label_id=np.repeat(np.arange(1, N + 1), 13))
    for kind in ("cell", "nucleus"):
        edge.to_parquet(root / f"{kind}_boundaries.parquet")
    cells = pd.DataFrame({"cell_id": ids, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1], "transcript_counts": 9})
    cells = cells.assign(control_probe_counts=0, total_counts=9, cell_area=np.pi * 25, nucleus_area=30.0)
    cells.to_parquet(root / "cells.parquet")
    write_h5(root / "cell_feature_matrix.h5", rng.poisson(2, (N, len(GENES))), ids)
    with zarr.storage.ZipStore(root / "cells.zarr.zip", mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.stack([np.arange(N), np.ones(N)], axis=1).astype(np.uint32))
        group.create_array("cell_summary", data=np.ones((N, 1)), attributes={"column_names": ["nucleus_count"]})
        for k in (0, 1):
            group.create_array(f"polygon_sets/{k}/cell_index", data=np.arange(N, dtype=np.uint32))
    pixels = rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    tifffile.imwrite(root / "run_he_image.ome.tif", pixels, photometric="rgb", metadata={"axes": "YXS"})
    np.savetxt(root / "run_he_imagealignment.csv", ALIGNED, delimiter=",")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / "region")


def test_names_and_coordinate_systems_are_those_of_spatialdata_io_and_micrometers(folder):
    sdata = read_xenium(folder)
    assert (set(sdata.images), set(sdata.tables)) == ({"he_image"}, {"table"})
    assert set(sdata.shapes) == {"cell_boundaries", "nucleus_boundaries"}
    assert set(sdata.coordinate_systems) == {"global", "micrometers"}
    np.testing.assert_array_equal(
        sdata["he_image"]["scale0"]["image"].values, np.moveaxis(tifffile.imread(folder / "run_he_image.ome.tif"), 2, 0)
    )
    assert sdata.attrs["name"] == "region"
    assert read_xenium(folder, name="other").attrs["name"] == "other"


def test_scale_is_the_pixel_times_the_alignment(folder):
    sdata = read_xenium(folder)
    assert image_mpp(sdata, "he_image") == pytest.approx(MPP)
    to_um = get_transformation(sdata["he_image"], "micrometers").to_affine_matrix(XY, XY)
    np.testing.assert_allclose(to_um, np.diag([PIXEL, PIXEL, 1.0]) @ ALIGNED, atol=1e-12)
    cells_to_um = get_transformation(sdata["cell_boundaries"], "micrometers").to_affine_matrix(XY, XY)
    np.testing.assert_allclose(cells_to_um, np.eye(3), atol=1e-12)
    to_image = relative_affine(sdata, "cell_boundaries", "he_image")
    np.testing.assert_allclose(ALIGNED @ to_image, np.diag([1 / PIXEL, 1 / PIXEL, 1.0]), atol=1e-9)


def test_the_table_annotates_the_outlines_of_the_cells(folder):
    sdata = read_xenium(folder)
    table, cells = sdata["table"], sdata["cell_boundaries"]
    assert table.uns["spatialdata_attrs"] == {
        "region": "cell_boundaries", "region_key": "region", "instance_key": "cell_id",
    }  # fmt: skip
    assert cells.index.tolist() == table.obs["cell_id"].tolist()
    centre = cells.loc[table.obs["cell_id"]].geometry.centroid
    np.testing.assert_allclose(np.stack([centre.x, centre.y], axis=1), table.obsm["spatial"], atol=1e-9)


def test_files_elsewhere(folder, tmp_path):
    for file, name in (("run_he_image.ome.tif", "stain.tif"), ("run_he_imagealignment.csv", "matrix.csv")):
        shutil.move(folder / file, tmp_path / name)
    sdata = read_xenium(folder, image=tmp_path / "stain.tif", alignment=tmp_path / "matrix.csv")
    assert image_mpp(sdata, "he_image") == pytest.approx(MPP)


def test_counts_as_mtx_where_the_h5_is_missing(folder):
    wanted = read_xenium(folder)["table"]
    as_mtx(folder / "cell_feature_matrix.h5")
    found = read_xenium(folder)["table"]
    assert (found.X != wanted.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, wanted.obs)


def test_a_folder_without_outlines_of_nuclei(folder):
    (folder / "nucleus_boundaries.parquet").unlink()
    assert set(read_xenium(folder).shapes) == {"cell_boundaries"}


def test_survives_a_store(folder, tmp_path):
    read_xenium(folder).write(tmp_path / "a.zarr")
    assert image_mpp(read_zarr(tmp_path / "a.zarr"), "he_image") == pytest.approx(MPP)


class TestRefuses:
    """Each with the message that says what is missing or does not fit."""

    def test_an_image_whose_alignment_is_missing(self, folder):
        (folder / "run_he_imagealignment.csv").unlink()
        with pytest.raises(
            FileNotFoundError,
            match=r"lacks: run_he_imagealignment.csv, the alignment of run_he_image.ome.tif .*Explorer",
        ):
            read_xenium(folder)

    def test_no_image(self, folder):
        (folder / "run_he_image.ome.tif").unlink()
        with pytest.raises(FileNotFoundError, match=r"an H&E image called \*he_image.ome.tif .*pass image="):
            read_xenium(folder)

    def test_several_images(self, folder):
        shutil.copy(folder / "run_he_image.ome.tif", folder / "other_he_image.ome.tif")
        with pytest.raises(ValueError, match="several H&E images: .*Pass image="):
            read_xenium(folder)

    def test_everything_that_is_missing_is_named_at_once(self, folder):
        for name in ("experiment.xenium", "cells.parquet", "cells.zarr.zip", "cell_feature_matrix.h5"):
            (folder / name).unlink()
        with pytest.raises(
            FileNotFoundError, match=r"experiment.xenium; cells.parquet; cells.zarr.zip; cell_feature_mat"
        ):
            read_xenium(folder)

    @pytest.mark.parametrize(
        "text",
        ["1,0\n0,1\n", "1,0,0\n2,0,0\n0,0,1\n", "1,0,0\n0,1,0\n0,1,1\n", "a,b,c\n", "", "1,0,0\n0,nan,0\n0,0,1\n"],
    )
    def test_an_alignment_that_is_no_affine_matrix(self, folder, text):
        (folder / "run_he_imagealignment.csv").write_text(text)
        with pytest.raises(ValueError, match=r"run_he_imagealignment.csv .*(3 x 3 affine matrix|no table of numbers)"):
            read_xenium(folder)

    @pytest.mark.parametrize("pixel", [None, 0, 212.5, "0.2125"])
    def test_a_pixel_without_a_size(self, folder, pixel):
        (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel}))
        with pytest.raises(ValueError, match="must state pixel_size"):
            read_xenium(folder)

    def test_files_that_are_not_there(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder at"):
            read_xenium(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="no H&E image at"):
            read_xenium(folder, image="no.tif", alignment=folder / "run_he_imagealignment.csv")

    def test_without_the_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "spatialdata_io", None)
        with pytest.raises(ImportError, match=r"pip install 'stpredict\[io\]'"):
            read_xenium(folder)
