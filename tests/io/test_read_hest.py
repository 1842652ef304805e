"""read_hest on folders in the layout of HEST-1k, written here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from anndata import AnnData
from spatialdata import read_zarr
from spatialdata.models import get_table_keys
from spatialdata.transformations import Identity, get_transformation

from stpredict.io import read_hest

MPP, PITCH_PX = 2.0, 50.0
HEIGHT, WIDTH = 512, 600
GENES = ["ALB", "GNAS", "ERBB2"]
META = {"pixel_size_um_embedded": 1.9, "pixel_size_um_estimated": MPP, "spot_diameter": 55.0, "inter_spot_dist": 100.0}


@dataclass
class Sample:
    """What the files of a sample hold."""

    adata: AnnData
    pixels: np.ndarray


def make(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    row, column = (a.ravel() for a in np.mgrid[2:10, 4:20])
    on_array = (row + column) % 2 == 0
    row, column = row[on_array], column[on_array]
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": row, "array_col": column, "total_counts": 0.0},
        index=[f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in row],
    )
    counts = rng.poisson(2.0, (len(row), 3)).astype(np.float32)
    adata = AnnData(sp.csr_matrix(counts), obs, pd.DataFrame({"mito": False}, index=GENES))
    adata.obsm["spatial"] = np.stack([column * PITCH_PX / 2, row * PITCH_PX * np.sqrt(3) / 2], axis=1)
    picture = {"images": {"downscaled_fullres": np.zeros((8, 8, 3), np.uint8)}, "scalefactors": {"scalef": 0.1}}
    adata.uns["spatial"] = {"ST": picture}
    return Sample(adata, rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def write(root: Path, name: str, sample: Sample, *, meta: dict | None = None) -> None:
    for folder in ("st", "wsis", "metadata", "tissue_seg"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    sample.adata.write_h5ad(root / "st" / f"{name}.h5ad")
    (root / "metadata" / f"{name}.json").write_text(json.dumps(META if meta is None else meta))
    with tifffile.TiffWriter(root / "wsis" / f"{name}.tif") as file:  # a pyramid of pages, tiled
        for level, pixels in enumerate((sample.pixels, sample.pixels[::2, ::2])):
            file.write(pixels, tile=(128, 128), photometric="rgb", subfiletype=int(level > 0))


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path, "TENX96", make())
    return tmp_path


def mpp_of(sdata) -> float:
    return float(
        get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    )


def test_counts_and_places_are_those_of_the_sample(root):
    sdata = read_hest(root, name="TENX96")
    adata, table = make().adata, sdata.tables["table"]
    assert table.obs_names.tolist() == adata.obs_names.tolist() == sdata.shapes["spots"].index.tolist()
    assert table.var_names.tolist() == GENES
    np.testing.assert_array_equal(table.X.toarray(), adata.X.toarray())
    np.testing.assert_allclose(table.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_allclose(sdata.shapes["spots"].geometry.x, adata.obsm["spatial"][:, 0])
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], adata.obs[["array_row", "array_col"]])
    assert (table.obs["in_tissue"] == 1).all()


def test_layout_is_that_of_our_readers(root, tmp_path):
    sdata = read_hest(str(root))
    table = sdata.tables["table"]
    assert (set(sdata.images), set(sdata.shapes), set(sdata.tables)) == ({"image"}, {"spots"}, {"table"})
    assert sdata.attrs["name"] == "TENX96"
    assert isinstance(table.X, sp.csr_matrix | sp.csr_array)
    assert table.X.dtype == np.float32
    assert get_table_keys(table) == ("spots", "region", "instance_id")
    image = sdata.images["image"]["scale0"]["image"]
    assert (image.dims, image.dtype, image.c.values.tolist()) == (("c", "y", "x"), np.uint8, ["r", "g", "b"])
    np.testing.assert_array_equal(image.values, np.moveaxis(make().pixels, 2, 0))
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        assert get_transformation(element, "global") == Identity()
        assert set(get_transformation(element, get_all=True)) == {"global", "micrometers"}
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["table"].X != table.X).nnz == 0
    assert mpp_of(back) == mpp_of(sdata)


def test_scale_and_radius_come_from_the_metadata_or_the_arguments(root):
    sdata = read_hest(root)
    assert mpp_of(sdata) == MPP
    np.testing.assert_allclose(sdata.shapes["spots"].radius, 55 / 2 / MPP)
    given = read_hest(root, mpp=1.0, spot_diameter_um=100.0)
    assert mpp_of(given) == 1.0
    np.testing.assert_allclose(given.shapes["spots"].radius, 50.0)


def test_a_sample_of_several_is_read_by_its_name(root):
    other = make(1)
    write(root, "MEND139", other)
    np.testing.assert_array_equal(read_hest(root, name="MEND139").tables["table"].X.toarray(), other.adata.X.toarray())
    with pytest.raises(ValueError, match=r"holds 2 samples; give name=, one of \['MEND139', 'TENX96'\]"):
        read_hest(root)


@pytest.mark.parametrize("without", ["columns", "numbers"])
def test_pseudo_spots_without_an_array(root, without):
    sample = make()
    if without == "columns":
        sample.adata.obs = sample.adata.obs[["total_counts"]]
    else:
        sample.adata.obs["array_row"] = np.nan
    write(root, "TENX96", sample)
    assert {"array_row", "array_col"}.isdisjoint(read_hest(root).tables["table"].obs)


def test_a_distance_of_spots_that_is_not_stated_is_not_checked(root):
    write(root, "TENX96", make(), meta={**META, "inter_spot_dist": None, "pixel_size_um_estimated": 0.3})
    assert mpp_of(read_hest(root)) == 0.3


class TestRefuses:
    """Each with the message that says what to do."""

    @pytest.mark.parametrize("file", ["st/TENX96.h5ad", "wsis/TENX96.tif", "metadata/TENX96.json"])
    def test_a_missing_file(self, root, file):
        write(root, "TENX99", make())
        (root / file).unlink()
        with pytest.raises(FileNotFoundError, match=rf"'TENX96': no \['{file}'\] in .*Samples in its st/: \[.*TENX99"):
            read_hest(root, name="TENX96")

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder st/ in .*with st/, wsis/, metadata/"):
            read_hest(tmp_path)
        with pytest.raises(FileNotFoundError, match="no folder st/ in"):
            read_hest(tmp_path, name="TENX96")

    @pytest.mark.parametrize("value", ["absent", None, float("nan"), 0.0, "0.5"])
    @pytest.mark.parametrize(
        ("key", "argument"), [("pixel_size_um_estimated", "mpp"), ("spot_diameter", "spot_diameter_um")]
    )
    def test_metadata_without_a_length(self, root, key, argument, value):
        meta = {k: v for k, v in META.items() if k != key} | ({} if value == "absent" else {key: value})
        (root / "metadata" / "TENX96.json").write_text(json.dumps(meta))
        with pytest.raises(ValueError, match=f"TENX96.json states no {key} .*Give {argument}="):
            read_hest(root)
        assert read_hest(root, **{argument: 3.0}).tables["table"].n_obs == make().adata.n_obs

    @pytest.mark.parametrize("argument", ["mpp", "spot_diameter_um"])
    @pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
    def test_impossible_lengths(self, root, argument, value):
        with pytest.raises(ValueError, match=f"{argument}={value} must"):
            read_hest(root, **{argument: value})

    def test_a_scale_that_contradicts_the_spots(self, root):
        (root / "metadata" / "TENX96.json").write_text(json.dumps({**META, "pixel_size_um_estimated": 1.16}))
        with pytest.raises(ValueError, match="100 um apart and 1.16 um per pixel, .* lie 58 um apart. Give mpp="):
            read_hest(root)
        assert mpp_of(read_hest(root, mpp=1.16)) == 1.16

    def test_values_that_are_no_counts(self, root):
        sample = make()
        sample.adata.X = sample.adata.X * np.float32(0.3)
        write(root, "TENX96", sample)
        with pytest.raises(ValueError, match="non-integer.*Raw counts are needed"):
            read_hest(root)

    def test_no_positions(self, root):
        sample = make()
        del sample.adata.obsm["spatial"]
        write(root, "TENX96", sample)
        with pytest.raises(ValueError, match=r'no obsm\["spatial"\]'):
            read_hest(root)

    def test_spots_off_the_image(self, root):
        sample = make()
        sample.adata.obsm["spatial"] += 5000
        write(root, "TENX96", sample)
        with pytest.raises(ValueError, match="lie off the image of 600 x 512 px"):
            read_hest(root)

    def test_a_spot_without_a_position(self, root):
        sample = make()
        sample.adata.obsm["spatial"][4, 0] = np.nan
        write(root, "TENX96", sample)
        with pytest.raises(ValueError, match="without a pixel position: .*1 of"):
            read_hest(root)
