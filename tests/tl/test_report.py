"""The report: its pictures hold the values, its words what is known, and one file is all it needs."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from .conftest import colour_sdata

RUN = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture(scope="module")
def predicted(pixnet):
    """An object with a layer and a map, the rows of its table in another order than the shapes; not to be changed."""
    import stpredict as stp

    sdata = colour_sdata(7, shuffle=True)
    stp.tl.predict(sdata, pixnet, output="both", **RUN)
    return sdata


@pytest.fixture(scope="module")
def written(predicted, tmp_path_factory):
    """The text of its report."""
    import stpredict as stp

    return stp.tl.report(predicted, "pixnet", path=tmp_path_factory.mktemp("report") / "report.html").read_text()


def data_of(text: str) -> dict:
    """What the script of a report reads."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def decoded(source: dict, i: int) -> np.ndarray:
    """The values of a plane or column, NaN where there is none."""
    if "columns" in source:
        levels = np.frombuffer(base64.b64decode(source["columns"][i]), np.uint8)
    else:
        levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source["planes"][i].split(",")[1]))))
    low, high = source["low"][i], source["high"][i]
    return np.where(levels == 255, np.nan, low + (high - low) * levels / 254)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal to half a step of 254 over the range, and without a value in the same places."""
    half = np.ptp(wanted[np.isfinite(wanted)]) / 254 / 2
    np.testing.assert_allclose(found, wanted, atol=1.01 * half + 1e-6, equal_nan=True)


def test_it_is_one_file_that_asks_for_nothing(written):
    assert len(written.encode()) < 20e6
    markup = re.sub(r"<script.*?</script>", "", written, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)(?!data:)[^"'\s>]+""", markup) == []
    assert "default-src 'none'" in written
    assert not re.search(r"@import|url\(|https?://", written)


def test_a_plane_holds_the_map(predicted, written):
    data, raster = data_of(written), predicted.images["pixnet"]
    for i, gene in enumerate(data["genes"]):
        same(decoded(data["map"], i), raster.sel(c=gene).to_numpy())
    # a pixel of the map is eight (here four) of the image, and of the H&E in the report, which is not reduced
    assert (data["image"]["width"], data["image"]["height"]) == (512, 512)
    step = 512 / raster.sizes["x"]
    assert data["map"]["matrix"] == pytest.approx([step, 0, 0, step, 0, 0])


def test_values_of_shapes_stand_in_the_order_of_the_shapes(predicted, written):
    import stpredict as stp

    data, table = data_of(written), predicted.tables["table"]
    at = pd.Index(predicted.shapes["spots"].index).get_indexer(table.obs["instance_id"])
    totals = np.asarray(table.X.sum(axis=1)).ravel()
    for i, gene in enumerate(data["genes"]):
        column = table.var_names.get_loc(gene)
        measured = stp.metrics.log1p_cp10k(table.X[:, [column]].toarray(), totals)[:, 0]
        same(decoded(data["measured"], i)[at], measured)
        same(decoded(data["predicted"], i)[at], table.layers["pixnet"][:, column])
    points = predicted.shapes["spots"].geometry
    assert data["shapes"]["x"] == pytest.approx(points.x.to_list(), abs=0.06)
    assert data["shapes"]["y"] == pytest.approx(points.y.to_list(), abs=0.06)


def test_the_table_says_what_reliability_says_and_what_was_scored(predicted, written):
    import stpredict as stp

    data = data_of(written)["table"]
    known, scores = stp.tl.reliability(predicted, "pixnet"), stp.tl.evaluate(predicted, "pixnet")
    assert data["gene"] == known["gene"].tolist()
    assert data["verdict"] == known["verdict"].tolist()
    assert data["val_pcc"] == pytest.approx(known["val_pcc"].tolist(), abs=1e-4)
    assert data["pcc_here"] == pytest.approx(scores["pcc"].tolist(), abs=1e-4)
    assert f"<td>{scores.attrs['summary']['pcc_m'].iloc[0]:.3f}</td>" in written
    assert scores.attrs["summary"]["n_spots"].iloc[0] == 30 and "over 30 measured shapes" in written


