"""What users do with results next: scverse's own functions on maps, tables and stores that stpredict wrote."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import spatialdata
from spatialdata import read_zarr

RUN = {"device": "cpu", "precision": "32", "progress": False}
BOX = {"axes": ("x", "y"), "min_coordinate": [128, 128], "max_coordinate": [448, 448]}
# other packages warn of their own future
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(autouse=True)
def _figures():
    """Nobody shows a figure, and none outlives its test."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def objects(make, tmp_path):
    """The same section in memory and in a store."""
    make(7, shuffle=True).write(tmp_path / "s.zarr")
    return make(7, shuffle=True), read_zarr(tmp_path / "s.zarr")


def _predict(sdata, model, **settings):
    import stpredict as stp

    stp.tl.predict(sdata, model, **(RUN | settings))
    return sdata


def _scores(sdata, key):
    """What `tl.evaluate` gives, without the name that a section has of its place."""
    import stpredict as stp

    return stp.tl.evaluate(sdata, key).drop(columns="section")


def _by_id(table, key):
    """Predicted values by instance id, (n, g)."""
    frame = table.to_df(layer=key).loc[:, ["red", "green", "blue"]]
    frame.index = table.obs["instance_id"].astype(str).to_numpy()
    return frame.sort_index()


@pytest.mark.parametrize("output", ["raster", "latent"])
def test_maps_go_through_the_raster_functions_of_spatialdata(objects, pixnet, output):
    from spatialdata.models import get_channel_names

    for sdata in objects:
        element = _predict(sdata, pixnet, output=output).images["pixnet"]
        values = element.to_numpy()
        box = {"axes": ("x", "y"), "min_coordinate": [0, 0], "max_coordinate": [512, 512]}
        for width in (128, 32):
            again = spatialdata.rasterize(element, target_width=width, target_coordinate_system="global", **box)
            assert get_channel_names(again) == get_channel_names(element)
            assert again.sizes == {"c": len(values), "y": width, "x": width}
            assert np.isfinite(again.to_numpy()).all()
            if width == 128:  # its own grid
                np.testing.assert_allclose(again.to_numpy()[:, 1:-1, 1:-1], values[:, 1:-1, 1:-1], atol=1e-3)
        moved = spatialdata.transform(element, to_coordinate_system="micrometers")
        assert moved.dtype == np.float32
        np.testing.assert_allclose(moved.to_numpy().mean(), values.mean(), rtol=0.05)


def test_maps_are_drawn_by_spatialdata_plot(objects, pixnet):
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401  registers SpatialData.pl

    for sdata in objects:
        _predict(sdata, pixnet, output="raster")
        _, ax = plt.subplots(figsize=(1, 1), dpi=50)  # fewer pixels than the map, which is then rasterized
        sdata.pl.render_images("pixnet", channel="red").pl.show(coordinate_systems="global", ax=ax)
        assert np.ptp(ax.images[0].get_array()) > 0


@pytest.mark.parametrize("uns_merge", [None, "same", "unique", "first", "only"])
def test_tables_of_two_sections_are_joined_and_go_on_to_scanpy(make, ridge, uns_merge):
    import anndata
    import scanpy as sc

    import stpredict as stp

    sections = {name: _predict(make(seed), ridge) for name, seed in (("a", 7), ("b", 8))}
    tables = {name: sdata.tables["table"] for name, sdata in sections.items()}
    both = anndata.concat(tables, merge="same", uns_merge=uns_merge, label="section", index_unique="-")
    assert both.var["ridge"].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(both.layers["ridge"], np.concatenate([t.layers["ridge"] for t in tables.values()]))
    sc.pp.pca(both, layer="ridge", mask_var="ridge", n_comps=2)
    assert np.isfinite(both.obsm["X_pca"]).all()
    assert (both.obs["ridge_coverage"] > 0.99).all()
    # and back: its rows of one section, in the object
    one = sections["a"]
    back = both[both.obs["section"] == "a"].copy()
    back.uns["spatialdata_attrs"] = dict(one.tables["table"].uns["spatialdata_attrs"])
    scores = stp.tl.evaluate(one, "ridge")
    one.tables["table"] = back
    assert stp.tl.evaluate(one, "ridge").equals(scores)
    _predict(one, ridge, overwrite=True)
    assert stp.tl.evaluate(one, "ridge").equals(scores)


