"""What every model must do; a new file in models/ is tested here without an edit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest


def _names() -> list[str]:
    from importlib.util import find_spec
    from pathlib import Path

    folder = Path(find_spec("stpredict").submodule_search_locations[0]) / "models"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("[a-z]*.py")))
    import re

    return re.findall(r"^class (\w+)\(Model\):", text, flags=re.MULTILINE)


NAMES = _names()


@pytest.fixture(scope="session")
def trained(colour_section, build):
    """Every model after three steps (or its closed form) on two colour sections."""
    from stpredict._train import Plan, fit

    def train(name: str):
        model = build(name)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        plan = Plan(max_epochs=3, batch_size=64, device="cpu", precision="32", progress=False)
        history = fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("colour0", "colour1"))
        return model, before, history

    return {name: train(name) for name in NAMES}


def _predict(model, section, genes=None, **runtime):
    from stpredict._infer import Runtime, predict

    run = Runtime(device="cpu", precision="32", progress=False, **runtime)
    return predict(model, section, list(genes or model.genes), runtime=run)


def test_the_directory_is_the_registry():
    from stpredict import models

    assert {"GeneQuery", "Mean", "PixNet", "Ridge"} <= set(NAMES)
    assert set(models._classes()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_predicts_finite_values_of_the_right_shape(trained, colour_section, name):
    model, _, _ = trained[name]
    values, share = _predict(model, colour_section(2))
    assert values.shape == (24, 3)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    np.testing.assert_allclose(share, 1.0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gene_order_follows_the_request(trained, colour_section, name):
    model, _, _ = trained[name]
    whole, _ = _predict(model, colour_section(2))
    part, _ = _predict(model, colour_section(2), genes=("blue", "red"))
    np.testing.assert_allclose(part, whole[:, [2, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_moves(trained, name):
    model, before, history = trained[name]
    moving = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
    still = [key for key, value in moving if bool((value == before[key]).all())]
    assert still == []
    assert len(history) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_give_equal_bits(trained, colour_section, tmp_path, name):
    from stpredict import models

    model, _, _ = trained[name]
    model.save(tmp_path / name)
    again = models.load(tmp_path / name)
    np.testing.assert_array_equal(_predict(again, colour_section(2))[0], _predict(model, colour_section(2))[0])
    assert again.card.sections == ("colour0", "colour1")
    assert again.genes == model.genes


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_does_not_change_the_answer(trained, colour_section, name):
    model, _, _ = trained[name]
    one, _ = _predict(model, colour_section(2), batch_size=1)
    many, _ = _predict(model, colour_section(2), batch_size=5)
    assert np.abs(one - many).max() <= 1e-3 * max(one.std(), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_off_the_image_is_nan_and_the_others_stay(trained, colour_section, name):
    import shapely

    model, _, _ = trained[name]
    section = colour_section(2)
    geometry = section.geometry.copy()
    geometry[3] = shapely.Point(-500, -500)
    values, share = _predict(model, replace(section, geometry=geometry))
    whole, _ = _predict(model, section)
    assert np.isnan(values[3]).all()
    assert share[3] == 0
    keep = np.arange(24) != 3
    if model.context == "shape":  # else the shape that is gone was context of the others
        np.testing.assert_allclose(values[keep], whole[keep], rtol=1e-4, atol=1e-5)
    assert np.isfinite(values[keep]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_or_double_panel_is_refused(build, name):
    with pytest.raises(ValueError, match=f"{name} needs a panel of distinct genes, got 0"):
        build(name, ())
    with pytest.raises(ValueError, match="got 2 names of which 1 are distinct"):
        build(name, ("red", "red"))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_name_is_no_panel(name):
    from stpredict import models

    with pytest.raises(ValueError, match=r"a panel is a list of gene names, got 'GNAS'. Pass \['GNAS'\]."):
        getattr(models, name)("GNAS")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_says_in_one_line_what_it_is(trained, build, name):
    assert repr(trained[name][0]).startswith(f"{name}(3 genes, mpp=1")
    assert repr(trained[name][0]).endswith("trained on colour0, colour1)")
    assert repr(build(name)).endswith("not trained)")
