"""Several scales of one tissue: bins of 16, 8 and 2 um and spots, trained on together, with nothing given by hand."""

from __future__ import annotations

import numpy as np
import pytest

KEYS = ["square_016um", "square_008um", "square_002um"]  # tables
SHAPES = [f"toy_{key}" for key in KEYS]


@pytest.fixture(scope="module")
def toys():
    """Two toy sections with spots, and bins of three sizes of which those of 8 um hold 15 counts."""
    import stpredict as stp

    sections = stp.datasets.toy(2, size_um=500, n_genes=20, seed=3)
    for section in sections:
        stp.datasets.toy_bins(section)
    return sections


@pytest.fixture(scope="module")
def panel(toys):
    import stpredict as stp

    return stp.pp.gene_panel(toys, n_genes=4, shapes_key=SHAPES[:2], table_name=KEYS[:2])


def quick(panel):
    """A Ridge on patches of 24 px."""
    import stpredict as stp
    from stpredict.models.ridge import RidgeConfig

    return stp.models.Ridge(config=RidgeConfig(genes=tuple(panel), mpp=2.0, patch_um=48.0))


def dense(panel, **changes):
    """A PixNet that is small enough for a test."""
    import stpredict as stp

    config = stp.models.PixNetConfig(
        genes=tuple(panel), mpp=2.0, encoder="test_resnet.r160_in1k", filters=(8, 8, 8, 8), window_px=128, core_px=128,
        halo_px=128, context_rank=0, recipe=stp.models.Recipe(max_epochs=1, batch_size=4), **changes,
    )  # fmt: skip
    return stp.models.PixNet(config=config)


def test_bins_are_sums_of_one_draw(toys):
    section = toys[0]
    coarse, fine = (section.tables[key] for key in KEYS[:2])
    assert 13 <= np.median(np.asarray(fine.X.sum(axis=1))) <= 17
    at = {place: i for i, place in enumerate(zip(fine.obs["array_row"], fine.obs["array_col"], strict=True))}
    checked = 0
    for i, (row, column) in enumerate(zip(coarse.obs["array_row"], coarse.obs["array_col"], strict=True)):
        parts = [at.get((2 * row + j, 2 * column + k)) for j in (0, 1) for k in (0, 1)]
        if None not in parts:
            np.testing.assert_array_equal(coarse.X[[i]].toarray()[0], fine.X[parts].toarray().sum(axis=0))
            checked += 1
    assert checked > 100


def test_bins_are_drawn_from_the_truth(toys):
    import stpredict as stp

    table = toys[0].tables[KEYS[0]]
    truth = stp.datasets.toy_truth_shapes(toys[0], SHAPES[0])
    assert list(truth.index) == list(table.obs["instance_id"])
    share = np.asarray(table.X.sum(axis=0)).ravel() / table.X.sum()
    total = np.asarray(table.X.sum(axis=1)).ravel()
    rate = np.expm1(truth.to_numpy(np.float64)) / 1e4
    np.testing.assert_allclose(share, (rate * total[:, None]).sum(axis=0) / total.sum(), rtol=0.1, atol=2e-3)


def test_bins_of_few_counts_train_predict_and_evaluate_with_nothing_given_by_hand(toys, panel):
    import stpredict as stp

    model = quick(panel)
    stp.tl.train(toys[0], model, table_name=KEYS[1], progress=False)
    assert model.card.min_counts == (pytest.approx(500 * 64 / (np.pi * 27.5**2)),)
    stp.tl.predict(toys[1], model, table_name=KEYS[1], progress=False)
    scores = stp.tl.evaluate(toys[1], "ridge", table_name=KEYS[1])
    assert scores.attrs["min_counts"] == {"toy1": model.card.min_counts[0]}
    assert scores.attrs["targeted_panel"] == {"toy1": 20}
    summary = scores.attrs["summary"].loc["toy1"]
    assert 0.4 < summary["n_spots"] / len(toys[1].tables[KEYS[1]]) < 0.9  # the median of 15 counts is above 13.5
    truth = stp.datasets.toy_truth_shapes(toys[1], SHAPES[1], genes=panel)
    layer = toys[1].tables[KEYS[1]][:, panel].layers["ridge"]
    assert np.mean([np.corrcoef(layer[:, k], truth.iloc[:, k])[0, 1] for k in range(4)]) > 0.3


