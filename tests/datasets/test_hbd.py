"""hbd on files in the layout of Mendeley Data 29ntw7sh4r, written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import read_zarr
from spatialdata.models import get_table_keys
from spatialdata.transformations import Identity, get_transformation

from stpredict.datasets import hbd

PITCH_PX = 40.0
GENES = ["ENSG00000000003", "ENSG00000000419", "ENSG00000000457"]


@dataclass
class Published:
    """What a section's files hold."""

    counts: pd.DataFrame  # of the whole array
    spots: pd.DataFrame  # under tissue
    pixels: np.ndarray


def write(folder: Path, patient: str, replicate: str, *, letters: str = "BC", seed: int = 0) -> dict[str, str]:
    """The files of a section; images and spots of some patients are called BT, of others BC."""
    published = make(seed)
    number = patient.removeprefix("BC")
    row = {
        "type": "HER2_luminal" if seed % 2 else "TNBC",
        "patient": patient,
        "replicate": replicate,
        "count_matrix": f"{patient}_{replicate}_stdata.tsv.gz",
        "histology_image": f"HE_{letters}{number}_{replicate}.jpg",
        "spot_coordinates": f"spots_{letters}{number}_{replicate}.csv.gz",
        "tumor_annotation": f"{patient}_{replicate}_Coords.tsv.gz",
    }
    published.counts.to_csv(folder / row["count_matrix"], sep="\t")
    published.spots.to_csv(folder / row["spot_coordinates"])
    Image.fromarray(published.pixels).save(folder / row["histology_image"])
    return row


