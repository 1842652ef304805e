"""gse240429 on files in the layout of GEO, written here."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from scipy.io import mmwrite
from spatialdata import read_zarr
from spatialdata.models import get_table_keys
from spatialdata.transformations import Identity, get_transformation

from stpredict.datasets import gse240429

PITCH_PX = 50.0
HEIGHT, WIDTH = 480, 560
FEATURES = [("ENSG1", "ALB"), ("ENSG2", "TBCE"), ("ENSG3", "TBCE"), ("ENSG4", "CYP3A4")]
SYMBOLS = ["ALB", "TBCE", "TBCE-1", "CYP3A4"]


@dataclass
class Published:
    """What a sample's files hold."""

    positions: pd.DataFrame  # of the whole array, index = barcodes
    counts: pd.DataFrame  # of the spots under tissue
    pixels: np.ndarray


def make(seed: int) -> Published:
    rng = np.random.default_rng(seed)
    row, column = (a.ravel() for a in np.mgrid[2:10, 4:20])
    on_array = (row + column) % 2 == 0
    row, column = row[on_array], column[on_array]
    barcodes = pd.Index([f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in row])
    positions = pd.DataFrame(
        {
            "in_tissue": (rng.random(len(row)) < 0.8).astype(int),
            "array_row": row,
            "array_col": column,
            "row_px": np.rint(row * PITCH_PX * np.sqrt(3) / 2).astype(int),
            "column_px": np.rint(column * PITCH_PX / 2).astype(int),
        },
        index=barcodes,
    )
    tissue = rng.permutation(barcodes[positions.in_tissue == 1].to_numpy())
    counts = pd.DataFrame(rng.poisson(3.0, (len(tissue), 4)), index=tissue, columns=[gene for gene, _ in FEATURES])
    return Published(positions, counts, rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def write(folder: Path, sample: str, section: str, *, seed: int, tables: str = "C73{}_VISIUM") -> None:
    published, prefix = make(seed), f"{sample}_{tables.format(section)}"
    with gzip.open(folder / f"{prefix}_matrix.mtx.gz", "wb") as file:
        mmwrite(file, sp.coo_matrix(published.counts.to_numpy().T))  # genes x barcodes
    published.counts.index.to_frame().to_csv(folder / f"{prefix}_barcodes.tsv.gz", sep="\t", header=False, index=False)
    features = pd.DataFrame([(*feature, "Gene Expression") for feature in FEATURES])
    features.to_csv(folder / f"{prefix}_features.tsv.gz", sep="\t", header=False, index=False)
    published.positions.to_csv(folder / f"{prefix}_tissue_positions_list.csv.gz", header=False)
    (folder / f"{prefix}_scalefactors_json.json.gz").write_bytes(gzip.compress(b"{}"))
    tifffile.imwrite(folder / f"{sample}_GEX_C73_{section}_Merged.tiff", published.pixels, photometric="rgb")


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, section in enumerate(("A1", "B1", "C1", "D1")):
        write(tmp_path, f"GSM{7697868 + i}", section, seed=i)
    return tmp_path


def mpp_of(sdata) -> float:
    return float(
        get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    )


def test_spots_with_counts_at_their_places(folder):
    (sdata,) = gse240429("C1", path=folder)
    published, table = make(2), sdata.tables["table"]
    places = published.positions[published.positions.in_tissue == 1]
    assert table.obs_names.tolist() == places.index.tolist() == sdata.shapes["spots"].index.tolist()
    np.testing.assert_array_equal(table.X.toarray(), published.counts.loc[places.index].to_numpy())
    np.testing.assert_array_equal(table.obsm["spatial"], places[["column_px", "row_px"]].to_numpy())
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], places[["array_row", "array_col"]])
    assert (table.obs["in_tissue"] == 1).all()
    assert table.var_names.tolist() == SYMBOLS
    assert table.var["gene_ids"].tolist() == [gene for gene, _ in FEATURES]


def test_layout_is_that_of_our_readers(folder, tmp_path):
    (sdata,) = gse240429(["A1"], path=str(folder))
    assert (set(sdata.images), set(sdata.shapes), set(sdata.tables)) == ({"image"}, {"spots"}, {"table"})
    assert get_table_keys(sdata.tables["table"]) == ("spots", "region", "instance_id")
    image = sdata.images["image"]["scale0"]["image"].values
    np.testing.assert_array_equal(image, np.moveaxis(make(0).pixels, 2, 0))
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        assert get_transformation(element, "global") == Identity()
    assert mpp_of(sdata) == pytest.approx(100 / PITCH_PX, rel=0.01)
    np.testing.assert_allclose(2 * sdata.shapes["spots"].radius * mpp_of(sdata), 55)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["table"].X != sdata.tables["table"].X).nnz == 0
    assert back.tables["table"].var["gene_ids"].tolist() == [gene for gene, _ in FEATURES]


