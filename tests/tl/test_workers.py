"""Prediction on a dask cluster: the same results as one process, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from spatialdata import read_zarr

RUN = {"precision": "32", "progress": False}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers that are threads of this process."""
    from dask.distributed import Client

    scratch = tmp_path_factory.mktemp("dask")  # clusters of other processes tidy up in the usual one
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "local_directory": str(scratch)}
    with Client(processes=False, **settings) as client:
        yield client


@pytest.fixture
def saved(pixnet, tmp_path):
    """The trained model as its users have it: in a folder."""
    from stpredict.models import load

    pixnet.save(tmp_path / "model")
    return load(tmp_path / "model")


@pytest.fixture
def stores(make, tmp_path):
    """Paths of two slides of four tiles each, and of the same slides once more."""
    paths = {}
    for group in ("one", "many"):
        paths[group] = [tmp_path / f"{group}{seed}.zarr" for seed in (7, 8)]
        for seed, path in zip((7, 8), paths[group], strict=True):
            make(seed, size=1024).write(path)
    return paths


def _same(one, other, *, raster):
    tables = [read_zarr(path).tables["table"] for path in (one, other)]
    np.testing.assert_allclose(tables[0].layers["pixnet"], tables[1].layers["pixnet"], rtol=1e-6)
    np.testing.assert_array_equal(tables[0].obs["pixnet_coverage"], tables[1].obs["pixnet_coverage"])
    if raster:
        maps = [read_zarr(path).images["pixnet"].to_numpy() for path in (one, other)]
        np.testing.assert_allclose(maps[0], maps[1], rtol=1e-3)


@pytest.mark.slow
def test_workers_write_what_one_process_writes(client, saved, stores, tmp_path):
    import stpredict as stp

    stp.tl.predict(stores["one"], saved, output="both", device="cpu", **RUN)
    stp.tl.predict(stores["many"], saved, output="both", client=client, **RUN)
    for one, many in zip(stores["one"], stores["many"], strict=True):
        _same(one, many, raster=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "many7.zarr", "many8.zarr", "model", "one7.zarr", "one8.zarr",
    ]  # fmt: skip


@pytest.mark.slow
def test_of_several_samples_the_one_of_the_table_is_meant_by_workers_too(client, saved, make, tmp_path):
    """The image follows from the shapes, and these from the table; a worker got neither."""
    import spatialdata

    import stpredict as stp

    paths = [tmp_path / name for name in ("one.zarr", "many.zarr")]
    for path, run in zip(paths, ({"device": "cpu"}, {"client": client}), strict=True):
        spatialdata.concatenate({"a": make(7), "b": make(8)}).write(path)
        stp.tl.predict(path, saved, table_name="table-b", output="both", **run, **RUN)
    values = [read_zarr(path).tables["table-b"].layers["pixnet"] for path in paths]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


@pytest.mark.slow
def test_rows_of_spot_models_go_to_workers_too(client, ridge, stores, tmp_path, monkeypatch):
    import stpredict as stp
    from stpredict._inference import _chunks

    monkeypatch.setattr(_chunks, "CHUNK_ROWS", 8)
    ridge.save(tmp_path / "ridge")
    stp.tl.predict(stores["one"], ridge, device="cpu", key_added="pixnet", batch_size=8, **RUN)
    stp.tl.predict(stores["many"], ridge, client=client, key_added="pixnet", batch_size=8, **RUN)
    for one, many in zip(stores["one"], stores["many"], strict=True):
        _same(one, many, raster=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "spots"])
def test_members_of_an_ensemble_go_to_workers_too(client, kind, pixnet, ridge, stores, tmp_path):
    import copy

    import stpredict as stp

    other = copy.deepcopy(pixnet if kind == "dense" else ridge)
    weight = other.genes_head.weight if kind == "dense" else other.weight
    weight.data *= 4  # so that the members differ by more than a raster rounds
    model = stp.models.Ensemble([pixnet if kind == "dense" else ridge, other])
    model.save(tmp_path / "ensemble")
    run = RUN | {"output": "both" if kind == "dense" else "layer", "key_added": "pixnet"}
    stp.tl.predict(stores["one"], model, device="cpu", **run)
    stp.tl.predict(stores["many"], model, client=client, **run)
    for one, many in zip(stores["one"], stores["many"], strict=True):
        _same(one, many, raster=kind == "dense")
        spread = [read_zarr(path).tables["table"].layers["pixnet_sd"] for path in (one, many)]
        np.testing.assert_allclose(*spread, rtol=1e-4, atol=1e-5)
        assert np.nanmax(spread[0]) > 0.01