def make(seed: int) -> Published:
    rng = np.random.default_rng(seed)
    column, row = (a.ravel() for a in np.meshgrid(np.arange(2, 9), np.arange(4, 10)))
    ids = [f"{x}x{y}" for x, y in zip(column, row, strict=True)]
    counts = pd.DataFrame(rng.poisson(2.0, (len(ids), 3)), index=ids, columns=GENES).sample(frac=1, random_state=seed)
    pixel = {"X": column * PITCH_PX - 30 + rng.normal(0, 1, len(ids)), "Y": row * PITCH_PX - 100}
    spots = pd.DataFrame(pixel, index=ids)[np.hypot(column - 5, row - 7) < 2.9]
    return Published(counts, spots, rng.integers(0, 256, (320, 360, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [
        write(tmp_path, "BC23287", "C1", letters="BT", seed=0),
        write(tmp_path, "BC23287", "C2", letters="BC", seed=1),
        write(tmp_path, "BC23450", "D2", letters="BT", seed=2),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path


def mpp_of(sdata) -> float:
    return float(
        get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    )


def test_spots_under_tissue_with_their_counts(folder):
    (sdata,) = hbd("BC23287_C1", path=folder)
    published, table = make(0), sdata.tables["table"]
    ids = published.spots.index.tolist()
    assert 10 < len(ids) < 42
    assert table.obs_names.tolist() == ids == sdata.shapes["spots"].index.tolist()
    assert table.var_names.tolist() == GENES
    np.testing.assert_array_equal(table.X.toarray(), published.counts.loc[ids].to_numpy())
    np.testing.assert_allclose(table.obsm["spatial"], published.spots[["X", "Y"]].to_numpy())
    assert [f"{x}x{y}" for x, y in zip(table.obs.array_col, table.obs.array_row, strict=True)] == ids


def test_layout_is_that_of_our_readers(folder, tmp_path):
    (sdata,) = hbd("BC23287_C2", path=str(folder))
    assert (set(sdata.images), set(sdata.shapes), set(sdata.tables)) == ({"image"}, {"spots"}, {"table"})
    assert get_table_keys(sdata.tables["table"]) == ("spots", "region", "instance_id")
    assert sdata.tables["table"].X.dtype == np.float32
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        assert get_transformation(element, "global") == Identity()
        assert set(get_transformation(element, get_all=True)) == {"global", "micrometers"}
    assert mpp_of(sdata) == pytest.approx(200 / PITCH_PX, rel=0.02)
    np.testing.assert_allclose(2 * sdata.shapes["spots"].radius * mpp_of(sdata), 100)
    assert sdata.images["image"]["scale0"]["image"].shape == (3, 320, 360)
    assert sdata.attrs["name"] == "BC23287_C2"
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["table"].X != sdata.tables["table"].X).nnz == 0
    assert (back.attrs["patient"], back.attrs["type"]) == ("BC23287", "HER2_luminal")


def test_all_sections_of_the_index_or_those_asked_in_their_order(folder):
    assert [s.attrs["name"] for s in hbd(path=folder)] == ["BC23287_C1", "BC23287_C2", "BC23450_D2"]
    asked = hbd(["BC23450_D2", "BC23287_C1"], path=folder)
    assert [s.attrs["patient"] for s in asked] == ["BC23450", "BC23287"]
    assert (asked[0].tables["table"].X.sum(), asked[1].tables["table"].X.sum()) == tuple(
        make(seed).counts.loc[make(seed).spots.index].to_numpy().sum() for seed in (2, 0)
    )


class TestRefuses:
    """Each with the message that says what to do."""

    def test_to_fetch_what_has_no_checksum(self):
        with pytest.raises(ValueError, match=r"no checksums.*not fetched.*mendeley.com/datasets/29ntw7sh4r/5.*path="):
            hbd(["BC23287_C1"])

    def test_a_folder_without_the_index(self, tmp_path):
        (tmp_path / "other.csv").touch()
        with pytest.raises(FileNotFoundError, match=r"no metadata.csv in .*\['other.csv'\].*29ntw7sh4r"):
            hbd(path=tmp_path)
        with pytest.raises(FileNotFoundError, match="no metadata.csv in .*no folder"):
            hbd(path=tmp_path / "nothing")

    def test_sections_that_are_not_there(self, folder):
        with pytest.raises(ValueError, match=r"\['BC1_C1'\] are not in .*those there are \['BC23287_C1', "):
            hbd(["BC23287_C1", "BC1_C1"], path=folder)

    def test_files_that_the_index_names_and_the_folder_lacks(self, folder):
        (folder / "HE_BT23287_C1.jpg").unlink()
        (folder / "BC23287_C1_stdata.tsv.gz").unlink()
        missing = r"\['BC23287_C1_stdata.tsv.gz', 'HE_BT23287_C1.jpg'\]"
        with pytest.raises(FileNotFoundError, match=f"section 'BC23287_C1': no {missing} in"):
            hbd("BC23287_C1", path=folder)

    def test_an_index_of_another_form(self, folder):
        pd.read_csv(folder / "metadata.csv").drop(columns="histology_image").to_csv(
            folder / "metadata.csv", index=False
        )
        with pytest.raises(ValueError, match=r"lacks the columns \['histology_image'\], found \['type', "):
            hbd(path=folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda spots: spots.rename(columns={"X": "x"}), r"needed are the columns X and Y, found \['x', 'Y'\]"),
            (lambda spots: spots.rename(index={spots.index[0]: "s1"}), r"not as 'XxY': \['s1'\] \(1 of"),
            (lambda spots: pd.concat([spots, spots[:1]]), "named twice"),
            (lambda spots: spots.assign(X=spots.X.where(np.arange(len(spots)) != 2)), "without a pixel position"),
            (lambda spots: spots.assign(X=spots.X + 5000), "all .* spots of section 'BC23287_C1' lie off the image"),
            (lambda spots: spots.set_axis([f"5{i}" for i in spots.index], axis=0), "no spot has both counts and a pos"),
        ],
    )
    def test_spot_files_that_do_not_fit(self, folder, change, message):
        change(make(0).spots).to_csv(folder / "spots_BT23287_C1.csv.gz")
        with pytest.raises(ValueError, match=message):
            hbd("BC23287_C1", path=folder)

    def test_values_that_are_no_counts(self, folder):
        (make(0).counts + 0.5).to_csv(folder / "BC23287_C1_stdata.tsv.gz", sep="\t")
        with pytest.raises(ValueError, match="non-integer.*Raw counts are needed"):
            hbd("BC23287_C1", path=folder)
