"""Prediction: where values land, and what must not change them."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import shapely
from spatialdata import read_zarr
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

RUN = {"device": "cpu", "precision": "32", "progress": False}


def _layer(sdata, key="pixnet"):
    """Predicted values by instance id, (n, g)."""
    table = sdata.tables["table"]
    frame = table[:, table.var[key].to_numpy()].to_df(layer=key)
    frame.index = table.obs["instance_id"].astype(str).to_numpy()
    return frame.sort_index()


def _predict(sdata, model, **settings):
    import stpredict as stp

    stp.tl.predict(sdata, model, **(RUN | settings))
    return sdata


def test_the_layer_is_what_the_contract_says(sdata, pixnet):
    _predict(sdata, pixnet, genes=["blue", "red"])
    table = sdata.tables["table"]
    values = table.layers["pixnet"]
    assert values.dtype == np.float32
    assert table.var["pixnet"].tolist() == [True, False, True, False]
    assert np.isfinite(values[:, [0, 2]]).all()
    assert np.isnan(values[:, [1, 3]]).all()
    np.testing.assert_allclose(table.obs["pixnet_coverage"], 1.0, atol=1e-6)
    quality = table.var["pixnet_val_pcc"].to_numpy()
    np.testing.assert_allclose(quality[[0, 2]], [pixnet.card.val_pcc["red"], pixnet.card.val_pcc["blue"]])
    assert np.isnan(quality[[1, 3]]).all()
    record = sdata.attrs["stpredict"]["tables/table/layers/pixnet"]
    assert record == table.uns["stpredict"]["pixnet"]
    assert (record["model"], record["mpp"], record["target"]) == ("PixNet", 1.0, "log1p_cp10k")
    assert record["genes"] == ["blue", "red"]


def test_a_shuffled_table_scores_as_the_straight_one(make, ridge):
    import stpredict as stp

    scores = []
    for shuffle in (False, True):
        sdata = _predict(make(7, shuffle=shuffle), ridge)
        scores.append(stp.tl.evaluate(sdata, "ridge")["pcc"].to_numpy())
    assert sdata.tables["table"].obs["instance_id"].tolist() != sdata.shapes["spots"].index.tolist()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    assert scores[0].min() > 0.1  # a patch of 112 um blurs a disk of 48, but not beyond recognition


def test_a_shuffled_table_gets_each_value_in_its_own_row(make, pixnet):
    straight, shuffled = make(7), make(7, shuffle=True)
    one, other = (_layer(_predict(each, pixnet)) for each in (straight, shuffled))
    assert one.equals(other)


SHEAR = [[0.8, -0.5, 40.0], [0.35, 1.1, -9.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.0, -1.0, 30.0], [1.0, 0.0, 5.0], [0.0, 0.0, 1.0]],
        [[-1.0, 0.0, 512.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]],
        SHEAR,
    ],
    ids=["quarter turn", "flip", "scale", "shear"],
)
def test_moving_the_whole_object_changes_nothing(make, pixnet, matrix):
    wanted = _layer(_predict(make(7), pixnet))
    moved = make(7)
    affine = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    for element in (moved.images["image"], moved.shapes["spots"]):
        set_transformation(element, {"elsewhere": affine}, set_all=True)
    np.testing.assert_allclose(_layer(_predict(moved, pixnet, mpp=1.0)), wanted, atol=2e-5)


@pytest.mark.parametrize("matrix", [[[0.0, -1.0, 30.0], [1.0, 0.0, 5.0], [0.0, 0.0, 1.0]], SHEAR])
def test_shapes_may_live_in_a_frame_of_their_own(make, pixnet, matrix):
    """The shapes' own coordinates change by A, and their transformation by its inverse: the same places."""
    wanted = _layer(_predict(make(7), pixnet))
    moved = make(7)
    a = np.array(matrix)
    shapes = moved.shapes["spots"].copy()
    flat = [*a[:2, :2].ravel(), *a[:2, 2]]
    polygons = shapes.geometry.buffer(shapes["radius"], quad_segs=64).affine_transform(flat)
    frame = shapes.drop(columns="radius").set_geometry(polygons)
    back = Affine(np.linalg.inv(a), input_axes=("x", "y"), output_axes=("x", "y"))
    frame.attrs = {}
    moved.shapes["spots"] = ShapesModel.parse(frame, transformations={"global": back})
    set_transformation(moved.images["image"], {"global": Identity()}, set_all=True)
    got = _layer(_predict(moved, pixnet, mpp=1.0))
    np.testing.assert_allclose(got, wanted, atol=2e-3)  # a 256-gon inside the circle loses 0.01 % of its area


