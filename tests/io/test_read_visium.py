"""read_visium on a folder in the layout that Space Ranger publishes, written here."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import tifffile
from PIL import Image
from spatialdata import read_zarr
from spatialdata.transformations import Identity, get_transformation

from stpredict.io import read_visium

# spatialdata-io 0.7.1 against pandas 3.1
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.drop:pandas.errors.Pandas4Warning")

PITCH_PX = 50.0  # 100 um: the image has 2 um per pixel
HEIGHT, WIDTH = 480, 560
HIRES = 0.25
POSITION_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


@dataclass
class Slide:
    """What the folder holds."""

    root: Path
    pixels: np.ndarray
    positions: pd.DataFrame  # of all spots of the array, index = barcodes
    counts: pd.DataFrame  # of those under tissue, in another order
    names: dict[str, str] = field(default_factory=dict)  # gene symbol -> Ensembl id


def make_slide(root: Path, *, spot_um: float = 65.0) -> Slide:
    rng = np.random.default_rng(5)
    row, col = (a.ravel() for a in np.mgrid[2:10, 4:20])
    on_array = (row + col) % 2 == 0
    row, col = row[on_array], col[on_array]
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in row]
    positions = pd.DataFrame(
        {"in_tissue": (rng.random(len(row)) < 0.8).astype(int), "array_row": row, "array_col": col}
    )
    positions["pxl_row_in_fullres"] = np.rint(row * PITCH_PX * np.sqrt(3) / 2).astype(int)
    positions["pxl_col_in_fullres"] = np.rint(col * PITCH_PX / 2).astype(int)
    positions.index = pd.Index(barcodes, name="barcode")
    tissue = rng.permutation(positions.index[positions.in_tissue == 1].to_numpy())
    names = {"Actb": "ENSMUSG1", "Gnas": "ENSMUSG2", "Scd1": "ENSMUSG3"}
    counts = pd.DataFrame(rng.poisson(3.0, (len(tissue), 3)), index=tissue, columns=list(names))
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    slide = Slide(root, pixels, positions, counts, names)
    write(slide, spot_um=spot_um)
    return slide


def write(slide: Slide, *, spot_um: float) -> None:
    spatial = slide.root / "spatial"
    spatial.mkdir(parents=True)
    write_h5(slide.root / "filtered_feature_bc_matrix.h5", slide)
    slide.positions.reset_index()[POSITION_COLUMNS].to_csv(spatial / "tissue_positions.csv", index=False)
    scales = {"tissue_hires_scalef": HIRES, "tissue_lowres_scalef": HIRES / 4, "fiducial_diameter_fullres": 90.0}
    (spatial / "scalefactors_json.json").write_text(
        json.dumps({**scales, "spot_diameter_fullres": spot_um * PITCH_PX / 100})
    )
    small = Image.fromarray(slide.pixels).resize((round(WIDTH * HIRES), round(HEIGHT * HIRES)))
    small.save(spatial / "tissue_hires_image.png")
    small.save(spatial / "detected_tissue_image.jpg")
    tifffile.imwrite(slide.root / "tissue.tif", slide.pixels, photometric="rgb")


def write_h5(path: Path, slide: Slide) -> None:
    matrix = sp.csc_matrix(slide.counts.to_numpy().T)  # genes x barcodes, compressed by barcode
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([b"lib"])
        group = file.create_group("matrix")
        group["barcodes"] = np.array(slide.counts.index, dtype="S")
        group["data"], group["indices"], group["indptr"] = matrix.data.astype("i4"), matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape, dtype="i4")
        group["features/id"] = np.array(list(slide.names.values()), dtype="S")
        group["features/name"] = np.array(list(slide.counts), dtype="S")
        group["features/feature_type"] = np.array([b"Gene Expression"] * 3)
        group["features/genome"] = np.array([b"mm10"] * 3)


@pytest.fixture
def slide(tmp_path) -> Slide:
    return make_slide(tmp_path / "V1")


def mpp_of(sdata) -> float:
    return float(
        get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    )


def test_layout_is_that_of_our_readers(slide):
    sdata = read_visium(slide.root)
    assert (set(sdata.images), set(sdata.shapes), set(sdata.tables)) == ({"image"}, {"spots"}, {"table"})
    np.testing.assert_array_equal(sdata.images["image"]["scale0"]["image"].values, np.moveaxis(slide.pixels, 2, 0))
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        assert get_transformation(element, "global") == Identity()
        assert set(get_transformation(element, get_all=True)) == {"global", "micrometers"}
    assert sdata.attrs["name"] == "V1"
    assert read_visium(slide.root, name="other").attrs["name"] == "other"


def test_each_barcode_has_its_counts_and_its_place(slide):
    sdata = read_visium(slide.root)
    table, spots = sdata.tables["table"], sdata.shapes["spots"]
    assert set(table.obs_names) == set(slide.counts.index)
    assert spots.index.tolist() == table.obs["instance_id"].tolist() == table.obs_names.tolist()
    np.testing.assert_array_equal(table[slide.counts.index].X.toarray(), slide.counts.to_numpy())
    at = slide.positions.loc[table.obs_names]
    np.testing.assert_array_equal(spots.geometry.x, at.pxl_col_in_fullres)
    np.testing.assert_array_equal(spots.geometry.y, at.pxl_row_in_fullres)
    np.testing.assert_array_equal(table.obsm["spatial"], at[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    for column in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(table.obs[column], at[column])
    assert table.var["gene_ids"].to_dict() == slide.names
    assert isinstance(table.X, sp.csr_matrix | sp.csr_array)
    assert table.X.dtype == np.float32


@pytest.mark.parametrize("spot_um", [55.0, 65.0])
def test_scale_is_the_pitch_whatever_the_drawn_spot(tmp_path, spot_um):
    sdata = read_visium(make_slide(tmp_path / "V1", spot_um=spot_um).root)
    assert mpp_of(sdata) == pytest.approx(2.0, rel=5e-3)
    np.testing.assert_allclose(2 * sdata.shapes["spots"].radius * mpp_of(sdata), 55.0)


def test_positions_of_space_ranger_1(slide):
    expected = read_visium(slide.root)
    spatial = slide.root / "spatial"
    (spatial / "tissue_positions.csv").unlink()
    slide.positions.reset_index()[POSITION_COLUMNS].to_csv(
        spatial / "tissue_positions_list.csv", index=False, header=False
    )
    sdata = read_visium(slide.root)
    pd.testing.assert_frame_equal(sdata.tables["table"].obs, expected.tables["table"].obs)
    assert sdata.shapes["spots"].geom_equals(expected.shapes["spots"]).all()


def test_names_with_a_prefix(slide):
    counts = slide.root / "filtered_feature_bc_matrix.h5"
    counts.rename(counts.with_name("V1_Mouse_filtered_feature_bc_matrix.h5"))
    (slide.root / "tissue.tif").rename(slide.root / "V1_Mouse_image.tif")
    assert read_visium(slide.root).tables["table"].n_obs == len(slide.counts)


def test_outs_with_the_image_beside_it(tmp_path):
    slide = make_slide(tmp_path / "run" / "outs")
    (slide.root / "tissue.tif").rename(tmp_path / "run" / "tissue.tif")
    sdata = read_visium(tmp_path / "run")
    assert sdata.tables["table"].n_obs == len(slide.counts)
    assert sdata.attrs["name"] == "run"


def test_image_from_elsewhere(slide, tmp_path):
    (slide.root / "tissue.tif").rename(tmp_path / "elsewhere.tif")
    sdata = read_visium(slide.root, image=tmp_path / "elsewhere.tif")
    assert sdata.images["image"]["scale0"]["image"].shape == (3, HEIGHT, WIDTH)


def test_gene_symbols_that_occur_twice_are_told_apart(slide):
    slide.counts.columns = ["Actb", "Gnas", "Gnas"]
    write_h5(slide.root / "filtered_feature_bc_matrix.h5", slide)
    assert read_visium(slide.root).tables["table"].var_names.tolist() == ["Actb", "Gnas", "Gnas-1"]


def write_mtx(slide: Slide, folder: Path, *, zipped: bool) -> None:
    """What `write_h5` writes, as matrix.mtx, barcodes.tsv and features.tsv."""
    folder.mkdir()
    opened = gzip.open if zipped else open
    suffix = ".gz" if zipped else ""
    with opened(folder / f"matrix.mtx{suffix}", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(slide.counts.to_numpy().T), field="integer")
    ids = [f"{gene}\t{name}\tGene Expression" for name, gene in slide.names.items()]
    for name, lines in (("features.tsv", ids), ("barcodes.tsv", slide.counts.index)):
        with opened(folder / f"{name}{suffix}", "wt") as file:
            file.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "V1_Mouse_"])
def test_counts_as_mtx_where_the_h5_is_missing(slide, zipped, prefix):
    wanted = read_visium(slide.root)
    (slide.root / "filtered_feature_bc_matrix.h5").unlink()
    write_mtx(slide, slide.root / f"{prefix}filtered_feature_bc_matrix", zipped=zipped)
    before = sorted(slide.root.rglob("*"))
    table, expected = read_visium(slide.root).tables["table"], wanted.tables["table"]
    assert (table.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(table.obs, expected.obs)
    assert table.var["gene_ids"].to_dict() == slide.names
    assert sorted(slide.root.rglob("*")) == before  # nothing is written there


def test_survives_a_store(slide, tmp_path):
    sdata = read_visium(slide.root)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["table"].X != sdata.tables["table"].X).nnz == 0
    pd.testing.assert_frame_equal(back.tables["table"].obs, sdata.tables["table"].obs)
    assert mpp_of(back) == pytest.approx(mpp_of(sdata))


class TestRefuses:
    """Each with the message that says what is missing or does not fit."""

    def test_everything_that_is_missing_is_named_at_once(self, slide):
        (slide.root / "tissue.tif").unlink()
        (slide.root / "spatial" / "tissue_positions.csv").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"lacks: spatial/tissue_positions.csv \(or .*full-resolution image"
        ):
            read_visium(slide.root)

    @pytest.mark.parametrize("file", ["filtered_feature_bc_matrix.h5", "spatial/scalefactors_json.json"])
    def test_one_file_is_missing(self, slide, file):
        (slide.root / file).unlink()
        with pytest.raises(FileNotFoundError, match=rf"lacks: {file}( \(or the folder [^;]*\))?\.$"):
            read_visium(slide.root)

    def test_mtx_of_another_section(self, slide):
        (slide.root / "filtered_feature_bc_matrix.h5").unlink()
        folder = slide.root / "filtered_feature_bc_matrix"
        write_mtx(slide, folder, zipped=False)
        (folder / "barcodes.tsv").write_text("A-1\n")
        with pytest.raises(ValueError, match=r"names 3 features and barcodes.tsv 1 barcodes. The files do not belong"):
            read_visium(slide.root)

    @pytest.mark.parametrize("text", ["", "nonsense", "3 2 1\n1 1 2.5\n", "3 2 2\n1 1 2\n", "3 2 1\n4 1 2\n"])
    def test_mtx_that_holds_no_counts(self, slide, text):
        (slide.root / "filtered_feature_bc_matrix.h5").unlink()
        folder = slide.root / "filtered_feature_bc_matrix"
        write_mtx(slide, folder, zipped=False)
        (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n" + text)
        with pytest.raises(ValueError, match="matrix.mtx cannot be read as counts"):
            read_visium(slide.root)

    def test_mtx_without_its_barcodes(self, slide):
        (slide.root / "filtered_feature_bc_matrix.h5").unlink()
        folder = slide.root / "filtered_feature_bc_matrix"
        write_mtx(slide, folder, zipped=True)
        (folder / "barcodes.tsv.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"filtered_feature_bc_matrix.h5 \(or the folder"):
            read_visium(slide.root)

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder at"):
            read_visium(tmp_path / "nothing")

    def test_several_images(self, slide):
        tifffile.imwrite(slide.root / "other.tif", slide.pixels, photometric="rgb")
        with pytest.raises(ValueError, match=r"several images: \['other.tif', 'tissue.tif'\].*pass image="):
            read_visium(slide.root)

    def test_the_reduced_image_instead_of_the_full_one(self, slide):
        small = slide.pixels[::4, ::4].copy()
        tifffile.imwrite(slide.root / "tissue.tif", small, photometric="rgb")
        with pytest.raises(
            ValueError, match="140 x 120 px, but the image that Space Ranger was given had about 560 x 480"
        ):
            read_visium(slide.root)

    def test_scale_factors_of_another_slide(self, slide):
        path = slide.root / "spatial" / "scalefactors_json.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "spot_diameter_fullres": 100.0}))
        with pytest.raises(ValueError, match="200 um at the pitch of .*belong together"):
            read_visium(slide.root)

    def test_positions_of_another_slide(self, slide):
        path = slide.root / "spatial" / "tissue_positions.csv"
        table = pd.read_csv(path)
        table["barcode"] = "X" + table["barcode"]
        table.to_csv(path, index=False)
        with pytest.raises(ValueError, match="barcodes of the counts without a position"):
            read_visium(slide.root)

    def test_visium_hd(self, slide):
        (slide.root / "binned_outputs").mkdir()
        with pytest.raises(ValueError, match="Visium HD.*io.read_visium_hd"):
            read_visium(slide.root)

    def test_one_bin_folder_of_visium_hd(self, slide):
        (slide.root / "spatial" / "tissue_positions.parquet").write_bytes(b"")
        with pytest.raises(ValueError, match="one bin folder of Visium HD.*io.read_visium_hd"):
            read_visium(slide.root)

    @pytest.mark.parametrize(("name", "header", "other"), [
        ("tissue_positions.csv", False, "tissue_positions_list.csv"),
        ("tissue_positions_list.csv", True, "tissue_positions.csv"),
    ])  # fmt: skip
    def test_positions_whose_header_does_not_fit_their_name(self, slide, name, header, other):
        (slide.root / "spatial" / "tissue_positions.csv").unlink()
        table = slide.positions.reset_index()[POSITION_COLUMNS]
        table.to_csv(slide.root / "spatial" / name, index=False, header=header)
        with pytest.raises(ValueError, match=rf"{name} has {'a' if header else 'no'} header line.*Rename .* {other}"):
            read_visium(slide.root)

    def test_without_the_extra(self, slide, monkeypatch):
        monkeypatch.setitem(sys.modules, "spatialdata_io", None)
        with pytest.raises(ImportError, match=r"pip install 'stpredict\[io\]'"):
            read_visium(slide.root)