def test_what_workers_cannot_open_is_refused(client, pixnet, saved, sdata, stores, tmp_path):
    import stpredict as stp

    with pytest.raises(ValueError, match=r"client= needs objects in stores.*objects \[0\] are in memory"):
        stp.tl.predict(sdata, saved, client=client, **RUN)
    loaded, pixnet.loaded_from = pixnet.loaded_from, None
    with pytest.raises(ValueError, match=r"this PixNet was never saved. Call model.save"):
        stp.tl.predict(stores["one"], pixnet, client=client, **RUN)
    pixnet.loaded_from = loaded
    saved.loaded_from = str(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"the worker on .* does not see the model '.*elsewhere'"):
        stp.tl.predict(stores["one"], saved, client=client, **RUN)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert "pixnet" not in read_zarr(stores["one"][0]).tables["table"].layers


@pytest.mark.slow
def test_a_slide_that_fails_does_not_stop_the_others(client, saved, stores):
    import stpredict as stp

    other = read_zarr(stores["many"][0])
    shapes = other.shapes["spots"].copy()
    shapes.geometry = shapes.geometry.translate(10_000, 0)
    del other.shapes["spots"]
    other.delete_element_from_disk("spots")
    other.shapes["spots"] = shapes
    other.write_element("spots")
    with pytest.raises(ValueError, match="all 30 shapes of 'spots' lie outside image 'image'") as caught:
        stp.tl.predict(stores["many"], saved, client=client, **RUN)
    assert "many7.zarr. The other 1 slides are done." in caught.value.__notes__[-1]
    assert "pixnet" in read_zarr(stores["many"][1]).tables["table"].layers
    with pytest.raises(ValueError, match=r"these stores are named twice: \['.*one7.zarr'\]"):
        stp.tl.predict([stores["one"][0]] * 2, saved, client=client, **RUN)


def test_the_client_needs_no_device_of_the_workers(pixnet, sdata):
    import torch

    from stpredict import _inference, _spatialdata
    from stpredict.tl._predict._provenance import model_record

    runtime = _inference.Runtime(torch.device("cuda"), "bf16-mixed", 4)
    record = model_record(pixnet, ["red"], device=runtime.device, precision=runtime.precision)
    assert (record["device"], record["precision"]) == ("cuda", "bf16-mixed")
    section = _spatialdata.section(sdata, at_mpp=1.0)
    assert _inference.n_chunks(pixnet, section, runtime=runtime, raster=True) == 1


def test_orders_of_other_texts_are_other_orders():
    from stpredict.tl._predict._distributed import WorkItem

    one, other = (WorkItem("s", "m", "f", None, None, "i", "w", texts, embeddings=texts) for texts in "ab")
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced_and_nothing_counts_twice(saved, stores):
    from dask.distributed import Client, LocalCluster

    import stpredict as stp

    stp.tl.predict(stores["one"], saved, output="both", device="cpu", **RUN)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        folder = stores["many"][0].parent

        def kill() -> None:
            while not any(folder.glob(".many7.zarr.stpredict-run-pixnet/work-*/parts/*.npz")):
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        killed = threading.Event()
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        stp.tl.predict(stores["many"], saved, output="both", client=client, **RUN)
        thread.join(timeout=60)
        assert killed.is_set()
    for one, many in zip(stores["one"], stores["many"], strict=True):
        _same(one, many, raster=True)


@pytest.mark.slow
def test_workers_out_of_memory_are_told_and_the_store_is_as_it_was(saved, stores, files_of):
    import dask
    from dask.distributed import Client, LocalCluster

    import stpredict as stp

    def starve() -> None:
        import time

        import numpy as np

        from stpredict import _inference

        def run_chunks(*_, **__):
            held = np.ones(2**29)  # 4 GB
            time.sleep(60)
            return held

        _inference.run_chunks = run_chunks

    path = stores["many"][0]
    before = files_of(path)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="2GB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(starve)
        with pytest.raises(RuntimeError, match=r"workers died .* out of memory: give each more, start fewer") as caught:
            stp.tl.predict(path, saved, client=client, **RUN)
    assert "Nothing was written into the store" in str(caught.value)
    assert files_of(path) == before
    stp.tl.predict(path, saved, device="cpu", resume=True, **RUN)
    assert "pixnet" in read_zarr(path).tables["table"].layers