def test_an_image_of_twice_the_size_gives_the_same_up_to_resampling(make, pixnet):
    from spatialdata.models import Image2DModel

    plain = make(7)
    wanted = _layer(_predict(plain, pixnet))
    large = make(7)
    pixels = np.kron(np.asarray(large.images["image"].data), np.ones((1, 2, 2), dtype=np.uint8))
    systems = {"global": Scale([0.5, 0.5], axes=("x", "y")), "micrometers": Scale([0.5, 0.5], axes=("x", "y"))}
    large.images["image"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=systems, scale_factors=[2]
    )
    np.testing.assert_allclose(_layer(_predict(large, pixnet)), wanted, atol=1e-5)


def test_tile_and_batch_size_do_not_show(make, pixnet):
    from dataclasses import replace

    plain = pixnet.config
    try:
        wanted = _layer(_predict(make(7, size=800), pixnet))
        for config, batch in ((replace(plain, core_px=256), "auto"), (plain, 3)):
            pixnet.config = config
            got = _layer(_predict(make(7, size=800), pixnet, batch_size=batch))
            assert (np.abs(got - wanted).max() <= 1e-3 * wanted.std()).all()
    finally:
        pixnet.config = plain


def test_a_store_gives_back_the_same_bits(make, sdata, pixnet, tmp_path):
    in_memory = _layer(_predict(sdata, pixnet, output="both"))
    raster = sdata.images["pixnet"].to_numpy()
    make(7, shuffle=True).write(tmp_path / "s.zarr")
    backed = read_zarr(tmp_path / "s.zarr")
    _predict(backed, pixnet, output="both")
    for again in (backed, read_zarr(tmp_path / "s.zarr")):
        assert _layer(again).equals(in_memory)
        np.testing.assert_array_equal(again.images["pixnet"].to_numpy(), raster)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_a_path_and_a_list_are_taken(make, pixnet, tmp_path):
    for name in ("a", "b"):
        make(7).write(tmp_path / f"{name}.zarr")
    _predict([tmp_path / "a.zarr", str(tmp_path / "b.zarr")], pixnet)
    one, other = (_layer(read_zarr(tmp_path / f"{name}.zarr")) for name in ("a", "b"))
    assert one.equals(other)
    with pytest.raises(FileNotFoundError, match=r"there is no store .*c.zarr"):
        _predict(tmp_path / "c.zarr", pixnet)


def test_the_raster_lies_on_the_image(sdata, pixnet):
    _predict(sdata, pixnet, output="raster", genes=["green", "red"])
    raster = sdata.images["pixnet"]
    assert raster.dtype == np.float32
    assert raster.sizes == {"c": 2, "y": 128, "x": 128}
    assert raster.coords["c"].values.tolist() == ["green", "red"]
    systems = get_transformation(raster, get_all=True)
    for name, pixel in (("global", 4.0), ("micrometers", 4.0)):
        matrix = systems[name].to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix, np.diag([pixel, pixel, 1.0]))
    assert sdata.attrs["stpredict"]["images/pixnet"]["raster_mpp"] == 4.0
    assert "pixnet" not in sdata.tables["table"].layers


