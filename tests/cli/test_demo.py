"""The demo on sections of half a millimetre and two epochs: what its table must obey, and what it must leave behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import spatialdata

SCALES = (8.0, 55.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(table, folder) of a whole demo."""
    from stpredict.cli import _demo_run

    size = _demo_run.Size(
        size_um=700.0, n_genes=20, max_epochs=2, batch_size=2, window_px=128, core_px=384, halo_px=128, scales_um=SCALES
    )
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    return _demo_run.run(out, seed=5, size=size), out


@pytest.fixture(scope="module")
def table(demo):
    table = demo[0].copy()
    table.columns = table.columns.get_level_values(1)
    return table


def test_rows_and_columns(table):
    assert list(table.index) == ["pixnet", "ridge", "mean", "nearest spot", "oracle's map", "oracle"]
    assert list(table.columns) == ["PCC@F", "PCC@S", "PCC@M", "MSE", "8 um", "55 um"]


def test_the_oracle_is_the_truth_at_every_scale(table):
    assert table.loc["oracle", ["8 um", "55 um"]].to_numpy(dtype=float) == pytest.approx(1.0)


def test_nothing_beats_the_oracle(table):
    best = table.drop(index="oracle")
    assert (best[["PCC@M", "8 um", "55 um"]].max() < table.loc["oracle", ["PCC@M", "8 um", "55 um"]]).all()
    assert best["MSE"].min() > table.loc["oracle", "MSE"]


def test_a_perfect_map_is_read_nearly_perfectly_and_an_8_um_square_the_better_of_them(table):
    """Its only loss is the log of a mean against the mean of logs, which grows with the shape."""
    fine, coarse = table.loc["oracle's map", ["8 um", "55 um"]]
    assert 0.9 < coarse < fine < 1.0


def test_the_mean_has_an_error_but_no_correlation(table):
    row = table.loc["mean"]
    assert np.isnan(row[["PCC@F", "PCC@S", "PCC@M", "8 um", "55 um"]].to_numpy(dtype=float)).all()
    assert row["MSE"] > 0


def test_copying_a_spot_is_better_where_it_was_measured_than_between(demo, table):
    """At 55 um a shape is about as large as a spot; at 8 um the copy knows nothing of what lies within one."""
    assert 0 < table.loc["nearest spot", "8 um"] < table.loc["nearest spot", "55 um"]
    assert table.loc["nearest spot", ["PCC@F", "PCC@S", "PCC@M", "MSE"]].isna().all()


