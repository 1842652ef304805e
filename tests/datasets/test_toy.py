from __future__ import annotations

import numpy as np
import pytest
import shapely
import spatialdata
from geopandas import GeoDataFrame
from sklearn.linear_model import RidgeCV
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, Identity, Sequence, get_transformation, set_transformation

FIELD_MPP = 2.0


@pytest.fixture(scope="module")
def toy_module():
    import importlib

    return importlib.import_module("stpredict.datasets.toy")  # `datasets.toy` is the function


@pytest.fixture(scope="module")
def small(toy_module):
    """Two sections of 600 x 700 um with about 35 spots each."""
    return toy_module.toy(2, seed=1, size_um=(600.0, 700.0))


@pytest.fixture(scope="module")
def large(toy_module):
    """Two sections with enough spots for a regression, about 130 each."""
    return toy_module.toy(2, seed=2, size_um=1300.0)


def rgb(sdata):
    return np.asarray(sdata.images["image"]["scale0"]["image"].data)


def on_tissue(sdata):
    """Which pixels of an image at 1 um per pixel are tissue."""
    return np.asarray(sdata["field"].data).sum(axis=0).repeat(2, axis=0).repeat(2, axis=1) > 0


def blocks(one, side=12):
    """Means over squares of `side` cells."""
    return one.reshape(len(one) // side, side, -1, side).astype(np.float64).mean(axis=(1, 3))


def rate_in_disc(sdata, row):
    """RNA per component inside one spot, by shapely's own intersection areas."""
    field = np.asarray(sdata.images["field"].data, dtype=np.float64)
    mpp = sdata.attrs["toy"]["mpp"]
    x, y = sdata.tables["table"].obsm["spatial"][row] * mpp
    disc = shapely.Point(x, y).buffer(sdata.attrs["toy"]["spot_diameter_um"] / 2.0, quad_segs=256)
    columns, rows = (np.arange(int((at - 28) // FIELD_MPP), int((at + 28) // FIELD_MPP) + 1) for at in (x, y))
    i, j = (index.ravel() for index in np.meshgrid(rows, columns, indexing="ij"))
    cells = shapely.box(j * FIELD_MPP, i * FIELD_MPP, (j + 1) * FIELD_MPP, (i + 1) * FIELD_MPP)
    return field[:, i, j] @ shapely.area(shapely.intersection(cells, disc))


def squares(sdata, corners_um, side_um):
    """A shapes element of squares in micrometres; corners (n, 2) as (y, x)."""
    boxes = [shapely.box(x, y, x + side_um, y + side_um) for y, x in corners_um]
    element = ShapesModel.parse(GeoDataFrame(geometry=boxes), transformations={"micrometers": Identity()})
    return spatialdata.SpatialData(
        images={"field": spatialdata.deepcopy(sdata["field"])},
        shapes={"spots": sdata["spots"], "squares": element},
        tables={"table": sdata["table"]},
    )


def test_counts_are_poisson_with_the_integral_of_the_field_as_their_mean(toy_module):
    sdata = toy_module.toy(1, seed=4, size_um=500.0, umi_per_spot=500_000.0)[0]  # deep: a mean wrong by 0.3 % shows
    table = sdata.tables["table"]
    amount = np.stack([rate_in_disc(sdata, row) for row in range(table.n_obs)])
    efficiency = table.obs["capture_efficiency"].to_numpy()
    mean = efficiency[:, None] * (amount @ table.varm["toy_profiles"].T)
    counts = table.X.toarray().astype(np.float64)
    assert abs(counts.sum() - mean.sum()) < 5 * np.sqrt(mean.sum())
    z = (counts - mean) / np.sqrt(mean)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).sum() - z.size) < 5 * np.sqrt((2 + 1 / mean).sum())  # variance of the z² of Poisson counts


def test_depth_is_the_median_over_spots(small, toy_module):
    from stpredict import _coverage
    from stpredict._window import Window

    for sdata in small:
        total = np.asarray(sdata["field"].data, dtype=np.float64).sum(axis=0)
        centre = shapely.points(sdata["table"].obsm["spatial"] / FIELD_MPP)
        area = _coverage.coverage(
            _coverage.Shapes(centre, np.full(len(centre), 27.5 / FIELD_MPP)), Window(0, 0, *total.shape)
        )
        assert np.median(area @ total.ravel()) * FIELD_MPP**2 == pytest.approx(8000.0, rel=1e-5)


def test_capture_efficiency_is_log_normal_around_one(large):
    log = np.log(np.concatenate([sdata.tables["table"].obs["capture_efficiency"] for sdata in large]))
    assert abs(log.mean()) < 5 * 0.35 / np.sqrt(len(log))
    assert log.std() == pytest.approx(0.35, rel=5 / np.sqrt(2 * len(log)))


@pytest.mark.parametrize("step", [0.5, 4.0, 27.5])
def test_pooling_conserves_the_rate(small, step):
    from stpredict.datasets._toy_field import pooled

    field = np.asarray(small[0].images["field"].data)
    sums = pooled(field, step=step)
    np.testing.assert_allclose(sums.sum(axis=(1, 2)), field.sum(axis=(1, 2), dtype=np.float64), rtol=1e-10)
    assert sums.shape == (len(field), *np.ceil(np.array(field.shape[1:]) / step).astype(int))


@pytest.mark.parametrize("mpp", [1.0, 8.0, 55.0])
def test_truth_as_a_map_equals_truth_inside_squares(small, toy_module, mpp):
    genes = ["COL1A1", "TOY003", "MT-CO1"]
    truth = toy_module.toy_truth(small[0], genes=genes, mpp=mpp)
    rng = np.random.default_rng(0)
    i, j = (rng.integers(0, n - 1, 60) for n in truth.shape[1:])
    sdata = squares(small[0], np.stack([i, j], axis=1) * mpp, mpp)
    inside = toy_module.toy_truth_shapes(sdata, "squares", genes=genes)
    assert np.isfinite(inside.to_numpy()).any()
    np.testing.assert_allclose(truth.values[:, i, j].T, inside.to_numpy(), rtol=2e-5)
    assert list(truth.coords["c"].values) == list(inside.columns) == genes
    assert truth.dtype == np.float32
    assert float(truth.y[1]) == 1.5 * mpp


def test_truth_at_the_field_is_the_rate_itself_and_nan_off_the_tissue(small, toy_module):
    sdata = small[1]
    truth = toy_module.toy_truth(sdata, genes=list(sdata["table"].var_names[::10]), mpp=FIELD_MPP)
    field, profile = np.asarray(sdata.images["field"].data, np.float64), sdata["table"].varm["toy_profiles"][::10]
    on = field.sum(axis=0) > 0
    assert np.array_equal(np.isfinite(truth.values).all(axis=0), on)
    assert np.isnan(truth.values[:, ~on]).all()
    share = (profile @ field[:, on]) / field[:, on].sum(axis=0)
    np.testing.assert_allclose(truth.values[:, on], np.log1p(1e4 * share), rtol=1e-5)
    y, x = np.meshgrid(truth.y, truth.x, indexing="ij")
    inside = shapely.contains_xy(sdata.shapes["tissue"].geometry.iloc[0], x / 1.0, y / 1.0)  # 1 um per pixel
    assert np.array_equal(inside, on)


def test_truth_of_a_spot_is_the_log_of_its_pooled_rate(small, toy_module):
    sdata = small[0]
    truth = toy_module.toy_truth_shapes(sdata)
    table = sdata.tables["table"]
    assert list(truth.index) == list(sdata.shapes["spots"].index)
    for row in (0, 7, 20):
        amount = rate_in_disc(sdata, row)
        wanted = np.log1p(1e4 * table.varm["toy_profiles"] @ amount / amount.sum())
        np.testing.assert_allclose(truth.loc[table.obs["instance_id"].iloc[row]], wanted, rtol=1e-4)


def test_truth_inside_shapes_follows_the_transformations(small, toy_module):
    sdata = squares(small[0], np.array([[200.0, 250.0], [300.0, 310.0]]), 55.0)
    before = toy_module.toy_truth_shapes(sdata, "squares")
    turn = Affine([[0.8, -0.9, 30.0], [0.6, 0.7, -20.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for key in ("field", "squares"):
        old = get_transformation(sdata[key], to_coordinate_system="micrometers")
        set_transformation(sdata[key], {"turned": Sequence([old, turn])}, set_all=True)
    np.testing.assert_allclose(toy_module.toy_truth_shapes(sdata, "squares"), before, rtol=1e-5)


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_sections(small, toy_module):
    again = toy_module.toy(1, seed=1, size_um=(600.0, 700.0))[0]
    other = toy_module.toy(1, seed=9, size_um=(600.0, 700.0))[0]
    assert rgb(again).tobytes() == rgb(small[0]).tobytes() != rgb(other).tobytes()
    assert np.asarray(again["field"].data).tobytes() == np.asarray(small[0]["field"].data).tobytes()
    assert again["table"].X.toarray().tobytes() == small[0]["table"].X.toarray().tobytes()
    assert again.attrs == small[0].attrs
    assert not np.array_equal(again["table"].varm["toy_profiles"], other["table"].varm["toy_profiles"])


def test_sections_share_programmes_but_neither_tissue_nor_stain(large):
    first, second = large
    assert np.array_equal(first["table"].varm["toy_profiles"], second["table"].varm["toy_profiles"])
    assert list(first["table"].var_names) == list(second["table"].var_names)
    assert not np.array_equal(np.asarray(first["field"].data), np.asarray(second["field"].data))
    hues = []
    for sdata in large:
        image, on = rgb(sdata).reshape(3, -1), on_tissue(sdata).ravel()
        glass = np.median(image[:, ~on], axis=1, keepdims=True)
        density = -np.log(np.maximum(image[:, on], 1) / glass)
        nuclei = density[:, density.sum(axis=0) > np.percentile(density.sum(axis=0), 97)]
        hues.append([np.median(half / half.sum(axis=0), axis=1) for half in np.array_split(nuclei, 2, axis=1)])
    within = max(np.abs(a - b).max() for a, b in hues)
    assert np.abs(np.mean(hues[0], axis=0) - np.mean(hues[1], axis=0)).max() > 3 * within


def test_depth_changes_neither_image_nor_proportions(small, toy_module):
    deep = toy_module.toy(1, seed=1, size_um=(600.0, 700.0), umi_per_spot=32_000.0, efficiency_sd=0.0)[0]
    assert np.array_equal(rgb(deep), rgb(small[0]))
    np.testing.assert_allclose(np.asarray(deep["field"].data), 4.0 * np.asarray(small[0]["field"].data), rtol=1e-5)
    assert (deep["table"].obs["capture_efficiency"] == 1.0).all()
    assert deep.attrs["toy"]["oracle"]["pcc_m"] > small[0].attrs["toy"]["oracle"]["pcc_m"] + 0.05


def test_resolution_does_not_change_the_tissue(small, toy_module):
    coarse = toy_module.toy(1, seed=1, size_um=(600.0, 700.0), mpp=2.0)[0]
    assert rgb(coarse).shape == (3, 300, 350)
    assert np.array_equal(np.asarray(coarse["field"].data), np.asarray(small[0]["field"].data))
    assert np.array_equal(coarse["table"].X.toarray(), small[0]["table"].X.toarray())
    fine = rgb(small[0]).astype(float).reshape(3, 300, 2, 350, 2).mean(axis=(2, 4))
    assert np.corrcoef(fine[1].ravel(), rgb(coarse)[1].ravel())[0, 1] > 0.9


def test_glass_is_white_and_tissue_is_not(small):
    for sdata in small:
        on, image = on_tissue(sdata), rgb(sdata)
        assert 0.5 < on.mean() < 0.9
        assert np.percentile(image[:, ~on], 2) > 215
        assert image[1, on].mean() < 200
        assert image[1, on].mean() < min(image[0, on].mean(), image[2, on].mean())  # pink and violet: green is lowest


def test_colour_is_informative_but_not_sufficient(large):
    from stpredict.metrics import log1p_cp10k, pcc

    colours, targets = [], []
    for sdata in large:
        counts, image = sdata["table"].X.toarray(), rgb(sdata).astype(np.float64)
        targets.append(log1p_cp10k(counts, counts.sum(axis=1)))
        patches = [
            image[:, max(y - 56, 0) : y + 56, max(x - 56, 0) : x + 56].reshape(3, -1)
            for x, y in sdata["table"].obsm["spatial"].astype(int)
        ]
        colours.append(np.array([np.concatenate([p.mean(axis=1), p.std(axis=1)]) for p in patches]))
    mean, sd = colours[0].mean(axis=0), colours[0].std(axis=0)
    model = RidgeCV(10.0 ** np.arange(-1, 6)).fit((colours[0] - mean) / sd, targets[0])
    score = pcc(model.predict((colours[1] - mean) / sd), targets[1]).mean()
    oracle = large[1].attrs["toy"]["oracle"]["pcc_m"]
    assert 0.15 < score < oracle - 0.15
    assert 0.6 < oracle < 0.85


def test_the_image_shows_as_much_of_the_state_as_asked(toy_module):
    shown = {}
    for visible in (0.0, 1.0):
        sdata = toy_module.toy(1, seed=5, size_um=960.0, visible=visible, field_length_um=70.0)[0]
        field, names = np.asarray(sdata["field"].data), list(sdata["field"].coords["c"].values)
        low, high = (field[names.index(f"fibroblast:{state}")] for state in ("low", "high"))
        stroma = low + high > 0.7 * field.sum(axis=0)
        density = -np.log(np.maximum(rgb(sdata)[1], 1) / 245.0).reshape(480, 2, 480, 2).mean(axis=(1, 3))
        share, dark, rate, part = (
            blocks(one) for one in (stroma, density * stroma, (low + high) * stroma, high * stroma)
        )
        usable = share > 0.35
        shown[visible] = np.corrcoef((dark[usable] / share[usable]), part[usable] / rate[usable])[0, 1]
    assert shown[1.0] > 0.3
    assert abs(shown[0.0]) < 0.5 * shown[1.0]


def test_gaussian_field_has_the_variance_and_the_length_it_was_asked_for():
    from stpredict.datasets._toy_noise import gaussian_field

    rng = np.random.default_rng(0)
    for length in (3.0, 12.0):
        draws = np.stack([gaussian_field(rng, (160, 170), length_px=length) for _ in range(120)])
        lag = int(length)
        assert (draws**2).mean() == pytest.approx(1.0, abs=0.06)
        assert (draws[:, lag:] * draws[:, :-lag]).mean() == pytest.approx(np.exp(-0.5), abs=0.06)
        assert (draws[:, :, lag:] * draws[:, :, :-lag]).mean() == pytest.approx(np.exp(-0.5), abs=0.06)


def test_cell_density_is_about_what_was_asked():
    from stpredict.datasets._toy_cells import place_cells
    from stpredict.datasets._toy_tissue import build_tissue

    tissue = build_tissue(np.random.default_rng(0), (1200.0, 1200.0), field_length_um=300.0, visible=0.5)
    mm2 = tissue.inside.sum() * FIELD_MPP**2 * 1e-6
    counts = [len(place_cells(np.random.default_rng(1), tissue, per_mm2=p).kind) / mm2 for p in (2000.0, 4500.0)]
    assert counts[1] == pytest.approx(4500.0, rel=0.35)
    assert counts[1] / counts[0] == pytest.approx(2.25, rel=0.2)


def test_profiles_are_shares_and_markers_mark_their_type():
    from stpredict.datasets._toy_genes import COMPONENTS, MARKERS, gene_names, profiles

    names = gene_names(150)
    assert len(set(names)) == 150
    profile = profiles(np.random.default_rng(0), 150)
    np.testing.assert_allclose(profile.sum(axis=0), 1.0)
    for k, (kind, symbols) in enumerate(MARKERS.items()):
        rows = [names.index(symbol) for symbol in symbols]
        mean = np.log(profile[rows]).mean(axis=0)
        own = COMPONENTS.index(f"{kind}:low")
        assert own == 2 * k
        assert mean[own : own + 2].min() > np.delete(mean[:-1], [own, own + 1]).max()


def test_layout_is_that_of_our_readers(small):
    from stpredict._spatialdata import image_mpp, resolve_image, resolve_shapes

    sdata = small[0]
    assert resolve_image(sdata) == "image"
    assert resolve_shapes(sdata, table_name="table") == "spots"
    assert image_mpp(sdata, "image") == pytest.approx(1.0)
    assert rgb(sdata).shape == (3, 600, 700)
    assert rgb(sdata).dtype == np.uint8
    table, spots = sdata["table"], sdata["spots"]
    assert table.X.format == "csr"
    assert table.X.dtype == np.float32
    assert table.var_names.is_unique
    assert list(table.obs["instance_id"]) == list(spots.index)
    assert (spots["radius"] == 27.5).all()
    xy = np.stack([spots.geometry.x, spots.geometry.y], axis=1)
    assert np.array_equal(xy, table.obsm["spatial"])
    assert (xy - 27.5 >= 0).all()
    assert (xy + 27.5 <= [700, 600]).all()
    away = np.sort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1)
    np.testing.assert_allclose(away[:, 1], 100.0)
    assert np.isclose(away[:, 6], 100.0).any()  # six neighbours: hexagonal
    grid = table.obs[["array_row", "array_col"]].to_numpy()
    assert (grid.sum(axis=1) % 2 == 0).all()


def test_round_trip_through_a_store(small, toy_module, tmp_path):
    sdata = small[0]
    sdata.write(tmp_path / "toy.zarr")
    back = spatialdata.read_zarr(tmp_path / "toy.zarr")
    assert np.array_equal(rgb(back), rgb(sdata))
    assert back.attrs == sdata.attrs
    assert toy_module.toy_truth(back, genes=["ERBB2"]).equals(toy_module.toy_truth(sdata, genes=["ERBB2"]))
    oracle = toy_module.toy_oracle(back)
    assert {name: float(value) for name, value in oracle.items()} == sdata.attrs["toy"]["oracle"]


def test_the_oracle_joins_by_instance_id(small, toy_module):
    sdata = small[0]
    order = np.random.default_rng(0).permutation(sdata["table"].n_obs)[5:]  # some spots have no row
    scores = []
    for rows in (order, np.sort(order)):
        part = spatialdata.SpatialData(
            images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": sdata["table"][rows].copy()}
        )
        scores.append(toy_module.toy_oracle(part))
    assert scores[0]["n_spots"] == len(order)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert scores[0]["pcc_m"] > 0.4


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("n_sections", 0, "n_sections must be a whole number at least 1, got 0"),
        ("n_sections", 1.5, "n_sections=1.5 must be an integer"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("size_um", -5.0, "size_um must be a number above 0"),
        ("size_um", (500.0, 500.0, 3.0), "size_um=.* must be a finite number or a list of 2"),
        ("size_um", 120.0, "Raise size_um= or lower pitch_um="),
        ("mpp", 10.0, "mpp must be a number at least 0.2 and at most 4"),
        ("n_genes", 5, "n_genes must be a whole number at least 17"),
        ("cells_per_mm2", 1e6, "cells_per_mm2 must be a number at least 500"),
        ("umi_per_spot", 0.0, "umi_per_spot must be a number above 0"),
        ("efficiency_sd", -0.1, "efficiency_sd must be a number at least 0"),
        ("spot_diameter_um", 0.0, "spot_diameter_um=0.0 must be at least"),
        ("pitch_um", 30.0, "pitch_um must be a number at least 55"),
        ("field_length_um", 0.0, "field_length_um must be a number at least 2"),
        ("visible", 1.5, "visible must be a number at least 0 and at most 1"),
        ("visible", float("nan"), "visible=nan must be a finite number"),
    ],
)
def test_settings_out_of_range_say_what_is_allowed(toy_module, argument, value, message):
    with pytest.raises(ValueError, match=message):
        toy_module.toy(**{"n_sections": 1, "size_um": 500.0, argument: value})


def test_truth_says_what_it_lacks(small, toy_module):
    sdata = small[0]
    with pytest.raises(ValueError, match=r"genes that the toy section lacks: \['NOPE'\] \(1 of 2\)"):
        toy_module.toy_truth(sdata, genes=["ERBB2", "NOPE"])
    with pytest.raises(ValueError, match="no shapes 'cells'; there are"):
        toy_module.toy_truth_shapes(sdata, "cells")
    with pytest.raises(ValueError, match="mpp=0.0 must lie in"):
        toy_module.toy_truth(sdata, mpp=0.0)
    plain = spatialdata.SpatialData(images={"image": sdata["image"]})
    with pytest.raises(ValueError, match="the object is no toy section"):
        toy_module.toy_truth(plain)
