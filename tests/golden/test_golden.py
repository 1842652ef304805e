"""Values that earlier versions gave: of every model after three steps, of the shipped ones, of old folders and stores.

`values.npz` is of the last commit that meant to change a value; write it anew with STPREDICT_GOLDEN=write, and say why
in the changelog. On the processor that wrote it the values are equal to the bit (STPREDICT_GOLDEN=exact); elsewhere
they may differ by rounding. Three steps of the random PixNet magnify it: weights that differ by a millionth end in
updates that differ by as much as they are long. On another processor its maps need only be alike (`MAGNIFY`) after
these steps, and are held to the digits before them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

VALUES = Path(__file__).with_name("values.npz")
OLD = Path(__file__).with_name("891ed2f.zip")
MAGNIFY = ("PixNet",)
MODE = os.environ.get("STPREDICT_GOLDEN", "")
ENCODER = "mobilenetv2_100"  # that of the model whose values are kept; other tests take a smaller one
QUIET = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads round differently, and training makes more of it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(name: str, values: np.ndarray) -> None:
    if MODE == "write":
        known = dict(np.load(VALUES)) if VALUES.exists() else {}
        np.savez_compressed(VALUES, **known | {name: values})
        return
    with np.load(VALUES) as known:
        same(values, known[name], exact=MODE == "exact", magnified=name in MAGNIFY)


def same(values: np.ndarray, known: np.ndarray, *, exact: bool = False, magnified: bool = False) -> None:
    if exact:
        np.testing.assert_array_equal(values, known)
    elif magnified:
        for mine, its in zip(values.T, known.T, strict=True):
            assert np.corrcoef(mine, its)[0, 1] > 0.9
            assert abs(mine.mean() - its.mean()) < its.std()
    else:
        spread = float(np.nanstd(known)) or 1.0
        np.testing.assert_allclose(values, known, rtol=0, atol=1e-3 * spread)


def test_a_model_after_three_steps(build, colour_section, no_features, model_name):
    from stpredict._inference import RuntimeOptions, predict
    from stpredict._training import TrainOptions, fit

    model = build(model_name, encoder=ENCODER)
    plan = TrainOptions(max_epochs=3, batch_size=64, device="cpu", precision="32", progress=False)
    fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("colour0", "colour1"))
    values, _ = predict(
        model, colour_section(2), list(model.genes), runtime=RuntimeOptions(**QUIET).resolve(model.output)
    )
    check(model_name, values)


def test_the_map_of_a_pixnet_that_has_taken_no_step(build, colour_section, no_features):
    from stpredict._inference import RuntimeOptions, predict

    model = build("PixNet", encoder=ENCODER)
    model.prepare([colour_section(0), colour_section(1)])
    values, _ = predict(
        model.eval(), colour_section(2), list(model.genes), runtime=RuntimeOptions(**QUIET).resolve(model.output)
    )
    check("PixNet, no step", values)


def test_the_shipped_models(colour_section):
    import stpredict as stp
    from stpredict._inference import RuntimeOptions, predict

    for name in stp.models.list_models()["name"]:
        model = stp.models.load(name)
        values, _ = predict(
            model,
            colour_section(2, mpp=model.mpp),
            list(model.genes[:40]),
            runtime=RuntimeOptions(**QUIET).resolve(model.output),
        )
        check(f"shipped/{name}", values)


@pytest.fixture
def old(tmp_path):
    """Folder of what commit 891ed2f wrote: models, `slide.zarr`, and the values that they gave."""
    shutil.unpack_archive(OLD, tmp_path)
    return tmp_path


def test_models_and_stores_of_an_older_version_give_the_same_values(old):
    import spatialdata

    import stpredict as stp

    with np.load(old / "values.npz") as known:
        known = dict(known)
    sdata = spatialdata.read_zarr(old / "slide.zarr")
    names = [name.removeprefix("layer/") for name in known if name.startswith("layer/")]
    assert len(names) == 6
    for name in names:
        same(np.asarray(sdata.tables["table"].layers[name]), known[f"layer/{name}"])
        model = stp.models.load(old / name)
        stp.tl.predict(sdata, model, table_name="table", key_added=f"{name}_again", **QUIET)
        same(np.asarray(sdata.tables["table"].layers[f"{name}_again"]), known[f"layer/{name}"])
        finished = Path(old / "slide.zarr" / "tables" / "table" / "layers" / name)
        before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
        stp.tl.predict(sdata, model, table_name="table", key_added=name, resume=True, **QUIET)
        assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
    stp.tl.aggregate(sdata, "map", shapes_key="spots", table_added="again")
    same(np.asarray(sdata.tables["again"].X), known["aggregate"])
    stp.tl.query(sdata, "latent", ["red", "green"], model=old / "pixnet", shapes_key="spots", table_added="asked")
    same(np.asarray(sdata.tables["asked"].X), known["query"])
