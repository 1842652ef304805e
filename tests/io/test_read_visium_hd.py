"""read_visium_hd on a folder in the layout that Space Ranger writes for Visium HD, written here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
import tifffile
from PIL import Image
from spatialdata import read_zarr
from spatialdata.transformations import Identity, get_transformation

from stpredict._spatialdata import image_mpp, is_micrometres, pixel_size, relative_affine
from stpredict.io import read_visium_hd

from .tenx import GENES, as_mtx, write_h5

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:pandas.errors.Pandas4Warning")

MPP, SIDE_PX = 0.8, 200
XY = ("x", "y")


def make_folder(root: Path, *, sizes: tuple[int, ...] = (8, 16), prefix: str = "", stated: float = MPP) -> Path:
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    for size in sizes:
        make_bins(root / "binned_outputs" / f"square_{size:03}um", size, pixels, rng, stated)
    metadata = {"hd_layout_json": json.dumps({"file_format": "1.0", "transform": {}}), "transform_matrices": {}}
    with h5py.File(root / f"{prefix}feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata)
    (root / "microscope_image").mkdir()
    tifffile.imwrite(root / "microscope_image" / "slide.btf", pixels, photometric="rgb")
    (root / "spatial").mkdir()
    return root


def make_bins(folder: Path, size: int, pixels: np.ndarray, rng: np.random.Generator, stated: float) -> None:
    (folder / "spatial").mkdir(parents=True)
    row, col = (each.ravel() for each in np.mgrid[: int(SIDE_PX * MPP / size) - 1, : int(SIDE_PX * MPP / size) - 1])
    names = [f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in zip(row, col, strict=True)]
    write_h5(folder / "filtered_feature_bc_matrix.h5", rng.poisson(3, (len(names), len(GENES))), names)
    places = pd.DataFrame({"barcode": names, "in_tissue": 1, "array_row": row, "array_col": col})
    places["pxl_row_in_fullres"], places["pxl_col_in_fullres"] = (row + 0.5) * size / MPP, (col + 0.5) * size / MPP
    places.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    scales = {"spot_diameter_fullres": size / stated, "bin_size_um": float(size), "microns_per_pixel": stated}
    scales |= {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(scales))
    for name, factor in (("hires", 2), ("lowres", 10)):
        Image.fromarray(pixels[::factor, ::factor]).save(folder / "spatial" / f"tissue_{name}_image.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / "run")


def test_names_and_coordinate_systems_are_those_of_spatialdata_io_and_micrometers(folder):
    sdata = read_visium_hd(folder)
    assert set(sdata.images) == {"_full_image", "_hires_image", "_lowres_image"}
    assert (set(sdata.shapes), set(sdata.tables)) == ({"_square_008um"}, {"square_008um"})
    image = sdata.images["_full_image"]
    pixels = tifffile.imread(folder / "microscope_image" / "slide.btf")
    np.testing.assert_array_equal(image["scale0"]["image"].values, np.moveaxis(pixels, 2, 0))
    assert get_transformation(image, "") == Identity()
    assert sdata.attrs["name"] == "run"
    assert read_visium_hd(folder, name="other").attrs["name"] == "other"
    systems = {name for name in sdata.coordinate_systems if is_micrometres(name)}
    assert systems == {"micrometers"}


def test_every_element_is_in_micrometres(folder):
    sdata = read_visium_hd(folder)
    for key, factor in (("_full_image", 1), ("_hires_image", 2), ("_lowres_image", 10)):
        assert image_mpp(sdata, key) == pytest.approx(MPP * factor)
    to_um = get_transformation(sdata["_square_008um"], "micrometers").to_affine_matrix(XY, XY)
    square = shapely.box(*sdata["_square_008um"].geometry[3].bounds)
    assert square.area * pixel_size(to_um) ** 2 == pytest.approx(64.0)


def test_each_bin_has_its_counts_and_its_place(folder):
    sdata = read_visium_hd(folder)
    table, bins = sdata.tables["square_008um"], sdata.shapes["_square_008um"]
    with h5py.File(folder / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5") as file:
        group = file["matrix"]
        counts = sp.csc_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), group["shape"][:]).T
    np.testing.assert_array_equal(table.X.toarray(), counts.toarray())
    centre = bins.geometry.loc[table.obs[table.uns["spatialdata_attrs"]["instance_key"]]].centroid
    np.testing.assert_allclose(centre.x, (table.obs["array_col"] + 0.5) * 8 / MPP)
    np.testing.assert_allclose(centre.y, (table.obs["array_row"] + 0.5) * 8 / MPP)
    np.testing.assert_allclose(relative_affine(sdata, "_square_008um", "_full_image"), np.eye(3))


def test_several_sizes_of_bins(folder):
    sdata = read_visium_hd(folder, bin_um=[16, 8])
    assert set(sdata.tables) == {"square_008um", "square_016um"}
    assert set(sdata.shapes) == {"_square_008um", "_square_016um"}


def test_names_with_a_prefix(tmp_path):
    folder = make_folder(tmp_path / "run" / "outs", prefix="Colon_")
    shutil.move(folder / "microscope_image/slide.btf", folder / "Colon_tissue_image.btf")
    (folder / "Colon_cytassist_image.tiff").write_bytes(b"not this one")
    sdata = read_visium_hd(tmp_path / "run")
    assert "Colon_full_image" in sdata.images
    assert image_mpp(sdata, "Colon_full_image") == pytest.approx(MPP)
    assert set(sdata.shapes) == {"Colon_square_008um"}


@pytest.mark.parametrize("sizes", [[8], [8, 16]])
def test_counts_as_mtx_where_the_h5_is_missing(folder, sizes):
    wanted = read_visium_hd(folder, bin_um=sizes)
    for size in sizes:
        as_mtx(folder / f"binned_outputs/square_{size:03}um/filtered_feature_bc_matrix.h5")
    before = sorted(folder.rglob("*"))
    sdata = read_visium_hd(folder, bin_um=sizes)
    for key, table in wanted.tables.items():
        assert (sdata.tables[key].X != table.X).nnz == 0
        pd.testing.assert_frame_equal(sdata.tables[key].obs, table.obs)
        assert sdata.tables[key].var_names.tolist() == GENES
    for key in ("_hires_image", "_full_image"):
        here, there = (each[key]["scale0"]["image"] if "full" in key else each[key] for each in (sdata, wanted))
        np.testing.assert_array_equal(here.values, there.values)
    assert sorted(folder.rglob("*")) == before


def test_survives_a_store(folder, tmp_path):
    read_visium_hd(folder).write(tmp_path / "a.zarr")
    assert image_mpp(read_zarr(tmp_path / "a.zarr"), "_full_image") == pytest.approx(MPP)


class TestRefuses:
    """Each with the message that says what is missing or does not fit."""

    def test_everything_that_is_missing_is_named_at_once(self, folder):
        (folder / "feature_slice.h5").unlink()
        (folder / "microscope_image" / "slide.btf").unlink()
        (folder / "binned_outputs/square_008um/spatial/tissue_positions.parquet").unlink()
        (folder / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5").unlink()
        with pytest.raises(
            FileNotFoundError,
            match=r"lacks: feature_slice.h5; .*008um/filtered.*h5 \(or.*008um/spatial/tissue_pos.*full-resolution",
        ):
            read_visium_hd(folder)

    @pytest.mark.parametrize("bins", [2, [8, 2]])
    def test_bins_that_are_not_there(self, folder, bins):
        with pytest.raises(ValueError, match=r"bin_um=.*has bins of \[8, 16\] um"):
            read_visium_hd(folder, bin_um=bins)

    def test_no_bins_at_all(self, folder):
        with pytest.raises(ValueError, match="bin_um is an empty list"):
            read_visium_hd(folder, bin_um=[])

    def test_scale_factors_that_contradict_themselves(self, folder):
        path = folder / "binned_outputs/square_008um/spatial/scalefactors_json.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"microns_per_pixel": 0.5}))
        with pytest.raises(ValueError, match=r"states 0.5 um per pixel, but bins of 8 um that are 10 px wide, .* 0.8"):
            read_visium_hd(folder)

    @pytest.mark.parametrize("value", [None, 0, "0.8"])
    def test_scale_factors_without_a_scale(self, folder, value):
        path = folder / "binned_outputs/square_008um/spatial/scalefactors_json.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"microns_per_pixel": value}))
        with pytest.raises(ValueError, match="must state microns_per_pixel"):
            read_visium_hd(folder)

    def test_the_reduced_image_instead_of_the_full_one(self, folder):
        tifffile.imwrite(folder / "small.tif", np.zeros((50, 50, 3), np.uint8), photometric="rgb")
        with pytest.raises(
            ValueError, match="50 x 50 px, but the image that Space Ranger was given had about 200 x 200"
        ):
            read_visium_hd(folder, image=folder / "small.tif")

    def test_several_images(self, folder):
        shutil.copy(folder / "microscope_image/slide.btf", folder / "other.btf")
        with pytest.raises(ValueError, match=r"several images: .*pass image="):
            read_visium_hd(folder)

    def test_a_folder_inside_it(self, folder):
        for inside in ("binned_outputs", "binned_outputs/square_008um"):
            with pytest.raises(ValueError, match="lies inside a Visium HD folder"):
                read_visium_hd(folder / inside)

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder at"):
            read_visium_hd(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="lacks: binned_outputs/"):
            read_visium_hd(tmp_path)
        (tmp_path / "filtered_feature_bc_matrix.h5").write_bytes(b"")
        with pytest.raises(ValueError, match="no Visium HD folder. io.read_visium reads Visium"):
            read_visium_hd(tmp_path)

    def test_without_the_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "spatialdata_io", None)
        with pytest.raises(ImportError, match=r"pip install 'stpredict\[io\]'"):
            read_visium_hd(folder)