def test_the_nearest_spot_map_holds_each_spot_own_value(demo):
    import stpredict as stp
    from stpredict.cli._demo_scores import nearest_spot_map

    test = spatialdata.read_zarr(demo[1] / "test.zarr")
    gene = str(test["pixnet"].coords["c"].values[3])
    values = nearest_spot_map(test, "pixnet", [gene])
    spots = test["table"]
    totals = np.asarray(spots.X.sum(axis=1)).ravel()
    measured = stp.metrics.log1p_cp10k(spots[:, [gene]].X.toarray(), totals)[:, 0]
    column, row = (spots.obsm["spatial"] // 4).astype(int).T  # 1 um a pixel, a raster of 4 um
    assert values.shape == (1, test["pixnet"].sizes["y"], test["pixnet"].sizes["x"])
    assert values[0, row, column] == pytest.approx(measured, abs=1e-5)


def test_the_stores_hold_what_the_demo_says(demo):
    table, out = demo
    test = spatialdata.read_zarr(out / "test.zarr")
    for key in ("pixnet", "ridge", "mean"):
        layer = test["table"].layers[key]
        assert np.isfinite(layer[:, test["table"].var[key]]).all()
        assert test["table"].var[key].sum() == 20
    genes = list(test["table"].var_names[test["table"].var["pixnet"]])
    assert set(test["pixnet"].coords["c"].values) == set(genes) == set(test["truth"].coords["c"].values)
    assert "image" in spatialdata.read_zarr(out / "train.zarr").images
    assert pd.read_csv(out / "scores.csv", header=[0, 1], index_col=0).to_numpy() == pytest.approx(
        table.to_numpy(dtype=float), nan_ok=True
    )
    assert (out / "demo.png").stat().st_size > 50_000


def test_it_ends_with_a_report_of_the_predicted_section(demo):
    text = (demo[1] / "report.html").read_text()
    assert "This tissue is simulated." in text and "PCC@M" in text
    for name in ("pixnet", "ridge", "mean"):
        assert f'<th scope="row">{name}</th>' in text
    assert "bare glass" not in text


def test_the_map_has_no_values_on_bare_glass(demo):
    import shapely
    from spatialdata.transformations import get_transformation

    test = spatialdata.read_zarr(demo[1] / "test.zarr")
    raster, tissue = test["pixnet"], test["tissue"].geometry.union_all()
    step = get_transformation(raster, "global").to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    y, x = (np.indices((raster.sizes["y"], raster.sizes["x"])) + 0.5) * step
    empty = np.isnan(raster[0].to_numpy())
    assert empty.any()
    assert empty[shapely.distance(shapely.points(x, y), tissue) > 3 * step].all()
    assert not empty[shapely.contains_xy(tissue.buffer(-3 * step), x, y)].any()


def test_it_says_what_it_does_and_nothing_else(tmp_path, capsys, caplog):
    """One line a step: verbs that say how many spots they use, four times each, are not heard."""
    import logging

    from stpredict.cli import _demo_run

    caplog.set_level(logging.INFO, logger="stpredict")
    with _demo_run._quiet():
        logging.getLogger("stpredict").info("shapes 'spots': 5 of 6 are used")
        logging.getLogger("stpredict").warning("this is heard")
    logging.getLogger("stpredict").info("and this")
    assert [record.message for record in caplog.records] == ["this is heard", "and this"]


def test_the_saved_model_predicts_what_the_demo_wrote(demo):
    """The store can be worked on, and the map was not made by other weights than those that were saved."""
    import stpredict as stp

    test = spatialdata.read_zarr(demo[1] / "test.zarr")
    stp.tl.predict(
        test,
        demo[1] / "pixnet",
        image_key="image",
        shapes_key="spots",
        tissue_key="tissue",
        key_added="again",
        progress=False,
    )
    layers, panel = test["table"].layers, test["table"].var["pixnet"].to_numpy()
    assert np.array_equal(layers["again"][:, panel], layers["pixnet"][:, panel])


def test_an_earlier_demo_is_kept_without_overwrite(demo, run):
    before = (demo[1] / "scores.csv").stat().st_mtime_ns
    status, _, err = run("demo", "--out", demo[1])
    assert status == 1
    assert "--overwrite" in err and len(err.splitlines()) == 1
    assert (demo[1] / "scores.csv").stat().st_mtime_ns == before


def test_the_printed_table_tells_no_score_from_nan(demo):
    from stpredict.cli._demo_run import _text

    lines = {line.split("  ")[0]: line for line in _text(demo[0]).splitlines()}
    assert lines["mean"].count("NaN") == 5
    assert "NaN" not in lines["nearest spot"] and lines["nearest spot"].count(" -") == 4


def test_pixnet_starts_from_the_trained_model_where_one_comes_with_the_package(demo, monkeypatch):
    import torch

    from stpredict.cli import _demo_run

    start = str(demo[1] / "pixnet")
    size = _demo_run.Size(window_px=128, core_px=384, halo_px=128)
    trained = _demo_run.PixNet(config=_demo_run.small_pixnet(["GNAS"], size, seed=0).config, encoder_weights=start)
    nets = {}
    for shipped in ({}, {start: demo[1] / "pixnet"}):
        monkeypatch.setattr(_demo_run, "START", start)
        monkeypatch.setattr(_demo_run, "shipped", lambda found=shipped: found)
        nets[len(shipped)] = _demo_run.small_pixnet(["GNAS"], size, seed=0)
    of_start = trained.decoder.last[0].weight
    assert torch.equal(nets[1].decoder.last[0].weight, of_start)
    assert not torch.equal(nets[0].decoder.last[0].weight, of_start)
