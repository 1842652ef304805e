"""Models of a user's own file, those of the docs page: trained, saved, and found again by each of the three ways."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..tl.conftest import GENES, colour_sdata

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLASSES = {"spot_model": "PatchCNN", "dense_model": "SmallMap"}
LEARNT = {"spot_model": 0.5, "dense_model": 0.8}  # a patch is wider than the spot; a map is read inside it
QUIET = {"device": "cpu", "precision": "32", "progress": False}


@pytest.fixture
def registry(monkeypatch):
    """The module that knows the classes, without those that other tests have registered."""
    from stpredict.models import _registry

    monkeypatch.setattr(_registry, "_registered", {})
    return _registry


def opened(name: str, monkeypatch):
    """The module of an example, as `import` would make it; its class is registered."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function of an example's name: the folder of its trained model, and what it predicts of another object."""
    import torch

    import stpredict as stp
    from stpredict.models import _registry

    made = {}
    for name, kind in CLASSES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_registry, "_registered", {})
            torch.manual_seed(0)
            model = getattr(opened(name, patch), kind)(GENES[:3])
            stp.tl.train([colour_sdata(seed) for seed in range(2)], model, val=0, **QUIET)
            folder = tmp_path_factory.mktemp(name) / "mine"
            model.save(folder)
            made[name] = folder, predicted(model)
    return made


def predicted(model) -> np.ndarray:
    import stpredict as stp

    sdata = colour_sdata(5)
    stp.tl.predict(sdata, model, key_added="mine", **QUIET)
    table = sdata.tables["table"]
    return np.asarray(table[:, list(GENES[:3])].layers["mine"])


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_learns_what_a_spot_looks_like(saved, name):
    values = saved[name][1]
    counts = colour_sdata(5).tables["table"].X.toarray()
    true = np.log1p(counts * 1e4 / counts.sum(axis=1, keepdims=True))[:, :3]
    correlation = [np.corrcoef(values[:, j], true[:, j])[0, 1] for j in range(3)]
    assert min(correlation) > LEARNT[name]


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("name", CLASSES)
def test_a_registered_class_is_loaded_and_predicts_by_path(saved, registry, monkeypatch, name):
    import stpredict as stp

    folder, values = saved[name]
    module = opened(name, monkeypatch)
    assert type(stp.models.load(folder)) is getattr(module, CLASSES[name])
    np.testing.assert_array_equal(predicted(str(folder)), values)
    assert CLASSES[name] in set(stp.models.list_models(trained=False)["name"])


def test_the_class_of_an_entry_point_is_loaded(saved, registry, monkeypatch, tmp_path):
    import stpredict as stp

    info = tmp_path / "others_models-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others-models\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[stpredict.models]\nPatchCNN = spot_model:PatchCNN\nOther = json:loads\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "spot_model", raising=False)
    folder, values = saved["spot_model"]
    model = stp.models.load(folder)
    assert type(model).__module__ == "spot_model"
    np.testing.assert_array_equal(predicted(model), values)
    rename(folder, tmp_path / "other", "Other")
    with pytest.raises(ValueError, match=r"entry point of that name \(json:loads\) is no class"):
        stp.models.load(tmp_path / "other")
    monkeypatch.delitem(sys.modules, "spot_model")


def test_a_class_that_is_passed_is_loaded_and_must_be_that_of_the_card(saved, registry, monkeypatch):
    import stpredict as stp

    folder, values = saved["spot_model"]
    kind = opened("spot_model", monkeypatch).PatchCNN
    registry._registered.clear()
    np.testing.assert_array_equal(predicted(stp.models.load(folder, model_class=kind)), values)
    with pytest.raises(ValueError, match="model is 'PatchCNN'; model_class is 'Ridge'"):
        stp.models.load(folder, model_class=stp.models.Ridge)
    with pytest.raises(ValueError, match="must be a subclass of stp.models.Model"):
        stp.models.load(folder, model_class=dict)


PLAIN = """
import dataclasses, sys
import stpredict as stp
import spot_model
fields = [("genes", tuple), ("mpp", float), ("patch_px", int), ("width", int), ("recipe", stp.models.Recipe)]
plain = dataclasses.make_dataclass("Plain", fields, frozen=True)
mine = type("PatchCNN", (spot_model.PatchCNN,), {"config_class": plain})
print(stp.models.load(sys.argv[1], model_class=mine).config.width)
"""


def test_a_config_that_is_another_dataclass_is_read(saved):
    """In an interpreter of its own, without the tests' checks of types, which want a `Config`."""
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    command = [sys.executable, "-c", PLAIN, str(saved["spot_model"][0])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "32", done.stderr


def rename(folder: Path, to: Path, model: str) -> None:
    """Copy a saved model with another class in its card."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    card = json.loads((folder / "card.json").read_text())
    (to / "card.json").write_text(json.dumps(card | {"model": model}))


@pytest.mark.parametrize("model", ["PatchCNN", "os.system", "spot_model:PatchCNN", "stpredict.models._base.Model", ""])
def test_a_card_decides_no_code_and_the_error_names_the_three_ways(saved, registry, monkeypatch, tmp_path, model):
    import stpredict as stp

    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    rename(saved["spot_model"][0], tmp_path / "m", model)
    with pytest.raises(ValueError, match=r"(?s)card\.json: model.*register.*entry point.*model_class=") as caught:
        stp.models.load(tmp_path / "m")
    assert repr(model) in str(caught.value)
    assert "spot_model" not in set(sys.modules) - before


def test_what_is_registered_is_a_model_of_a_free_name(registry, monkeypatch):
    import stpredict as stp

    with pytest.raises(ValueError, match="must be a subclass of stp.models.Model"):
        stp.models.register(dict)
    kind = opened("spot_model", monkeypatch).PatchCNN
    assert stp.models.register(kind) is kind
    again = opened("spot_model", monkeypatch).PatchCNN  # a cell of a notebook that is run twice
    assert registry.known_classes()["PatchCNN"] is again
    other = type("PatchCNN", (kind,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="'PatchCNN' is known already, of spot_model"):
        stp.models.register(other)
    with pytest.raises(ValueError, match="'Ridge' is known already, of stpredict.models.ridge"):
        stp.models.register(type("Ridge", (kind,), {}))
