"""A map of counts through the verbs: raster, read-out, query, resume, joined objects, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import concatenate, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

RUN = {"device": "cpu", "precision": "32", "progress": False}
HALF = 2**-11  # rasters have 11 bits


@pytest.fixture(scope="module")
def counted(make):
    """A function of a seed: an object whose totals differ as those of real spots do."""

    def made(seed: int):
        from scipy.sparse import csr_matrix

        sdata = make(seed, shuffle=True)
        table, rng = sdata.tables["table"], np.random.default_rng(seed)
        depth = np.exp(0.4 * rng.normal(size=(table.n_obs, 1)))
        table.X = csr_matrix(rng.poisson(table.X.toarray() * depth).astype(np.float32))
        return sdata

    return made


@pytest.fixture(scope="module")
def rates(counted):
    """A small PixNet after two epochs with each link of rates, by link."""
    import stpredict as stp

    models = {}
    for link in ("counts", "log1p"):
        config = stp.models.PixNetConfig(
            genes=("red", "green", "blue"), mpp=1.0, encoder="mobilenetv2_035", filters=(8, 8, 12, 16), window_px=256,
            core_px=256, halo_px=256, context_rank=0, link=link,
        )  # fmt: skip
        models[link] = stp.models.PixNet(config=config, seed=0)
        stp.tl.train([counted(0), counted(1)], models[link], val=0.2, max_epochs=2, batch_size=4, lr=0.01, **RUN)
    return models


def _layer(sdata, key):
    table = sdata.tables["table"]
    return np.asarray(table[:, ["red", "green", "blue"]].layers[key])


@pytest.mark.parametrize("link", ["counts", "log1p"])
def test_layer_raster_and_query_agree(counted, rates, link):
    import stpredict as stp

    sdata, model = counted(7), rates[link]
    stp.tl.predict(sdata, model, output="both", **RUN)
    stp.tl.predict(sdata, model, output="latent", key_added="latent", **RUN)
    assert sdata.images["pixnet"].coords["c"].values.tolist() == ["red", "green", "blue", "__total__"]
    assert sdata.attrs["stpredict"]["images/pixnet"]["genes"] == ["red", "green", "blue"]
    assert sdata.attrs["stpredict"]["images/pixnet"]["link"] == link
    stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", key_added="again")
    stp.tl.query(sdata, "latent", ["red", "green", "blue"], model=model, key_added="asked", output="both")
    layer = _layer(sdata, "pixnet")
    assert layer.std() > 1e-3
    for key in ("again", "asked"):
        np.testing.assert_allclose(_layer(sdata, key), layer, rtol=0, atol=20 * HALF)
    maps = [sdata.images[key].to_numpy() for key in ("pixnet", "asked")]
    np.testing.assert_allclose(maps[1], maps[0], rtol=20 * HALF)


def test_sums_are_of_rates_and_give_the_value(counted, rates):
    import stpredict as stp

    sdata = counted(7)
    stp.tl.predict(sdata, rates["counts"], output="raster", genes=["blue", "red"], **RUN)
    settings = {"shapes_key": "spots", "stat": "sum"}
    stp.tl.aggregate(sdata, "pixnet", genes=["red", "__total__"], table_added="sums", **settings)
    stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", table_added="shares")
    sums, shares = sdata.tables["sums"], sdata.tables["shares"]
    assert shares.var_names.tolist() == ["blue", "red"]
    wanted = np.log1p(1e4 * sums.X[:, 0] / sums.X[:, 1])
    np.testing.assert_allclose(shares[:, "red"].X[:, 0], wanted, rtol=1e-5)
    stp.tl.aggregate(sdata, "pixnet", key_added="added", **settings)  # into a table that knows no __total__
    with pytest.raises(ValueError, match="'__total__', the rate of all RNA, has no mean.*stat='sum'"):
        stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", genes=["__total__"], table_added="mean")


@pytest.mark.parametrize("link", ["counts", "log1p"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_raster_of_rates_says_so_where_its_record_is_lost(counted, rates, tmp_path, link, stored):
    """Objects are joined, which drops their records; the values are those that the layer has."""
    import stpredict as stp

    sdata = counted(7)
    stp.tl.predict(sdata, rates[link], output="both", **RUN)
    if stored:
        sdata.write(tmp_path / "s.zarr")
        sdata = read_zarr(tmp_path / "s.zarr")
    joined = concatenate({"A": sdata})
    assert "stpredict" not in joined.attrs
    if stored:
        joined.write(tmp_path / "joined.zarr")
        joined = read_zarr(tmp_path / "joined.zarr")
    stp.tl.aggregate(joined, "pixnet-A", shapes_key="spots-A", table_added="again")
    again = joined.tables["again"]
    table = sdata.tables["table"]
    at = again.obs["instance_id"].tolist()
    rows = [at.index(name) for name in table.obs["instance_id"]]
    np.testing.assert_allclose(again.X[rows], _layer(sdata, "pixnet"), rtol=0, atol=20 * HALF)


def test_a_map_that_lost_all_rna_is_refused(counted, rates):
    import stpredict as stp

    sdata = counted(7)
    stp.tl.predict(sdata, rates["counts"], output="raster", **RUN)
    sdata.images["pixnet"] = sdata.images["pixnet"].sel(c=["red", "blue"])
    with pytest.raises(ValueError, match="map of rates without that of all RNA.*'__total__'.*Keep that channel"):
        stp.tl.aggregate(sdata, "pixnet", shapes_key="spots")
    stp.tl.aggregate(sdata, "pixnet", shapes_key="spots", stat="sum")


def test_resumed_it_is_the_same(counted, rates, tmp_path, monkeypatch):
    import stpredict as stp
    from stpredict._inference import _dense

    counted(7).write(tmp_path / "s.zarr")
    counted(7).write(tmp_path / "whole.zarr")
    settings = {"output": "both", **RUN}
    stp.tl.predict(tmp_path / "whole.zarr", rates["counts"], **settings)
    written, reduce = [], _dense.DenseInference._pool_and_write

    def interrupted(self, batch):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(batch[0])
        return reduce(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(_dense.DenseInference, "_pool_and_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stp.tl.predict(tmp_path / "s.zarr", rates["counts"], **settings)
    stp.tl.predict(tmp_path / "s.zarr", rates["counts"], resume=True, **settings)
    found, wanted = (read_zarr(tmp_path / name) for name in ("s.zarr", "whole.zarr"))
    np.testing.assert_array_equal(_layer(found, "pixnet"), _layer(wanted, "pixnet"))
    np.testing.assert_array_equal(found.images["pixnet"].to_numpy(), wanted.images["pixnet"].to_numpy())


def test_off_the_tissue_all_channels_are_nan(counted, rates):
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    import stpredict as stp

    for link, model in rates.items():
        sdata = counted(7)
        sdata.shapes["tissue"] = ShapesModel.parse(GeoDataFrame(geometry=[shapely.box(0, 0, 300, 512)]))
        stp.tl.predict(sdata, model, output="raster", tissue_key="tissue", key_added=link, **RUN)
        values = sdata.images[link].to_numpy()
        assert np.isnan(values[:, :, 80:]).all()
        assert np.isfinite(values[:, :, :70]).all()


def test_the_true_rates_of_a_toy_read_as_its_truth():
    """Gene and total rates of the true field, read at spots: exactly log1p of pooled counts per 10,000."""
    import stpredict as stp
    from stpredict.datasets import toy, toy_truth_shapes

    (section,) = toy(1, seed=3, size_um=500.0, n_genes=40)
    table = section.tables["table"]
    genes = list(table.var_names[:6])
    field = np.asarray(section.images["field"].data).astype(np.float64)
    profile = np.asarray(table.varm["toy_profiles"])
    of_all, of_genes = (np.einsum("gk,kyx->gyx", p, field) for p in (profile.sum(axis=0)[None], profile[:6]))
    section.images["rates"] = Image2DModel.parse(
        np.concatenate([of_genes, of_all]).astype(np.float32), dims=("c", "y", "x"), c_coords=[*genes, "__total__"],
        transformations={"micrometers": Scale([2.0, 2.0], axes=("x", "y"))},
    )  # fmt: skip
    stp.tl.aggregate(section, "rates", shapes_key="spots", table_added="read")
    wanted = toy_truth_shapes(section, "spots", genes=genes)
    np.testing.assert_allclose(section.tables["read"].X, wanted.to_numpy(), rtol=1e-4)


REFUSED = {
    "no counts": ({"target": "as_is"}, "link='counts' is fitted to raw counts, and section"),
    "fractions": ({"layer": "half"}, "needs raw counts, but .* values that are not whole numbers"),
    "even depth": ({"layer": "even"}, "look depth-equalised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_training_on_what_is_no_count_is_refused(counted, make, rates, case):
    import stpredict as stp

    settings, message = REFUSED[case]
    sdata = counted(3)
    table = sdata.tables["table"]
    table.layers["half"] = table.X * 0.5
    table.layers["even"] = make(3, shuffle=True).tables["table"].X
    model = stp.models.PixNet(config=rates["counts"].config, seed=0)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        stp.tl.train(sdata, model, val=0, max_epochs=1, **settings, **RUN)
    assert model.card is None


def test_the_colon_is_refused(data):
    """Its counts were corrected to one depth; the coefficient of variation of totals is 9 %."""
    from scipy.sparse import load_npz

    from stpredict.models._counts import LEAST_SPREAD

    total = np.asarray(load_npz(data / "mouse_colon" / "d0_counts.npz").sum(axis=1)).ravel()
    assert total.std() / total.mean() < LEAST_SPREAD


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C5", "A1"])
def test_raw_sections_are_not(data, name):
    import stpredict as stp
    from stpredict.models._counts import LEAST_SPREAD

    folder = data / ("her2st_A" if name == "A1" else "her2st")
    (sdata,) = stp.datasets.her2st([name], path=folder)
    total = np.asarray(sdata.tables["table"].X.sum(axis=1)).ravel()
    assert total[total >= 500].std() / total[total >= 500].mean() > 2 * LEAST_SPREAD