def test_genes_of_the_best_evidence_come_first(predicted, written):
    known = predicted.tables["table"].var["pixnet_val_pcc"]
    genes = data_of(written)["genes"]
    assert genes == sorted(genes, key=lambda gene: -known[gene])


def test_provenance_names_the_weights(predicted, written):
    assert predicted.attrs["stpredict"]["images/pixnet"]["weights_sha256"] in written


def test_nulls_of_the_same_table_stand_beside_it(predicted, ridge, tmp_path):
    import stpredict as stp

    sdata = colour_sdata(7)
    counts = sdata.tables["table"].X.toarray()
    counts[:, 3] *= np.linspace(1, 2, 30).round(1)  # else all depths are the same
    sdata.tables["table"].X = csr_matrix(counts.round())
    stp.tl.predict(sdata, ridge, **RUN)
    stp.tl.predict(sdata, ridge, key_added="other", **RUN)
    text = stp.tl.report(sdata, "ridge", path=tmp_path / "r.html").read_text()
    assert re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)[ <]', text) == [
        ("own", "ridge"), ("other", "other"), ("null", "log"), ("ceiling", "ceiling"),
    ]  # fmt: skip
    assert "map" not in data_of(text)


def test_a_map_alone_says_what_is_missing(predicted, tmp_path):
    from spatialdata import SpatialData

    import stpredict as stp

    sdata = SpatialData(images=dict(predicted.images), attrs=dict(predicted.attrs))
    text = stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text()
    data = data_of(text)
    assert {"map", "image"} <= set(data) and not {"predicted", "measured", "shapes"} & set(data)
    assert "This is a map alone" in text and "stp.tl.aggregate" in text
    assert "no table of counts" in text and "There is nothing to score" in text
    assert "bare glass too" in text
    assert list(data["table"]) == ["gene"]


def test_a_map_beside_counts_shows_what_was_measured(predicted, tmp_path):
    import stpredict as stp

    sdata = colour_sdata(7)
    sdata.images["pixnet"] = predicted.images["pixnet"]
    sdata.attrs = dict(predicted.attrs)
    data = data_of(stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text())
    assert "measured" in data and "predicted" not in data