def test_shapes_smaller_than_a_cell_of_the_map_are_said_once(make, pixnet, ridge):
    import stpredict as stp

    sdata = make(7)
    stp.pp.tile_grid(sdata, diameter_um=2.0, pitch_um=40.0, shape="square", key_added="small")
    said = r"169 of 169 shapes are smaller than a cell of this PixNet's map: they are 2 um.*cell 4 um.*4 um and more"
    with pytest.warns(UserWarning, match=said) as caught:
        _predict(sdata, pixnet, shapes_key="small")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    _predict(sdata, ridge, shapes_key="small")  # a model of spots has no map
    stp.pp.tile_grid(sdata, diameter_um=4.0, pitch_um=40.0, shape="square", key_added="same")
    _predict(sdata, pixnet, shapes_key="same")
    sdata.shapes["same"].geometry = [
        shapely.box(0, 0, 3, 3) if k < 7 else each for k, each in enumerate(sdata.shapes["same"].geometry)
    ]
    _predict(sdata, pixnet, shapes_key="same", overwrite=True)  # 7 of 169 are scraps


def test_a_model_without_a_record_of_its_tissue_says_so_once_and_goes_on(make, ridge, caplog):
    """Models of earlier versions, and those of few shapes: that the tissue is not checked is no answer about it."""
    import stpredict as stp

    assert not ridge.card.domain
    stp.clear_caches()  # an earlier prediction of this model has said it
    sdata = make(7)
    with caplog.at_level("WARNING", logger="stpredict"):
        for key in ("first", "second"):
            _predict(sdata, ridge, key_added=key)
    said = [record.getMessage() for record in caplog.records if "no record of the tissue" in record.getMessage()]
    assert len(said) == 1 and "this Ridge" in said[0] and "is not checked" in said[0]
    table = sdata.tables["table"]
    assert {"first", "second"} <= set(table.layers)
    assert not any(name.endswith("_domain") for name in table.obs)


@pytest.mark.parametrize("output", ["raster", "latent"])
def test_rasters_are_float16_where_that_is_asked_and_read_alike(make, pixnet, output, tmp_path):
    import stpredict as stp

    make(7).write(tmp_path / "s.zarr")
    for sdata in (make(7), read_zarr(tmp_path / "s.zarr")):
        maps = {}
        for dtype in ("float32", "float16"):
            _predict(sdata, pixnet, output=output, dtype=dtype, key_added=dtype)
            maps[dtype] = sdata.images[dtype].to_numpy()
            assert maps[dtype].dtype == dtype
            assert sdata.attrs["stpredict"][f"images/{dtype}"]["dtype"] == dtype
        exact = np.abs(maps["float32"]) >= np.finfo(np.float16).smallest_normal
        assert exact.mean() > 0.5
        np.testing.assert_array_equal(maps["float32"][exact], maps["float16"][exact].astype(np.float32))
        for key in maps:
            if output == "raster":
                stp.tl.aggregate(sdata, key, shapes_key="spots")
            else:
                stp.tl.query(sdata, key, ["red"], model=pixnet, output="both", dtype=key, key_added=f"{key}_asked")
                assert sdata.images[f"{key}_asked"].dtype == key
        one, other = (_layer(sdata, key if output == "raster" else f"{key}_asked") for key in maps)
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match=r"dtype='float64' must be one of 'float32', 'float16'"):
        _predict(sdata, pixnet, output=output, dtype="float64")


def test_a_run_in_another_number_format_is_not_gone_on_with(make, pixnet, tmp_path):
    make(7).write(tmp_path / "s.zarr")
    sdata = read_zarr(tmp_path / "s.zarr")
    _predict(sdata, pixnet, output="raster")
    with pytest.raises(ValueError, match=r"differs from this call in: dtype\."):
        _predict(sdata, pixnet, output="raster", dtype="float16", resume=True)


