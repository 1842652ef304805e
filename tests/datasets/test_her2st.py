"""her2st from a folder, from a server on this machine, and the real sections."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import read_zarr
from spatialdata.transformations import get_transformation

import stpredict.datasets.her2st  # noqa: F401  the module, which the function of that name hides
from stpredict._fetch import Remote
from stpredict.datasets import her2st

N_SPOTS = {"C2": 187, "C3": 180, "C4": 184, "C5": 181}


def mpp_of(sdata) -> float:
    return float(
        get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    )


def write(folder, section, *, seed=0):
    """12 spots 60 px apart, of which one is not selected."""
    rng = np.random.default_rng(seed)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(1, 5), np.arange(1, 4)))
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x, "new_y": y, "pixel_x": 60.0 * x, "pixel_y": 60.0 * y})
    spots.assign(selected=(np.arange(12) != 5).astype(int)).to_csv(
        folder / f"{section}_selection.tsv", sep="\t", index=False
    )
    counts = pd.DataFrame(rng.poisson(2, (12, 3)), index=spots.x.astype(str) + "x" + spots.y.astype(str))
    counts.set_axis(["A", "B", "C"], axis=1).to_csv(folder / f"{section}.tsv.gz", sep="\t")
    Image.fromarray(rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)).save(folder / f"{section}.jpg")


@pytest.fixture
def module():
    import sys

    return sys.modules["stpredict.datasets.her2st"]


def test_sections_of_a_folder_in_the_order_asked(tmp_path):
    for seed, section in enumerate(("A1", "G2")):
        write(tmp_path, section, seed=seed)
    sections = her2st(["G2", "A1"], path=tmp_path)
    assert [sdata.attrs["name"] for sdata in sections] == ["G2", "A1"]
    assert [sdata.tables["table"].shape for sdata in sections] == [(11, 3), (11, 3)]
    assert [mpp_of(sdata) for sdata in sections] == [pytest.approx(200 / 60)] * 2
    assert (sections[0].tables["table"].X != sections[1].tables["table"].X).nnz > 0


def test_one_name_is_one_section(tmp_path):
    write(tmp_path, "A1")
    (sdata,) = her2st("A1", path=str(tmp_path))
    np.testing.assert_allclose(2 * sdata.shapes["spots"].radius * mpp_of(sdata), 100)


def test_missing_files_are_named(tmp_path):
    write(tmp_path, "A1")
    with pytest.raises(FileNotFoundError, match=r"section 'A2': no \['A2.tsv.gz', .*Sections there: \['A1'\]"):
        her2st(["A1", "A2"], path=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"Sections there: \[\]. There are some in {tmp_path}"):
        her2st("A1", path=tmp_path.parent)


def test_sections_without_checksums_cannot_be_fetched():
    with pytest.raises(ValueError, match=r"\['B1', 'C1'\]; those that can be fetched are \['C2', 'C3', 'C4', 'C5'\]"):
        her2st(["C2", "B1", "C1"])


def test_fetches_what_it_needs_and_checks_it(tmp_path, monkeypatch, module):
    (tmp_path / "www").mkdir()
    write(tmp_path / "www", "C2")

    def retrieve(url, known_hash, fname, path):
        source = tmp_path / "www" / url.rsplit("/", 1)[1]
        assert known_hash == f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
        path.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(source, path / fname))

    files = [tmp_path / "www" / name for name in ("C2.jpg", "C2.tsv.gz", "C2_selection.tsv")]
    registry = {f.name: Remote(f"https://x/{f.name}", hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}
    monkeypatch.setattr(module, "REGISTRY", registry)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("STPREDICT_DATA_DIR", str(tmp_path / "cache"))
    (sdata,) = her2st(["C2"])
    assert sdata.tables["table"].shape == (11, 3)
    assert {p.name for p in (tmp_path / "cache" / "her2st").iterdir()} == set(registry)


def test_registry_points_at_one_commit(module):
    assert len(module.REGISTRY) == 12
    for name, remote in module.REGISTRY.items():
        assert "/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data/" in remote.url
        assert name.rsplit(".", 1)[1] == remote.url.rsplit(".", 1)[1]
        assert len(bytes.fromhex(remote.sha256)) == 32


def test_checksums_are_those_of_the_real_files(data, module):
    listed = dict(line.split()[::-1] for line in (data / "her2st" / "sha256.txt").read_text().splitlines())
    assert listed == {name: remote.sha256 for name, remote in module.REGISTRY.items()}
    for name in ("C5_selection.tsv", "C5.tsv.gz", "C5.jpg"):
        assert hashlib.sha256((data / "her2st" / name).read_bytes()).hexdigest() == module.REGISTRY[name].sha256


def test_real_sections(data):
    sections = her2st(list(N_SPOTS), path=data / "her2st")
    for name, sdata in zip(N_SPOTS, sections, strict=True):
        table = sdata.tables["table"]
        assert table.n_obs == len(sdata.shapes["spots"]) == N_SPOTS[name]
        assert mpp_of(sdata) == pytest.approx(0.69, abs=0.005)
        assert (table.X.data == np.rint(table.X.data)).all()
        assert 8_000 < np.median(np.asarray(table.X.sum(axis=1))) < 11_000


@pytest.mark.slow
def test_a_real_section_survives_a_store(data, tmp_path):
    (sdata,) = her2st("C5", path=data / "her2st")
    sdata.write(tmp_path / "C5.zarr")
    back = read_zarr(tmp_path / "C5.zarr")
    assert (back.tables["table"].X != sdata.tables["table"].X).nnz == 0
    assert mpp_of(back) == mpp_of(sdata)
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(data / "her2st" / "C5.jpg") as image:
            expected = np.asarray(image.crop((4000, 3000, 5100, 4100)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    stored = back.images["image"]["scale0"]["image"][:, 3000:4100, 4000:5100].values
    np.testing.assert_array_equal(np.moveaxis(stored, 0, 2), expected)