def test_all_four_or_those_asked_in_their_order(folder):
    assert [s.attrs["name"] for s in gse240429(path=folder)] == ["A1", "B1", "C1", "D1"]
    sections = gse240429(["D1", "B1"], path=folder)
    assert [s.attrs["name"] for s in sections] == ["D1", "B1"]
    assert [s.tables["table"].n_obs for s in sections] == [len(make(3).counts), len(make(1).counts)]


def test_folders_of_samples_plain_tables_and_other_names(tmp_path):
    inner = tmp_path / "GSM7697869_C73B1"
    inner.mkdir()
    write(inner, "GSM7697869", "B1", seed=1, tables="C73{}")
    for packed in inner.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    image = next(inner.glob("*.tiff"))
    image.rename(image.with_suffix(".tif"))
    (sdata,) = gse240429("B1", path=tmp_path)
    published = make(1)
    table = sdata.tables["table"]
    np.testing.assert_array_equal(table.X.toarray(), published.counts.loc[table.obs_names].to_numpy())


def test_spots_off_tissue_keep_that_they_are(folder):
    positions = make(0).positions
    first = make(0).counts.index[0]
    positions.loc[first, "in_tissue"] = 0
    positions.to_csv(folder / "GSM7697868_C73A1_VISIUM_tissue_positions_list.csv.gz", header=False)
    in_tissue = gse240429("A1", path=folder)[0].tables["table"].obs["in_tissue"]
    assert in_tissue.index[in_tissue == 0].tolist() == [first]


class TestRefuses:
    """Each with the message that says what to do."""

    def test_to_fetch_what_has_no_checksum(self):
        with pytest.raises(
            ValueError, match=r"no checksums.*not fetched.*\['GSM7697870'\] from .*acc=GSE240429, unpack.*path="
        ):
            gse240429("C1")

    def test_other_sections(self, folder):
        with pytest.raises(ValueError, match=r"no sections \['A2'\]; it has \['A1', 'B1', 'C1', 'D1'\]"):
            gse240429(["A1", "A2"], path=folder)

    def test_all_that_is_missing_at_once(self, folder):
        next(folder.glob("GSM7697871*barcodes*")).unlink()
        next(folder.glob("GSM7697871*.tiff")).unlink()
        with pytest.raises(
            FileNotFoundError, match=r"'D1': no \['GSM7697871\*barcodes.tsv.gz', 'GSM7697871\*_Merged.tif'\].*GSE240429"
        ):
            gse240429("D1", path=folder)

    def test_an_image_that_is_still_packed(self, folder):
        image = folder / "GSM7697868_GEX_C73_A1_Merged.tiff"
        image.rename(image.with_name(f"{image.name}.gz"))
        with pytest.raises(FileNotFoundError, match="Unpack GSM7697868_GEX_C73_A1_Merged.tiff.gz"):
            gse240429("A1", path=folder)

    def test_two_files_that_could_be_meant(self, folder):
        (folder / "GSM7697868_other_matrix.mtx").touch()
        with pytest.raises(ValueError, match="several files of GSM7697868.*matrix.mtx.gz.*other_matrix.mtx"):
            gse240429("A1", path=folder)

    def test_tables_of_different_samples(self, folder):
        barcodes = next(folder.glob("GSM7697868*barcodes*"))
        barcodes.write_bytes(gzip.compress(b"AAAC-1\nAAAG-1\n"))
        with pytest.raises(ValueError, match=r"4 genes x \d+ barcodes, but .* name 4 and 2.*different samples"):
            gse240429("A1", path=folder)

    def test_positions_of_another_sample(self, folder):
        make(9).positions.to_csv(folder / "GSM7697868_C73A1_VISIUM_tissue_positions_list.csv.gz", header=False)
        with pytest.raises(ValueError, match="section 'A1': no spot has both counts and a position"):
            gse240429("A1", path=folder)

    def test_positions_of_another_form(self, folder):
        path = folder / "GSM7697868_C73A1_VISIUM_tissue_positions_list.csv.gz"
        make(0).positions.to_csv(path)
        with pytest.raises(ValueError, match="without numbers: .*1 of"):
            gse240429("A1", path=folder)
        make(0).positions.drop(columns="in_tissue").to_csv(path, header=False)
        with pytest.raises(ValueError, match="has 5 columns; .* has 6, without a header"):
            gse240429("A1", path=folder)