@pytest.mark.parametrize("kept", [{}, {"merge": "same", "uns_merge": "same"}], ids=["as by default", "with marks"])
def test_objects_that_were_predicted_and_then_joined_are_scored_and_drawn(make, ridge, kept):
    import stpredict as stp

    sections = {f"s{seed}": _predict(make(seed, shuffle=True), ridge) for seed in (7, 8)}
    alone = {name: stp.tl.evaluate(sdata, "ridge") for name, sdata in sections.items()}
    both = spatialdata.concatenate(sections, concatenate_tables=True, **kept)
    assert ("ridge" in both.tables["table"].var) == bool(kept)
    for name, scores in alone.items():
        keys = {"image_key": f"image-{name}", "shapes_key": f"spots-{name}"}
        with warnings.catch_warnings():
            warnings.simplefilter("error" if kept else "ignore")
            got = stp.tl.evaluate(both, "ridge", **keys)
        np.testing.assert_array_equal(got["pcc"], scores["pcc"])
        assert got["gene"].tolist() == scores["gene"].tolist()
        places = keys | {"coordinate_system": f"global-{name}"}
        stp.pl.expression(both, layer="ridge", gene="red", **places)
        two = stp.pl.compare(both, layer="ridge", gene="red", **places)
        assert f"r = {scores['pcc'][0]:.2f}, 30 spots" in two[1].get_title()
        assert "30 spots" in stp.pl.gene_scatter(both, layer="ridge", gene="red", **keys).get_title()


def test_joined_objects_without_any_predicted_value_say_so(make, ridge):
    import stpredict as stp

    sections = {f"s{seed}": make(seed) for seed in (7, 8)}
    _predict(sections["s7"], ridge)
    inner = spatialdata.concatenate(dict(sections), concatenate_tables=True)  # in a layer's place nothing
    with pytest.raises(ValueError, match="no predicted layer 'ridge'|has no predicted layer at all"):
        stp.tl.evaluate(inner, "ridge", image_key="image-s8", shapes_key="spots-s8")
    outer = spatialdata.concatenate(
        {"s7": _predict(make(7), ridge), "s8": make(8)}, concatenate_tables=True, join="outer"
    )  # filled up with NaN
    with pytest.raises(ValueError, match=r"has the layer 'ridge', but neither var.*whole numbers or NaN alone"):
        stp.tl.evaluate(outer, "ridge", image_key="image-s8", shapes_key="spots-s8")


@pytest.mark.parametrize("name", ["ridge", "pixnet"])
def test_a_part_that_was_cut_out_is_predicted_as_the_whole(objects, request, name):
    model = request.getfixturevalue(name)
    for sdata in objects[: 2 if name == "ridge" else 1]:
        part = spatialdata.bounding_box_query(sdata, target_coordinate_system="global", **BOX)
        assert 3 < part.tables["table"].n_obs < 20
        _predict(sdata, model)
        _predict(part, model)
        whole, cut = _by_id(sdata.tables["table"], name), _by_id(part.tables["table"], name)
        # what the model sees around a spot is cut off nearer to the edge
        centre = part.shapes["spots"].geometry.centroid
        inner = ((centre.x - 288).abs() < 100) & ((centre.y - 288).abs() < 100)
        if name == "ridge":
            assert inner.sum() > 2
            np.testing.assert_allclose(cut[inner.reindex(cut.index)], whole.loc[cut.index][inner.reindex(cut.index)])
        else:
            assert np.corrcoef(cut.to_numpy().ravel(), whole.loc[cut.index].to_numpy().ravel())[0, 1] > 0.9


