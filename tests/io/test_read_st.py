"""read_st against the tables it was written from; what it refuses; the real sections."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image
from spatialdata import read_zarr
from spatialdata.models import get_table_keys
from spatialdata.transformations import Identity, get_transformation

from stpredict.io import read_st


def read(files, **kwargs):
    return read_st(files.counts, files.image, files.spots, **kwargs)


def mpp_of(sdata) -> float:
    to_um = get_transformation(sdata.images["image"], "micrometers").to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(to_um, np.diag([to_um[0, 0], to_um[0, 0], 1]))
    return float(to_um[0, 0])


def expected_ids(files) -> list[str]:
    kept = files.places[files.places.selected == 1]
    ids = kept.x.astype(str) + "x" + kept.y.astype(str)
    return ids[ids.isin(files.table.index)].tolist()


def test_spots_of_both_files_that_are_selected(st_files):
    sdata = read(st_files)
    ids = expected_ids(st_files)
    table, spots = sdata.tables["table"], sdata.shapes["spots"]
    assert len(ids) == 27
    assert table.obs_names.tolist() == ids == spots.index.tolist() == table.obs["instance_id"].tolist()
    assert table.var_names.tolist() == list(st_files.table)
    np.testing.assert_array_equal(table.X.toarray(), st_files.table.loc[ids].to_numpy())


def test_positions_are_column_and_row(st_files):
    sdata = read(st_files)
    at = st_files.places.set_index(st_files.places.x.astype(str) + "x" + st_files.places.y.astype(str))
    at = at.loc[sdata.tables["table"].obs_names]
    xy = at[["pixel_x", "pixel_y"]].to_numpy()
    np.testing.assert_allclose(sdata.tables["table"].obsm["spatial"], xy)
    np.testing.assert_allclose(sdata.shapes["spots"].geometry.x, xy[:, 0])
    np.testing.assert_allclose(sdata.shapes["spots"].geometry.y, xy[:, 1])
    np.testing.assert_array_equal(sdata.tables["table"].obs["array_col"], at.x)
    np.testing.assert_array_equal(sdata.tables["table"].obs["array_row"], at.y)


def test_layout(st_files):
    sdata = read(st_files, name="A1")
    table = sdata.tables["table"]
    assert sdata.attrs["name"] == "A1"
    assert isinstance(table.X, sp.csr_matrix | sp.csr_array)
    assert table.X.dtype == np.float32
    assert get_table_keys(table) == ("spots", "region", "instance_id")
    image = sdata.images["image"]["scale0"]["image"]
    assert (image.dims, image.dtype, image.c.values.tolist()) == (("c", "y", "x"), np.uint8, ["r", "g", "b"])
    np.testing.assert_array_equal(image.values, np.moveaxis(st_files.pixels, 2, 0))
    for element in (sdata.images["image"], sdata.shapes["spots"]):
        assert get_transformation(element, "global") == Identity()
        assert set(get_transformation(element, get_all=True)) == {"global", "micrometers"}


def test_scale_and_radius(st_files):
    sdata = read(st_files, spot_diameter_um=110.0, pitch_um=220.0)
    assert mpp_of(sdata) == pytest.approx(220 / 40, rel=0.01)
    assert sdata.shapes["spots"].radius.to_numpy() == pytest.approx(55 / mpp_of(sdata))
    assert mpp_of(read(st_files)) == pytest.approx(mpp_of(sdata) * 200 / 220)


@pytest.mark.parametrize("axis", ["pixel_x", "pixel_y"])
def test_an_array_that_is_not_square(st_files, axis):
    square = mpp_of(read(st_files))
    wide = st_files.places.assign(**{axis: st_files.places[axis] * 1.5})
    wide.to_csv(st_files.spots, sep="\t", index=False)
    with pytest.raises(ValueError, match="disagree: .*pitch of its columns and of its rows"):
        read(st_files)
    pitch = (300.0, 200.0) if axis == "pixel_x" else (200.0, 300.0)
    sdata = read(st_files, pitch_um=pitch)
    assert mpp_of(sdata) == pytest.approx(square, rel=1e-4)
    assert sdata.shapes["spots"].radius.to_numpy() == pytest.approx(50 / square, rel=1e-4)
    with pytest.raises(ValueError, match="disagree"):
        read(st_files, pitch_um=pitch[::-1])


def test_one_pitch_twice_is_one_pitch(st_files):
    assert mpp_of(read(st_files, pitch_um=(200.0, 200.0))) == mpp_of(read(st_files))


def test_survives_a_store(st_files, tmp_path):
    sdata = read(st_files)
    sdata.write(tmp_path / "a.zarr")
    back = read_zarr(tmp_path / "a.zarr")
    assert (back.tables["table"].X != sdata.tables["table"].X).nnz == 0
    pd.testing.assert_frame_equal(back.tables["table"].obs, sdata.tables["table"].obs)
    assert back.shapes["spots"].geom_equals_exact(sdata.shapes["spots"], 0).all()
    assert mpp_of(back) == pytest.approx(mpp_of(sdata))
    image = back.images["image"]["scale0"]["image"].values
    np.testing.assert_array_equal(image, np.moveaxis(st_files.pixels, 2, 0))
    assert back.attrs["name"] == "section"


def _as_anndata(files):
    return AnnData(sp.csc_matrix(files.table.to_numpy()), files.table[[]], pd.DataFrame(index=files.table.columns))


def _as_h5ad(files):
    path = files.counts.with_name("a.h5ad")
    _as_anndata(files).write_h5ad(path)
    return path


def _as_csv(files):
    path = files.counts.with_name("a.csv")
    files.table.to_csv(path)
    return path


def _as_r_writes(files):
    path = files.counts.with_name("a.txt")
    header = "\t".join(f'"{gene}"' for gene in files.table)
    body = files.table.to_csv(sep="\t", header=False)
    path.write_text(f"{header}\n{body}")
    return path


@pytest.mark.parametrize("form", [_as_anndata, _as_h5ad, _as_csv, _as_r_writes])
def test_every_form_of_counts_gives_the_same_table(st_files, form):
    expected = read(st_files).tables["table"]
    table = read_st(form(st_files), st_files.image, st_files.spots).tables["table"]
    assert table.obs_names.tolist() == expected.obs_names.tolist()
    assert table.var_names.tolist() == expected.var_names.tolist()
    np.testing.assert_array_equal(table.X.toarray(), expected.X.toarray())


def test_counts_given_as_anndata_are_left_alone(st_files):
    counts = _as_anndata(st_files)
    read_st(counts, st_files.image, st_files.spots)
    assert list(counts.obs) == []
    assert not counts.obsm
    assert counts.n_obs == 30


def test_spots_by_barcode_without_array_coordinates(st_files, tmp_path):
    ids = st_files.places.x.astype(str) + "x" + st_files.places.y.astype(str)
    named = pd.DataFrame({"barcode": ids, "x_px": st_files.places.pixel_x, "y_px": st_files.places.pixel_y})
    named.to_csv(tmp_path / "spots.csv", index=False)
    sdata = read_st(st_files.counts, st_files.image, tmp_path / "spots.csv")
    assert sdata.tables["table"].n_obs == 29
    assert mpp_of(sdata) == pytest.approx(mpp_of(read(st_files)), rel=0.02)
    assert "array_row" not in sdata.tables["table"].obs


def test_column_spot_names_and_fractional_array_coordinates(st_files, tmp_path):
    ids = st_files.places.x.astype(str) + "x" + st_files.places.y.astype(str)
    renamed = {"new_x": "x", "new_y": "y", "pixel_x": "x_px", "pixel_y": "y_px"}
    named = st_files.places[list(renamed)].rename(columns=renamed).assign(spot=ids)
    named.to_csv(tmp_path / "spots.csv", index=False)
    obs = read_st(st_files.counts, st_files.image, tmp_path / "spots.csv").tables["table"].obs
    assert [f"{x}x{y}" for x, y in zip(obs.array_col, obs.array_row, strict=True)] == obs.index.tolist()


def test_anndata_without_counts(st_files):
    empty = AnnData(obs=st_files.table[[]], var=pd.DataFrame(index=st_files.table.columns))
    with pytest.raises(ValueError, match="30 spots and 4 genes has no X"):
        read_st(empty, st_files.image, st_files.spots)


class TestRefuses:
    """Each with the message that says what to do."""

    def put(self, files, column, value, row=3):
        files.table = files.table.astype(object)
        files.table.iloc[row, column] = value
        files.table.to_csv(files.counts, sep="\t")

    @pytest.mark.parametrize(
        ("value", "what"),
        [(-1, "negative"), (0.5, "non-integer"), ("", "NaN"), ("NA", "NaN"), (np.inf, "infinite"), (2**25, "float32")],
    )
    def test_what_is_no_count(self, st_files, value, what):
        self.put(st_files, 2, value)
        spot = st_files.table.index[3]
        with pytest.raises(ValueError, match=f"{what}.*: 1, the first .* at spot '{spot}', gene 'FASN'"):
            read(st_files)

    def test_text(self, st_files):
        self.put(st_files, 2, "many")
        with pytest.raises(ValueError, match="not a number.*many"):
            read(st_files)

    def test_duplicate_genes(self, st_files):
        st_files.table.set_axis(["GNAS", "ERBB2", "GNAS", "KRT19"], axis=1).to_csv(st_files.counts, sep="\t")
        with pytest.raises(ValueError, match=r"duplicate gene names.*\['GNAS'\] \(1 of 4\)"):
            read(st_files)

    def test_duplicate_spots_in_the_counts(self, st_files):
        pd.concat([st_files.table, st_files.table[:1]]).to_csv(st_files.counts, sep="\t")
        with pytest.raises(ValueError, match="duplicate spot ids.*1 of 31"):
            read(st_files)

    def test_duplicate_spots_in_the_spot_file(self, st_files):
        pd.concat([st_files.places, st_files.places[2:3]]).to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match=r"duplicate spot ids in .*\['5x5'\]"):
            read(st_files)

    def test_spot_without_position(self, st_files):
        st_files.places.loc[4, "pixel_x"] = np.nan
        st_files.places.to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match=r"without a pixel position: \['7x5'\]"):
            read(st_files)

    def test_no_common_spot(self, st_files):
        st_files.table.add_suffix("-1", axis=0).to_csv(st_files.counts, sep="\t")
        with pytest.raises(ValueError, match=r"no spot is in both files: .* name .*-1.*, the spot file \['3x5'"):
            read(st_files)

    def test_transposed_counts(self, st_files):
        st_files.table.T.to_csv(st_files.counts, sep="\t")
        with pytest.raises(ValueError, match="transpose it"):
            read(st_files)

    def test_nothing_selected(self, st_files):
        st_files.places.assign(selected=0).to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match="no spot is selected"):
            read(st_files)

    @pytest.mark.parametrize(
        ("lost", "needed"), [("pixel_x", "pixel_x, pixel_y or x_px, y_px"), ("x", "spot, or barcode")]
    )
    def test_missing_columns(self, st_files, lost, needed):
        st_files.places.drop(columns=lost).to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match=f"{needed}.*found"):
            read(st_files)

    def test_spots_off_the_image(self, st_files):
        st_files.places.assign(pixel_x=st_files.places.pixel_x + 5000).to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match="all 27 spots .* lie off the image of 360 x 300 px"):
            read(st_files)

    def test_grid_that_does_not_fit(self, st_files):
        st_files.places.assign(pixel_x=st_files.places.pixel_x / 3).to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match="disagree: the pitch is 13.. px .* and 40.. px"):
            read(st_files)

    def test_ragged_rows(self, st_files):
        st_files.counts = st_files.counts.with_name("ragged.tsv")
        st_files.counts.write_text("\tA\tB\n3x5\t1\t2\n4x5\t1\n")
        with pytest.raises(ValueError, match=r"\['4x5'\] has 1 values, others 2"):
            read(st_files)

    def test_header_of_another_length(self, st_files):
        st_files.counts = st_files.counts.with_name("header.tsv")
        st_files.counts.write_text("\tA\tB\tC\n3x5\t1\t2\n")
        with pytest.raises(ValueError, match="names 4 genes, but the rows hold 2"):
            read(st_files)

    def test_no_rows(self, st_files):
        st_files.table[:0].to_csv(st_files.counts, sep="\t")
        with pytest.raises(ValueError, match="holds no spots"):
            read(st_files)

    @pytest.mark.parametrize("diameter", [0.0, -1.0, 201.0, np.nan])
    def test_impossible_spots(self, st_files, diameter):
        with pytest.raises(ValueError, match="spot_diameter_um"):
            read(st_files, spot_diameter_um=diameter)

    @pytest.mark.parametrize("pitch", [(200.0, 0.0), (200.0, 99.0), (np.nan, 200.0), (200.0,), "200", (200.0, "x")])
    def test_impossible_pitches(self, st_files, pitch):
        with pytest.raises(ValueError, match="pitch_um"):
            read(st_files, pitch_um=pitch)

    def test_two_pitches_without_array_coordinates(self, st_files):
        ids = st_files.places.x.astype(str) + "x" + st_files.places.y.astype(str)
        places = st_files.places.assign(spot=ids).drop(columns=["x", "y"])
        places.to_csv(st_files.spots, sep="\t", index=False)
        with pytest.raises(ValueError, match=r"pitch_um=\(300.0, 200.0\) is not square, .* no array coordinates"):
            read(st_files, pitch_um=(300.0, 200.0))

    def test_grey_image(self, st_files):
        Image.fromarray(st_files.pixels[..., 0]).save(st_files.image)
        with pytest.raises(ValueError, match="not an 8-bit RGB image: its mode is 'L'"):
            read(st_files)

    @pytest.mark.parametrize("which", ["counts", "image", "spots"])
    def test_missing_file(self, st_files, which):
        getattr(st_files, which).unlink()
        with pytest.raises(FileNotFoundError, match=str(getattr(st_files, which))):
            read(st_files)

    def test_unknown_counts(self, st_files):
        with pytest.raises(ValueError, match="unknown format: 'a.xlsx'.*an AnnData"):
            (st_files.counts.parent / "a.xlsx").touch()
            read_st(st_files.counts.parent / "a.xlsx", st_files.image, st_files.spots)


def counts_of(folder, matrix, genes, ids):
    """The call that the documentation gives for a sparse matrix with names in two other files."""
    names = (folder / genes).read_text().split()
    return AnnData(sp.load_npz(folder / matrix), pd.DataFrame(index=ids), pd.DataFrame(index=names))


def test_mouse_olfactory_bulb(data, tmp_path):
    folder = data / "mob"
    ids = pd.read_csv(folder / "MOB1_spots.csv").spot
    counts = counts_of(folder, "MOB1_counts.npz", "MOB1_genes.txt", ids)
    sdata = read_st(counts, folder / "MOB1_he.jpg", folder / "MOB1_spots.csv", name="MOB1")
    assert mpp_of(sdata) == pytest.approx(3.44, abs=0.02)
    assert sdata.tables["table"].shape == (267, 16573)
    assert sdata.tables["table"].obs_names.tolist() == ids.tolist()
    sdata.write(tmp_path / "mob.zarr")
    back = read_zarr(tmp_path / "mob.zarr")
    assert (back.tables["table"].X != counts.X).nnz == 0
    with Image.open(folder / "MOB1_he.jpg") as image:
        expected = np.moveaxis(np.asarray(image), 2, 0)
    np.testing.assert_array_equal(back.images["image"]["scale0"]["image"].values, expected)


def test_mouse_colon(data):
    folder = data / "mouse_colon"
    ids = pd.read_csv(folder / "d0_spots.csv").barcode
    counts = counts_of(folder, "d0_counts.npz", "genes.txt", ids)
    sdata = read_st(counts, folder / "d0_he.jpg", folder / "d0_spots.csv", spot_diameter_um=55, pitch_um=100)
    assert mpp_of(sdata) == pytest.approx(0.971, abs=0.005)
    assert sdata.tables["table"].shape == (1758, 4338)
    assert len(sdata.shapes["spots"]) == 1758