@pytest.mark.parametrize("key", ["pixent", "image", "table"])
def test_a_key_that_is_no_prediction_is_refused_with_those_that_are(predicted, key, tmp_path):
    import stpredict as stp

    with pytest.raises(ValueError, match=f"no predicted layer or map {key!r}.*'pixnet'"):
        stp.tl.report(predicted, key, path=tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_a_latent_map_is_refused_with_the_way_out(pixnet, tmp_path):
    import stpredict as stp

    sdata = colour_sdata(7)
    stp.tl.predict(sdata, pixnet, output="latent", key_added="features", **RUN)
    with pytest.raises(ValueError, match="latent map.*stp.tl.query"):
        stp.tl.report(sdata, "features", path=tmp_path / "r.html")


def test_genes_that_were_not_predicted_are_refused(predicted, tmp_path):
    import stpredict as stp

    with pytest.raises(ValueError, match=r"not predicted for: \['other'\]"):
        stp.tl.report(predicted, "pixnet", genes=["red", "other"], path=tmp_path / "r.html")
    with pytest.raises(ValueError, match="Closest names: greeen -> green"):
        stp.tl.report(predicted, "pixnet", genes="greeen", path=tmp_path / "r.html")


def test_a_file_that_is_there_is_kept(predicted, tmp_path):
    import stpredict as stp

    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        stp.tl.report(predicted, "pixnet", path=path)
    assert path.read_text() == "mine"
    assert stp.tl.report(predicted, "pixnet", path=path, overwrite=True) == path
    assert data_of(path.read_text())["genes"]
    with pytest.raises(OSError):
        stp.tl.report(predicted, "pixnet", path=path / "below.html")
    assert [each.name for each in tmp_path.iterdir()] == ["r.html"]


def wide(n_genes: int):
    """An object with a layer of very many genes, whose evidence rises with their number."""
    from anndata import AnnData
    from spatialdata.models import TableModel

    sdata, rng = colour_sdata(3, n=12), np.random.default_rng(0)
    values = rng.normal(1, np.linspace(0.1, 1, n_genes)[::-1], (12, n_genes)).astype(np.float32)
    obs = sdata.tables["table"].obs.copy()
    table = AnnData(values, obs=obs, layers={"wide": values.copy()})
    table.var_names = [f"G{i}" for i in range(n_genes)]
    table.var["wide"] = True
    table.var["wide_val_pcc"] = np.linspace(-0.2, 0.6, n_genes)
    sdata.tables["table"] = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    return sdata


def test_of_18000_genes_those_of_the_best_evidence_are_drawn_and_all_are_listed(tmp_path):
    import stpredict as stp

    sdata = wide(18_000)
    path = stp.tl.report(sdata, "wide", path=tmp_path / "r.html", n_genes=40)
    text = path.read_text()
    data = data_of(text)
    assert data["genes"] == [f"G{i}" for i in range(17_999, 17_959, -1)]
    assert len(data["table"]["gene"]) == 18_000
    assert "40 of 18,000 genes: those with the highest correlation on held-out data" in text
    verdicts = stp.tl.reliability(sdata, "wide")["verdict"].value_counts()
    weak, not_at_all = (verdicts[f"{which} on held-out data"] for which in ("weak", "not predicted"))
    assert f"genes; {weak:,} weakly; {not_at_all:,} not predicted" in text
    assert verdicts["predicted on held-out data"] + weak + not_at_all == 18_000
    assert path.stat().st_size < 20e6
    del sdata.tables["table"].var["wide_val_pcc"]
    data = data_of(stp.tl.report(sdata, "wide", path=path, n_genes=40, overwrite=True).read_text())
    assert np.mean([int(gene[1:]) for gene in data["genes"]]) < 6000  # those that vary most


def test_a_table_of_predictions_alone_measures_nothing(tmp_path):
    import stpredict as stp

    text = stp.tl.report(wide(30), "wide", path=tmp_path / "r.html").read_text()
    assert "measured" not in data_of(text)
    assert "holds predictions alone" in text


def test_a_store_is_only_read(predicted, tmp_path, files_of):
    import stpredict as stp

    sdata = colour_sdata(7)
    sdata.tables["table"] = predicted.tables["table"]
    sdata.write(tmp_path / "slide.zarr")
    before = files_of(tmp_path / "slide.zarr")
    stp.tl.report(tmp_path / "slide.zarr", "pixnet", path=tmp_path / "out" / "r.html")
    assert files_of(tmp_path / "slide.zarr") == before
    with pytest.raises(FileNotFoundError, match=r"no store"):
        stp.tl.report(tmp_path / "slid.zarr", "pixnet", path=tmp_path / "q.html")


def test_names_cannot_end_the_script(tmp_path):
    import stpredict as stp

    sdata, name = wide(3), "</script><script>alert(1)</script>"
    table = sdata.tables["table"]
    table.var_names = ["A", name, "<b>C</b>"]
    text = stp.tl.report(sdata, "wide", path=tmp_path / "r.html", title="<img src=x>").read_text()
    assert text.count("</script>") == 2 and "<img src=x>" not in text and "<b>C</b>" not in text
    assert set(data_of(text)["genes"]) == {"A", name, "<b>C</b>"}


def test_shapes_in_another_frame_are_drawn_where_they_lie(predicted, tmp_path):
    from spatialdata.transformations import Affine, set_transformation

    import stpredict as stp

    sdata = colour_sdata(7)
    sdata.tables["table"] = predicted.tables["table"]
    turned = sdata.shapes["spots"].copy()
    x, y = turned.geometry.x.copy(), turned.geometry.y.copy()
    # the frame of the shapes: turned by 90 degrees and twice as fine
    turned.geometry = [type(turned.geometry.iloc[0])(2 * b, 2 * (512 - a)) for a, b in zip(x, y, strict=True)]
    turned["radius"] *= 2
    back = Affine([[0, -0.5, 512], [0.5, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(turned, {"global": back}, set_all=True)
    sdata.shapes["spots"] = turned
    data = data_of(stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text())
    place = [data["image"]["corner"][k] for k in (0, 1)]
    assert np.add(data["shapes"]["x"], place[0]) == pytest.approx(x.to_numpy(), abs=0.06)
    assert np.add(data["shapes"]["y"], place[1]) == pytest.approx(y.to_numpy(), abs=0.06)
    assert data["shapes"]["r"] == pytest.approx([24.0] * 30)


def test_many_shapes_are_a_grid_of_their_means(predicted, tmp_path, monkeypatch):
    import stpredict as stp
    from stpredict.tl._report import _content

    monkeypatch.setattr(_content, "MOST_SHAPES", 10)
    text = stp.tl.report(predicted, "pixnet", path=tmp_path / "r.html").read_text()
    data, table = data_of(text), predicted.tables["table"]
    grid = decoded(data["predicted"], 0)
    values = table.layers["pixnet"][:, table.var_names.get_loc(data["genes"][0])]
    assert np.isfinite(grid).sum() <= 30 and "too many shapes" in text and "shapes" not in data
    a, _, _, d, left, top = data["predicted"]["matrix"]
    points = predicted.shapes["spots"].loc[table.obs["instance_id"]].geometry
    cell = ((points.y - top) // d).to_numpy(int), ((points.x - left) // a).to_numpy(int)
    wanted = pd.Series(values).groupby(list(cell)).mean()
    half = (data["predicted"]["high"][0] - data["predicted"]["low"][0]) / 508
    assert [grid[place] for place in wanted.index] == pytest.approx(wanted.to_list(), abs=1.1 * half)


def test_planes_shrink_until_they_have_room(predicted, tmp_path, monkeypatch):
    import stpredict as stp
    from stpredict.tl._report import _pictures

    room = 3000
    monkeypatch.setattr(_pictures, "PLANES_BYTES", room)
    monkeypatch.setattr(_pictures, "SMALLEST_PX", 8)
    data = data_of(stp.tl.report(predicted, "pixnet", path=tmp_path / "r.html").read_text())
    k = round(data["map"]["matrix"][0] / 512 * predicted.images["pixnet"].sizes["x"])
    assert k >= 2 and sum(map(len, data["map"]["planes"])) < 1.2 * room
    full = predicted.images["pixnet"].sel(c=data["genes"][0]).to_numpy()
    size = len(full) // k  # whole ones; the last may hold fewer pixels
    means = full[: size * k, : size * k].reshape(size, k, size, k).mean(axis=(1, 3))
    half = (data["map"]["high"][0] - data["map"]["low"][0]) / 508
    np.testing.assert_allclose(decoded(data["map"], 0)[:size, :size], means, atol=1.01 * half + 1e-5)


def test_means_leave_out_what_has_no_value():
    from stpredict.tl._report._pictures import averaged

    pixels = np.array([[[1, 2, 5], [3, np.nan, 7], [np.nan, np.nan, 9]]], np.float32)
    assert averaged(pixels, 2)[0] == pytest.approx(np.array([[2, 6], [np.nan, 9]]), nan_ok=True)
    assert averaged(pixels, 1) is pixels


def test_a_map_before_its_link_is_shown_after_it(predicted, tmp_path):
    from spatialdata import SpatialData

    import stpredict as stp

    records = {place: {**record, "link": "log1p"} for place, record in predicted.attrs["stpredict"].items()}
    sdata = SpatialData(images=dict(predicted.images), attrs={"stpredict": records})
    data = data_of(stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text())
    raw = predicted.images["pixnet"].sel(c=data["genes"][0]).to_numpy()
    same(decoded(data["map"], 0), np.log1p(np.maximum(raw, 0)))


def test_only_the_tissue_is_shown_and_its_area_said(predicted, tmp_path):
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    import stpredict as stp

    sdata = colour_sdata(7)
    sdata.images["pixnet"], sdata.attrs = predicted.images["pixnet"], dict(predicted.attrs)
    del sdata.tables["table"]
    frame = GeoDataFrame({"tissue_mm2": [0.02]}, geometry=[shapely.box(100, 200, 300, 300)])
    systems = dict(get_transformation(sdata.images["image"], get_all=True))
    sdata.shapes["tissue"] = ShapesModel.parse(frame, transformations=systems)
    text = stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text()
    data = data_of(text)
    assert "0.02 mm²" in text
    assert (data["image"]["width"], data["image"]["height"]) == (216, 116)  # a margin of 8 on each side
    assert data["image"]["corner"] == pytest.approx([92, 192])
    xs, ys = np.reshape(data["tissue"][0], (-1, 2)).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((8, 208, 8, 108))
    step = 512 / predicted.images["pixnet"].sizes["x"]
    left, top = data["map"]["matrix"][4:]
    first = int(round((top + 192) / step)), int(round((left + 92) / step))
    full = predicted.images["pixnet"].sel(c=data["genes"][0]).to_numpy()
    half = (data["map"]["high"][0] - data["map"]["low"][0]) / 508
    part = full[first[0] : first[0] + 5, first[1] : first[1] + 5]
    np.testing.assert_allclose(decoded(data["map"], 0)[:5, :5], part, atol=1.01 * half + 1e-6)


def test_a_section_that_was_trained_on_is_called_so(predicted, tmp_path):
    from spatialdata import SpatialData

    import stpredict as stp
    from stpredict._spatialdata import picture_digest

    told = predicted.attrs["stpredict"]
    assert "was trained on this slide" not in stp.tl.report(predicted, "pixnet", path=tmp_path / "o.html").read_text()
    own = picture_digest(predicted, "image")
    assert own not in told["images/pixnet"]["training_images"]  # another picture of the same name
    records = {p: {**r, "training_images": [own]} for p, r in told.items()}
    sdata = SpatialData(images=dict(predicted.images), attrs={"stpredict": records})
    text = stp.tl.report(sdata, "pixnet", path=tmp_path / "p.html").read_text()
    assert "The model was trained on this slide, so that maps and scores here" in text
    # models without hashes of their images
    records = {p: {**r, "training_sections": ["image", "b"]} for p, r in told.items()}
    del records["images/pixnet"]["training_images"]
    sdata = SpatialData(images=dict(predicted.images), attrs={"stpredict": records})
    text = stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text()
    assert "was trained on a section called &#39;image&#39;" in text
    records["images/pixnet"]["training_sections"] = ["b"]
    assert "was trained on a section" not in stp.tl.report(sdata, "pixnet", path=tmp_path / "q.html").read_text()


def test_where_nothing_is_measured_it_says_where_the_evidence_is_from(tmp_path):
    import stpredict as stp

    ridge = stp.models.Ridge(["red", "green", "blue"])
    stp.tl.train([colour_sdata(k, n=60) for k in (0, 1)], ridge, val=[colour_sdata(2, n=60)], progress=False)
    sdata = colour_sdata(9)
    stp.pp.tile_grid(sdata, diameter_um=64.0, key_added="grid")
    stp.tl.predict(sdata, ridge, shapes_key="grid", table_added="grid_ridge", progress=False)
    text = stp.tl.report(sdata, "ridge", table_name="grid_ridge", path=tmp_path / "r.html").read_text()
    assert f"was measured elsewhere ({ridge.card.val_source}); nothing is measured here" in text


def test_without_a_scale_it_says_so(predicted, tmp_path):
    from spatialdata import SpatialData
    from spatialdata.transformations import remove_transformation

    import stpredict as stp

    sdata = SpatialData(images=dict(colour_sdata(7).images), attrs=dict(predicted.attrs))
    sdata.images["pixnet"] = predicted.images["pixnet"].copy()
    remove_transformation(sdata.images["image"], "micrometers")
    text = stp.tl.report(sdata, "pixnet", path=tmp_path / "r.html").read_text()
    assert data_of(text)["image"]["um"] is None and "There is no scale bar" in text
    assert data_of(stp.tl.report(sdata, "pixnet", mpp=0.5, path=tmp_path / "q.html").read_text())["image"]["um"] == 0.5