@pytest.mark.parametrize("build", ["ridge", "pixnet"])
def test_three_scales_train_together(toys, panel, build, monkeypatch):
    import stpredict as stp
    from stpredict import _training

    seen = {}

    def watch(sections, **settings):
        seen["parts"] = parts = hold_out(sections, **settings)
        return parts

    hold_out = _training.hold_out_places
    monkeypatch.setattr(_training, "hold_out_places", watch)
    keys = KEYS[:2] if build == "ridge" else KEYS  # of 2 um there are too many patches for a test
    model = quick(panel) if build == "ridge" else dense(panel)
    shapes = SHAPES[: len(keys)]
    stp.tl.train(toys[0], model, shapes_key=shapes, table_name=keys, device="cpu", progress=False)
    assert model.card.sections == tuple(f"toy0/{key}" for key in shapes)
    by_area = {16: 53.86, 8: 13.47, 2: 1.0}
    assert model.card.min_counts == pytest.approx([by_area[int(key[7:10])] for key in keys], rel=1e-3)
    fitted, held = seen["parts"]
    assert [s.name for s in held] == list(model.card.sections)
    low, high = (np.concatenate([s.ids for s in part if s.name.endswith(KEYS[0])]) for part in (fitted, held))
    assert len(high) and not set(low) & set(high)
    assert _overlap(held, fitted) == 0
    assert all(value is None or -1 <= value <= 1 for value in model.card.val_pcc.values())


def _overlap(held, fitted):
    import shapely

    tree = shapely.STRtree(np.concatenate([s.geometry for s in fitted]))
    areas = []
    for section in held:
        mine, its = tree.query(section.geometry, predicate="intersects")
        areas.append(shapely.area(shapely.intersection(section.geometry[mine], tree.geometries[its])).sum())
    return sum(areas)