def test_a_part_that_is_cut_out_afterwards_keeps_layer_and_map(objects, pixnet):
    import stpredict as stp

    for sdata in objects:
        _predict(sdata, pixnet, output="both")
        part = spatialdata.bounding_box_query(sdata, target_coordinate_system="global", **BOX)
        layer = _by_id(part.tables["table"], "pixnet")
        assert layer.equals(_by_id(sdata.tables["table"], "pixnet").loc[layer.index])
        stp.tl.aggregate(part, "pixnet", shapes_key="spots", key_added="read")
        inside = part.tables["table"].obs["read_coverage"].to_numpy() > 0.999
        assert inside.sum() > 3
        read = part.tables["table"][inside].layers["read"][:, :3]
        np.testing.assert_allclose(read, part.tables["table"][inside].layers["pixnet"][:, :3], atol=4e-3)
        stp.pl.raster(part, "pixnet", gene="red", image_key="image")
        assert np.isfinite(stp.tl.evaluate(part, "pixnet", image_key="image")["pcc"]).all()
        _predict(part, pixnet, overwrite=True)


@pytest.mark.slow
def test_the_object_is_written_elsewhere_with_all_results(objects, pixnet, tmp_path):
    import stpredict as stp

    for k, sdata in enumerate(objects):
        _predict(sdata, pixnet, output="both")
        _predict(sdata, pixnet, output="latent", key_added="latent")
        scores = _scores(sdata, "pixnet")
        for update in (False, True):
            path = tmp_path / f"copy{k}{update}.zarr"
            sdata.write(path, update_sdata_path=update)
            copy = read_zarr(path)
            assert _scores(copy, "pixnet").equals(scores)
            assert copy.images["latent"].dtype == np.float32
            stp.tl.query(copy, "latent", ["red"], model=pixnet, key_added="asked")
            _predict(copy, pixnet, key_added="more")
            assert _by_id(read_zarr(path).tables["table"], "more").equals(_by_id(sdata.tables["table"], "pixnet"))


def _with_groups(table, key):
    """A grouping of the rows by predicted values, as squidpy wants it."""
    import pandas as pd

    red = np.asarray(table[:, "red"].layers[key]).ravel()
    table.obs["group"] = pd.Categorical(np.where(red > np.median(red), "high", "low"))
    return table


@pytest.mark.slow
def test_squidpy_and_scanpy_go_on_from_the_layer(make, ridge):
    import matplotlib.pyplot as plt
    import scanpy as sc
    import squidpy as sq

    sdata = _predict(make(7, shuffle=True), ridge)
    table = sdata.tables["table"]
    predicted = _with_groups(table[:, table.var["ridge"]].copy(), "ridge")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sq.gr.spatial_neighbors_knn(predicted, n_neighs=4)
        sq.gr.nhood_enrichment(predicted, cluster_key="group", n_perms=20, seed=0, show_progress_bar=False, n_jobs=1)
        sq.gr.co_occurrence(predicted, cluster_key="group", interval=4, show_progress_bar=False, n_jobs=1)
        sq.pl.spatial_scatter(predicted, color=["red", "group"], layer="ridge", shape=None, library_id="section")
        sc.pl.embedding(predicted, basis="spatial", color="red", layer="ridge", show=False)
        dots = sc.pl.dotplot(predicted, ["red", "blue"], "group", layer="ridge", show=False)
        sc.pl.violin(predicted, ["red"], "group", layer="ridge", show=False)
    assert np.isfinite(predicted.uns["group_nhood_enrichment"]["zscore"]).all()
    assert np.isfinite(predicted.uns["group_co_occurrence"]["occ"]).any()
    assert dots and plt.get_fignums()
    # row by row: the neighbours of a spot are those of its place, whatever the order of the shapes
    place = predicted.obsm["spatial"]
    for row in (0, 7):
        near = np.argsort(np.hypot(*(place - place[row]).T))[1:5]
        assert set(predicted.obsp["spatial_connectivities"][row].nonzero()[1]) == set(near)