def test_a_coarser_raster_is_the_mean_of_the_fine_one(sdata, pixnet):
    _predict(sdata, pixnet, output="raster")
    _predict(sdata, pixnet, output="raster", raster_mpp=16.0, key_added="coarse")
    fine, coarse = (sdata.images[key].to_numpy().astype(float) for key in ("pixnet", "coarse"))
    wanted = fine.reshape(3, 32, 4, 32, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(coarse, wanted, atol=2e-2, rtol=2e-3)
    with pytest.raises(ValueError, match=r"raster_mpp=9.0 is no step of this model: it maps at 4 um.*Use raster_mpp=8"):
        _predict(sdata, pixnet, output="raster", raster_mpp=9.0, key_added="odd")


def test_the_latent_raster_gives_every_gene(sdata, pixnet):
    _predict(sdata, pixnet, output="latent", key_added="latent")
    _predict(sdata, pixnet, output="raster")
    latent, raster = (sdata.images[key].to_numpy().astype(float) for key in ("latent", "pixnet"))
    query = pixnet.query(pixnet.genes).detach().numpy()
    np.testing.assert_allclose(np.einsum("gd,dyx->gyx", query, latent), raster, atol=0.03)


def test_shapes_without_a_table_get_one_in_element_order(sdata, pixnet):
    import stpredict as stp

    stp.pp.tile_grid(sdata, diameter_um=64.0, shape="square", key_added="bins")
    _predict(sdata, pixnet, shapes_key="bins")
    table = sdata.tables["bins_pixnet"]
    assert table.obs["instance_id"].tolist() == sdata.shapes["bins"].index.tolist()
    assert table.var_names.tolist() == ["red", "green", "blue"]
    np.testing.assert_array_equal(table.X, table.layers["pixnet"])
    centres = np.column_stack([sdata.shapes["bins"].geometry.centroid.x, sdata.shapes["bins"].geometry.centroid.y])
    np.testing.assert_allclose(table.obsm["spatial"], centres)
    assert table.uns["spatialdata_attrs"]["region"] == "bins"


def test_a_new_table_by_name(sdata, pixnet):
    _predict(sdata, pixnet, table_added="wide")
    assert sdata.tables["wide"].shape == (30, 3)
    assert "pixnet" not in sdata.tables["table"].layers


def test_off_the_image_is_nan_with_one_warning(sdata, pixnet):
    import shapely

    shapes = sdata.shapes["spots"]
    shapes.geometry = [shapely.Point(-900, -900), shapely.Point(0, 100), *shapes.geometry[2:]]
    with pytest.warns(UserWarning, match=r"1 of 30 shapes have nothing on the image.*t.obs\['pixnet_coverage'\] > 0"):
        _predict(sdata, pixnet)
    table = sdata.tables["table"]
    lost = table.obs["instance_id"] == shapes.index[0]
    half = table.obs["instance_id"] == shapes.index[1]
    assert np.isnan(table.layers["pixnet"][lost]).all()
    assert table.obs["pixnet_coverage"][lost.to_numpy()].item() == 0.0
    assert table.obs["pixnet_coverage"][half.to_numpy()].item() == pytest.approx(0.5, abs=1e-6)


def test_tissue_cuts_the_read_out(sdata, pixnet):
    import shapely
    from geopandas import GeoDataFrame

    tissue = GeoDataFrame(geometry=[shapely.box(0, 0, 256, 512)])
    sdata.shapes["tissue"] = ShapesModel.parse(tissue, transformations={"global": Identity()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _predict(sdata, pixnet, tissue_key="tissue")
    table = sdata.tables["table"]
    x = table.obsm["spatial"][:, 0]
    share = table.obs["pixnet_coverage"].to_numpy()
    assert (share[x < 232] > 0.999).all()
    assert (share[x > 280] == 0).all()
    assert np.isnan(table.layers["pixnet"][x > 280]).all()


def test_scanpy_and_squidpy_go_on_from_the_layer(make, pixnet):
    import scanpy as sc
    import squidpy as sq

    sdata = _predict(make(7, n=60, shuffle=True), pixnet)
    adata = sdata.tables["table"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        before = adata.obsm["spatial"].copy()
        sq.gr.spatial_neighbors_knn(adata, n_neighs=6)
        np.testing.assert_array_equal(adata.obsm["spatial"], before)
        seen = adata[:, adata.var["pixnet"]].copy()
        sq.gr.spatial_autocorr(
            seen, layer="pixnet", mode="moran", n_perms=20, n_jobs=1, show_progress_bar=False, seed=0
        )
        sc.pp.pca(adata, layer="pixnet", mask_var="pixnet", n_comps=2)
        sc.pp.neighbors(adata, n_neighbors=8)
        sc.tl.leiden(adata, flavor="igraph", n_iterations=2, resolution=1.0)
        sq.gr.nhood_enrichment(adata, cluster_key="leiden", n_perms=20, show_progress_bar=False, seed=0)
    moran = seen.uns["moranI"]
    assert np.isfinite(moran["I"]).all()
    assert np.isfinite(moran["pval_norm_fdr_bh"]).all()
    assert adata.obs["leiden"].nunique() > 1
    assert np.isfinite(adata.obsm["X_pca"]).all()
    assert "leiden_nhood_enrichment" in adata.uns


def _stop_after(monkeypatch, n, error):
    """Let the n-th piece that is kept be the last one before `error`."""
    from stpredict._spatialdata import PartialFiles

    keep, seen = PartialFiles.keep, []

    def stopping(self, piece, part):
        keep(self, piece, part)
        seen.append(piece)
        if len(seen) == n:
            raise error

    monkeypatch.setattr(PartialFiles, "keep", stopping)
    return seen


@pytest.fixture
def large(make, tmp_path):
    """A function that writes an object of four tiles to a store of that name."""

    def write(name):
        sdata = make(7, size=1024)
        sdata.write(tmp_path / f"{name}.zarr")
        return read_zarr(tmp_path / f"{name}.zarr")

    return write


@pytest.mark.parametrize("output", [pytest.param("layer", marks=pytest.mark.slow), "both"])
def test_an_interrupted_prediction_goes_on_and_ends_with_the_same_bytes(
    large, pixnet, tmp_path, monkeypatch, output, files_of
):
    _predict(large("whole"), pixnet, output=output)
    broken = large("broken")
    before = files_of(broken.path)
    with monkeypatch.context() as patch:
        _stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as caught:
            _predict(broken, pixnet, output=output)
    assert "2 finished chunks are kept in" in caught.value.__notes__[0]
    assert "resume=True" in caught.value.__notes__[0]
    assert files_of(broken.path) == before
    assert len(list(tmp_path.glob(".broken.zarr.stpredict-run-pixnet"))) == 1
    with monkeypatch.context() as patch:
        seen = _stop_after(patch, 99, KeyboardInterrupt())
        _predict(broken, pixnet, output=output, resume=True)
    assert seen == [2, 3]
    one, other = (files_of(tmp_path / f"{name}.zarr") for name in ("whole", "broken"))
    assert one == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.zarr", "whole.zarr"]


@pytest.mark.slow
def test_another_prediction_does_not_go_on(large, pixnet, ridge, tmp_path, monkeypatch):
    sdata = large("slide")
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, OSError("no space left on device"))
        with pytest.raises(OSError, match="no space left"):
            _predict(sdata, pixnet)
    with pytest.raises(ValueError, match=r"the interrupted run of 'pixnet' .* differs from this call in \['genes'\]"):
        _predict(sdata, pixnet, resume=True, genes=["red"])
    _predict(sdata, pixnet)  # without resume it starts afresh
    assert [path.name for path in tmp_path.iterdir()] == ["slide.zarr"]


def test_two_processes_do_not_predict_the_same_name(large, pixnet, tmp_path):
    import dataclasses
    import json
    import os

    from stpredict._spatialdata._store._lock import Holder, started

    sdata = large("slide")
    parent = dataclasses.replace(Holder.me(), pid=os.getppid(), started=started(os.getppid()))
    lock = tmp_path / ".slide.zarr.stpredict-lock-pixnet"
    lock.write_text(json.dumps(dataclasses.asdict(parent)))
    with pytest.raises(RuntimeError, match=rf"process {os.getppid()} on .* is predicting 'pixnet' into .*slide.zarr"):
        _predict(sdata, pixnet)
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock.name, "slide.zarr"]


@pytest.mark.slow
def test_a_damaged_part_is_named(large, pixnet, tmp_path, monkeypatch):
    sdata = large("slide")
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _predict(sdata, pixnet)
    part = next(tmp_path.glob(".slide.zarr.stpredict-run-pixnet/work-*/parts/0.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"0.npz, part of an interrupted run, is damaged .* the store itself is as it was"
    ):
        _predict(sdata, pixnet, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["layer", "both"])
def test_of_a_list_what_is_done_is_left_as_it_is(large, pixnet, tmp_path, monkeypatch, output, files_of):
    paths = [large(name).path for name in ("one", "two")]
    _predict(paths[0], pixnet, output=output)
    before = files_of(paths[0])
    seen = _stop_after(monkeypatch, 99, KeyboardInterrupt())
    _predict(paths, pixnet, output=output, resume=True)
    assert seen == [0, 1, 2, 3]
    assert files_of(paths[0]) == before
    assert "pixnet" in read_zarr(paths[1]).tables["table"].layers
    with pytest.raises(ValueError, match="called 'pixnet' already"):
        _predict(paths, pixnet, output=output, resume=True, genes=["red"])


def test_resume_needs_a_store(sdata, pixnet):
    with pytest.raises(ValueError, match="resume=True needs an object in a store"):
        _predict(sdata, pixnet, resume=True)


@pytest.mark.slow
def test_rows_of_a_spot_model_go_on_too(large, ridge, tmp_path, monkeypatch, files_of):
    from stpredict._inference import _chunks

    monkeypatch.setattr(_chunks, "CHUNK_ROWS", 8)
    _predict(large("whole"), ridge, batch_size=8)
    broken = large("broken")
    with monkeypatch.context() as patch:
        _stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            _predict(broken, ridge, batch_size=8)
    with monkeypatch.context() as patch:
        seen = _stop_after(patch, 99, KeyboardInterrupt())
        _predict(broken, ridge, batch_size=8, resume=True)
    assert seen == [2, 3]
    assert files_of(tmp_path / "whole.zarr") == files_of(tmp_path / "broken.zarr")


KILLED = """
import os, signal, sys
import stpredict as stp
from stpredict._spatialdata import PartialFiles

keep, seen = PartialFiles.keep, []

def killed(self, piece, part):
    keep(self, piece, part)
    seen.append(piece)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleaning up

PartialFiles.keep = killed
stp.tl.predict(sys.argv[1], sys.argv[2], output="both", device="cpu", precision="32", progress=False)
"""


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_to_the_same_bytes(large, pixnet, tmp_path, monkeypatch, files_of):
    import signal
    import subprocess
    import sys

    pixnet.save(tmp_path / "model")
    _predict(large("whole"), tmp_path / "model", output="both")
    broken = large("broken")
    before = files_of(broken.path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(broken.path), str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert files_of(broken.path) == before
    seen = _stop_after(monkeypatch, 99, KeyboardInterrupt())
    _predict(read_zarr(broken.path), tmp_path / "model", output="both", resume=True)
    assert seen == [2, 3]
    assert files_of(tmp_path / "whole.zarr") == files_of(tmp_path / "broken.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.zarr", "model", "whole.zarr"]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_the_result_stays(large, pixnet, monkeypatch, caplog):
    import torch

    sdata = large("slide")
    _predict(sdata, pixnet, key_added="whole", batch_size=4)
    latent, sizes = pixnet.latent, []

    def scarce(batch):
        if batch.image.shape[-1] == 256:  # the probe for folding
            return latent(batch)
        sizes.append(len(batch.image))
        if len(batch.image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latent(batch)

    monkeypatch.setattr(pixnet, "latent", scarce)
    with caplog.at_level("INFO", logger="stpredict"):
        _predict(sdata, pixnet, key_added="halved", batch_size=4)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert "out of memory on cpu: going on with 1 images a forward pass" in caplog.text
    layers = sdata.tables["table"].layers
    np.testing.assert_allclose(layers["halved"], layers["whole"], rtol=1e-5)

    def none(batch):
        if batch.image.shape[-1] == 256:
            return latent(batch)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pixnet, "latent", none)
    with pytest.raises(MemoryError, match=r"one image of the PixNet does not fit into the memory of cpu"):
        _predict(sdata, pixnet, key_added="none")


@pytest.mark.parametrize("raster_mpp", [None, 4.0])
def test_a_raster_is_cut_by_the_tissue_at_its_own_resolution(make, pixnet, raster_mpp, tmp_path):
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    sdata = make(7, size=1024)
    tissue = shapely.Polygon(
        [(50, 60), (400, 100), (430, 1000), (50, 900)], holes=[[(100, 200), (200, 200), (200, 300)]]
    )
    sdata.shapes["tissue"] = ShapesModel.parse(GeoDataFrame(geometry=[tissue]))
    sdata.write(tmp_path / "s.zarr")
    sdata = read_zarr(tmp_path / "s.zarr")
    run = {"output": "raster", "shapes_key": "spots", "raster_mpp": raster_mpp}
    _predict(sdata, pixnet, key_added="whole", **run)
    _predict(sdata, pixnet, key_added="cut", tissue_key="tissue", **run)
    whole, cut = (sdata.images[key].to_numpy() for key in ("whole", "cut"))
    step = 1024 / whole.shape[1]
    y, x = (np.mgrid[: whole.shape[1], : whole.shape[2]] + 0.5) * step
    on = shapely.contains_xy(tissue, x, y)
    np.testing.assert_array_equal(cut[:, on], whole[:, on])
    assert np.isnan(cut[:, ~on]).all() and np.isfinite(whole).all()


def test_coarser_levels_of_a_map_are_cut_too():
    from stpredict._spatialdata._store._raster import halved

    values = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    values[:, :, 3:] = np.nan
    values[:, 0, 0] = np.nan
    found = halved(values)
    np.testing.assert_allclose(
        found[0], [[np.mean([1, 6, 7]), np.mean([2, 8]), np.nan], [15.5, np.mean([14, 20]), np.nan]]
    )
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(found[1]))


def test_a_raster_of_tissue_that_lies_elsewhere_is_refused(sdata, pixnet):
    from geopandas import GeoDataFrame

    sdata.shapes["tissue"] = ShapesModel.parse(GeoDataFrame(geometry=[shapely.box(5000, 60, 5400, 1000)]))
    with pytest.raises(ValueError, match="the tissue 'tissue' lies outside image 'image'"):
        _predict(sdata, pixnet, output="raster", shapes_key="spots", tissue_key="tissue")


def test_labels_are_shapes(sdata, pixnet):
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Identity

    labels = np.zeros((512, 512), int)
    labels[100:140, 200:230], labels[300:333, 40:90] = 3, 8
    sdata.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": Identity()})
    _predict(sdata, pixnet, output="both", shapes_key="cells")
    table = sdata.tables["cells_pixnet"]
    assert table.obs["instance_id"].tolist() == [3, 8]
    raster = sdata.images["pixnet"].to_numpy().astype(float)
    step = 512 // raster.shape[1]
    wanted = [raster.repeat(step, axis=1).repeat(step, axis=2)[:, labels == label].mean(axis=1) for label in (3, 8)]
    np.testing.assert_allclose(table.X, wanted, atol=4e-3)
    np.testing.assert_allclose(table.obs["pixnet_coverage"], 1.0)


@pytest.mark.long
def test_a_compiled_model_gives_the_same_and_stays_as_it_was(large, pixnet, tmp_path):
    """In a process without the types' hook, which the compiler does not take."""
    sdata = large("slide")
    pixnet.save(tmp_path / "model")
    code = f"""
import stpredict as stp
from stpredict.models import load
model = load({str(tmp_path / "model")!r})
for key, compiled in (("eager", False), ("compiled", True)):
    stp.tl.predict({str(sdata.path)!r}, model, key_added=key, compile=compiled, device="cpu", precision="32")
assert all(part._compiled_call_impl is None for part in model.modules())
import torch
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0  # something was compiled
    layers = read_zarr(sdata.path).tables["table"].layers
    np.testing.assert_allclose(layers["compiled"], layers["eager"], rtol=1e-4, atol=1e-5)