def test_a_scale_without_a_usable_shape_is_named(toys, panel):
    import stpredict as stp

    model = stp.models.Ridge(panel)
    with pytest.raises(ValueError) as error:
        stp.tl.train(toys, model, shapes_key=SHAPES, table_name=KEYS, min_counts=500, progress=False)
    said = str(error.value)
    assert said.startswith("section 'toy0/toy_square_008um', one of 6, has no usable spot in shapes 'toy_square_008um'")
    assert "fewer than 500 counts" in said and said.endswith("Or leave it out, and go on with the others.")
    assert model.card is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shapes_key": SHAPES, "table_name": KEYS[:2]}, "shapes_key has 3, table_name has 2: lists must"),
        ({"shapes_key": [], "table_name": []}, "lists must be of one length"),
        ({"table_name": [KEYS[0], KEYS[0]]}, "table_name name None with table 'square_016um' more than once"),
        ({"shapes_key": [SHAPES[0], "toy_square_8um"], "table_name": KEYS[:2]}, "no shapes 'toy_square_8um'"),
        ({"shapes_key": SHAPES[:2]}, "table 'table' annotates .'spots'., not 'toy_square_016um'"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(toys, panel, keys, message):
    import stpredict as stp

    with pytest.raises(ValueError, match=message):
        stp.tl.train(toys[0], stp.models.Ridge(panel), progress=False, **keys)


def test_the_tables_alone_say_their_shapes(toys, panel):
    import stpredict as stp

    models = [stp.models.Mean(panel) for _ in range(2)]
    stp.tl.train(toys[0], models[0], table_name=["table", KEYS[0]], val=0, progress=False)
    both = {"shapes_key": ["spots", SHAPES[0]], "table_name": ["table", KEYS[0]]}
    stp.tl.train(toys[0], models[1], val=0, progress=False, **both)
    assert models[0].card.sections == models[1].card.sections == ("toy0/spots", "toy0/toy_square_016um")
    np.testing.assert_array_equal(models[0].mean, models[1].mean)


def test_validation_on_tissue_that_is_trained_on_is_refused(toys, panel):
    from spatialdata import SpatialData

    import stpredict as stp

    copy = SpatialData(
        images={"image": toys[0].images["image"]},
        shapes={"spots": toys[0].shapes[SHAPES[1]]},
        tables={KEYS[0]: _renamed(toys[0].tables[KEYS[1]], "spots")},
    )  # the same image, with bins of 8 um under other names
    with pytest.raises(ValueError, match="validation section 'image' shows the image of training section 'toy0', and"):
        stp.tl.train(toys[0], stp.models.Mean(panel), val=[copy], table_name=KEYS[0], progress=False)
    model = stp.models.Mean(panel)
    stp.tl.train([toys[0], copy], model, table_name=KEYS[0], progress=False)
    assert model.card.sections == ("toy0", "image")


def _renamed(table, region):
    from spatialdata.models import TableModel

    table = table.copy()
    del table.uns["spatialdata_attrs"]
    table.obs["region"] = region
    table.obs["region"] = table.obs["region"].astype("category")
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def test_a_panel_weighs_every_section_the_same(toys):
    import stpredict as stp

    many = stp.pp.gene_panel(toys, n_genes=20, table_name=["table", KEYS[0]])
    single = [stp.pp.gene_panel(toys, n_genes=20, table_name=key) for key in ("table", KEYS[0])]
    assert sorted(many) == sorted(single[0])
    rank = [[panel.index(gene) for gene in many] for panel in single]
    assert abs(np.mean(rank, axis=0) - np.arange(20)).max() < 6
    assert many != single[0] or many != single[1] or single[0] == single[1]


def test_cards_of_older_models_say_nothing_of_counts(toys, panel, tmp_path):
    import json

    import stpredict as stp

    model = stp.models.Mean(panel)
    stp.tl.train(toys[0], model, table_name=KEYS[0], progress=False)
    model.save(tmp_path / "new")
    card = json.loads((tmp_path / "new" / "card.json").read_text())
    assert card.pop("min_counts") == [pytest.approx(53.86, rel=1e-3)]
    (tmp_path / "new" / "card.json").write_text(json.dumps(card))
    assert stp.models.load(tmp_path / "new").card.min_counts == ()
    scaled = toys[0].tables[KEYS[0]].X
    model = stp.models.Mean(panel)
    stp.tl.train(toys[0], model, table_name=KEYS[0], target="as_is", progress=False)
    assert scaled is toys[0].tables[KEYS[0]].X and model.card.min_counts == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bin_um": [3]}, "bin_um=.3. must be even numbers"),
        ({"bin_um": [16]}, "bin_um=.16.: .'toy_square_016um'. is there already"),
        ({"bin_um": [4, 4]}, "bin_um=.4, 4.: a size is there already"),
        ({"bin_um": [1000]}, "from 2 to 500"),
        ({"bin_um": [32], "umi_per_8um": 0.0}, "umi_per_8um must be a number above 0"),
    ],
)
def test_bins_that_cannot_be_are_refused(toys, given, message):
    import stpredict as stp

    before = sorted(toys[0].shapes)
    with pytest.raises(ValueError, match=message):
        stp.datasets.toy_bins(toys[0], **given)
    assert sorted(toys[0].shapes) == before


def test_bins_need_a_toy_section(make):
    import stpredict as stp

    with pytest.raises(ValueError, match="the object is no toy section"):
        stp.datasets.toy_bins(make(0))