@pytest.mark.slow
@pytest.mark.parametrize("backed", [False, True])
def test_predictions_are_written_beside_what_squidpy_left_in_uns(objects, ridge, backed, tmp_path):
    import squidpy as sq

    sdata = _predict(objects[backed], ridge)
    table = _with_groups(sdata.tables["table"], "ridge")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sq.gr.ligrec(
            table, "group", interactions=[("red", "green"), ("blue", "red")], n_perms=20, seed=0, use_raw=False,
            layer="ridge", show_progress_bar=False, n_jobs=1, copy=False,
        )  # fmt: skip
    assert "group_ligrec" in table.uns
    _predict(sdata, ridge, key_added="again")
    assert _by_id(table, "again").equals(_by_id(table, "ridge"))
    if backed:
        assert _by_id(read_zarr(sdata.path).tables["table"], "again").equals(_by_id(table, "ridge"))
    place = tmp_path / "elsewhere.zarr"
    try:
        sdata.write(place, update_sdata_path=False)
    except TypeError:  # of anndata: the frames have pairs of groups for columns
        del table.uns["group_ligrec"]
        place = tmp_path / "without.zarr"
        sdata.write(place, update_sdata_path=False)
    assert _scores(place, "again").equals(_scores(sdata, "ridge"))


def test_a_filtered_table_of_unfiltered_shapes(objects, ridge):
    import stpredict as stp

    whole = _by_id(_predict(objects[0], ridge).tables["table"], "ridge")
    sdata = objects[0]
    table = sdata.tables["table"]
    del table.layers["ridge"]
    sdata.tables["table"] = few = table[table.obs["instance_id"].isin([f"s{i}" for i in range(0, 30, 2)])].copy()
    _predict(sdata, ridge, overwrite=True)
    assert _by_id(few, "ridge").equals(whole.loc[_by_id(few, "ridge").index])
    scores = stp.tl.evaluate(sdata, "ridge")
    assert scores.attrs["summary"]["n_spots"].iloc[0] == 15
    assert stp.pp.gene_panel([sdata], n_genes=2, by="hvg_union", min_spots=15)
    stp.pl.expression(sdata, layer="ridge", gene="red")
    stp.tl.embed(sdata, ridge)
    assert few.obsm["X_ridge"].shape[0] == 15
    model = stp.models.Ridge(["red"])
    stp.tl.train([sdata], model, val=0, progress=False)
    # in a store the two would differ, and the message says what to do
    backed = objects[1]
    backed.tables["table"] = backed.tables["table"][:15].copy()
    with pytest.raises(ValueError, match=r"table 'table'.*(?s:.)*(write|differ)"):
        _predict(backed, ridge)


def test_a_store_of_an_older_spatialdata_is_read_and_says_how_to_go_on(make, ridge, tmp_path):
    from spatialdata._io.format import SpatialDataContainerFormatV01

    import stpredict as stp

    make(7).write(tmp_path / "old.zarr", sdata_formats=SpatialDataContainerFormatV01())
    assert (tmp_path / "old.zarr" / ".zgroup").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = read_zarr(tmp_path / "old.zarr")
    panel = stp.pp.gene_panel([old], n_genes=2, by="mean")
    model = stp.models.Ridge(panel)
    stp.tl.train([old], model, val=0, progress=False)
    with pytest.raises(ValueError, match=r"older format of SpatialData \(Zarr 2\).*sdata.write\(\.\.\.\)"):
        _predict(old, ridge)
    assert "ridge" not in old.tables["table"].layers
    old.write(tmp_path / "new.zarr")
    _predict(read_zarr(tmp_path / "new.zarr"), ridge)
    scores = stp.tl.evaluate(tmp_path / "new.zarr", "ridge")
    assert scores["pcc"].tolist() == stp.tl.evaluate(_predict(make(7), ridge), "ridge")["pcc"].tolist()
