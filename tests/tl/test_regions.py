"""A table that annotates several samples of one object: every verb works on it region by region."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def atlas(make):
    """Two samples in one object, each with an image and coordinate systems of its own, under one table."""
    import spatialdata

    return spatialdata.concatenate({"a": make(0), "b": make(1)}, concatenate_tables=True)


def rows(atlas, region):
    return (atlas.tables["table"].obs["region"].astype(str) == region).to_numpy()


def test_the_image_of_a_region_is_the_one_beside_it(atlas, ridge, make):
    import stpredict as stp

    stp.tl.predict(atlas, ridge, shapes_key="spots-a", progress=False)
    layer = atlas.tables["table"].layers["ridge"]
    assert np.isfinite(layer[rows(atlas, "spots-a"), :3]).all()
    assert np.isnan(layer[rows(atlas, "spots-b")]).all()
    first = layer.copy()
    stp.tl.predict(atlas, ridge, shapes_key="spots-b", overwrite=True, progress=False)
    layer = atlas.tables["table"].layers["ridge"]
    np.testing.assert_array_equal(layer[rows(atlas, "spots-a")], first[rows(atlas, "spots-a")])
    for seed, region in ((0, "spots-a"), (1, "spots-b")):
        alone = make(seed)
        stp.tl.predict(alone, ridge, progress=False)
        np.testing.assert_array_equal(layer[rows(atlas, region), :3], alone.tables["table"].layers["ridge"][:, :3])


def test_evaluate_scores_one_region(atlas, ridge, make):
    import stpredict as stp

    for region in ("spots-a", "spots-b"):
        stp.tl.predict(atlas, ridge, shapes_key=region, overwrite=True, progress=False)
    for seed, region in ((0, "spots-a"), (1, "spots-b")):
        alone = make(seed)
        stp.tl.predict(alone, ridge, progress=False)
        with pytest.warns(UserWarning, match="was trained on its image"):
            found, wanted = stp.tl.evaluate(atlas, "ridge", shapes_key=region), stp.tl.evaluate(alone, "ridge")
        assert found["section"].unique().tolist() == [f"image-{region[-1]}/{region}"]
        np.testing.assert_array_equal(found["pcc"], wanted["pcc"])
        assert found.attrs["summary"]["n_spots"].tolist() == [30]


def test_regions_train_as_objects_of_their_own_do(atlas, make):
    import stpredict as stp

    both = ["spots-a", "spots-b"]
    models = [stp.models.Ridge(["red", "green", "blue"]) for _ in range(3)]
    stp.tl.train(atlas, models[0], shapes_key=both, progress=False)
    stp.tl.train([make(0), make(1)], models[1], progress=False)
    stp.tl.train(make(1), models[2], progress=False)
    np.testing.assert_array_equal(models[0].weight, models[1].weight)
    assert models[0].card.sections == ("image-a/spots-a", "image-b/spots-b")
    assert models[0].card.val_pcc == models[1].card.val_pcc
    one = stp.models.Ridge(["red", "green", "blue"])
    stp.tl.train(atlas, one, shapes_key="spots-b", progress=False)
    np.testing.assert_array_equal(one.weight, models[2].weight)


def test_a_panel_of_regions_is_that_of_their_objects(atlas, make):
    import stpredict as stp

    found = stp.pp.gene_panel([atlas], n_genes=4, shapes_key=["spots-a", "spots-b"])
    assert found == stp.pp.gene_panel([make(0), make(1)], n_genes=4)
    assert stp.pp.gene_panel([atlas], n_genes=4, shapes_key="spots-b") == stp.pp.gene_panel([make(1)], n_genes=4)


def test_without_a_region_the_choices_are_listed(atlas, ridge):
    import stpredict as stp

    for call in (
        lambda: stp.tl.predict(atlas, ridge, progress=False),
        lambda: stp.tl.train(atlas, stp.models.Ridge(["red"]), progress=False),
        lambda: stp.pp.gene_panel([atlas], n_genes=2),
    ):
        with pytest.raises(ValueError, match=r"several shapes: \['spots-a', 'spots-b'\]. Choose one with shapes_key="):
            call()


def test_images_that_share_all_systems_are_asked_for(make, ridge):
    from spatialdata import SpatialData

    import stpredict as stp

    one, other = make(0), make(1)
    images = {"a": one.images["image"], "b": other.images["image"]}
    both = SpatialData(images=images, shapes={"spots": one.shapes["spots"]})
    with pytest.raises(ValueError, match=r"several images: \['a', 'b'\]. Choose one with image_key="):
        stp.tl.predict(both, ridge, progress=False)
    stp.tl.predict(both, ridge, image_key="b", progress=False)
    assert np.isfinite(both.tables["spots_ridge"].X).all()


def test_a_map_of_a_region_is_of_its_image(atlas, pixnet):
    import stpredict as stp

    stp.tl.predict(atlas, pixnet, shapes_key="spots-b", output="both", device="cpu", progress=False)
    from spatialdata.transformations import get_transformation

    assert set(get_transformation(atlas.images["pixnet"], get_all=True)) == set(
        get_transformation(atlas.images["image-b"], get_all=True)
    )


def test_a_benchmark_of_blocks_of_one_region(atlas):
    import stpredict as stp

    result = stp.tl.benchmark(
        [atlas], {"Mean": stp.models.Mean}, cv="blocks", n_genes=2, margin_um=0.0, shapes_key="spots-b", progress=False
    )
    assert result["error"].isna().all()
    assert result.loc[result["metric"] == "n_spots", "value"].dropna().sum() == 2 * 30
    record = result.attrs["protocol"]
    assert record["min_counts_used"] == {"image-b": pytest.approx(500 * 24**2 / 27.5**2)}
    assert record["targeted_panels"] == {"image-b": 4}
