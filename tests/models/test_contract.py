"""What every model must do; a new file in models/ is tested here without an edit."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from ..conftest import MODELS


@pytest.fixture(scope="session")
def trained(colour_section, build):
    """A function of a model's name: it after three steps (or its closed form) on two colour sections, trained once."""
    from stpredict._training import TrainOptions, fit

    @functools.cache
    def train(name: str):
        model = build(name)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        plan = TrainOptions(max_epochs=3, batch_size=64, device="cpu", precision="32", progress=False)
        history = fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("colour0", "colour1"))
        return model, before, history

    return train


def _predict(model, section, genes=None, **runtime):
    from stpredict._inference import RuntimeOptions, predict

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return predict(model, section, list(genes or model.genes), runtime=run)


def test_the_directory_is_the_registry():
    from stpredict import models

    assert {"GeneQuery", "Mean", "PixNet", "Ridge"} <= set(MODELS)
    assert set(models._classes()) == set(MODELS)
    assert set(MODELS) <= set(models.__all__) == set(dir(models))
    assert {f"{name}Config" for name in MODELS} - set(models.__all__) == {"MeanConfig", "RidgeConfig"}


def test_predicts_finite_values_of_the_right_shape(trained, colour_section, model_name):
    model, _, _ = trained(model_name)
    values, share = _predict(model, colour_section(2))
    assert values.shape == (24, 3)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    np.testing.assert_allclose(share, 1.0, atol=1e-6)


def test_gene_order_follows_the_request(trained, colour_section, model_name):
    model, _, _ = trained(model_name)
    whole, _ = _predict(model, colour_section(2))
    part, _ = _predict(model, colour_section(2), genes=("blue", "red"))
    np.testing.assert_allclose(part, whole[:, [2, 0]], rtol=1e-5, atol=1e-6)


def test_every_trainable_parameter_moves(trained, model_name):
    model, before, history = trained(model_name)
    moving = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
    still = [key for key, value in moving if bool((value == before[key]).all())]
    assert still == []
    assert len(history) >= 1


def test_save_and_load_give_equal_bits(trained, colour_section, tmp_path, model_name):
    from stpredict import models

    model, _, _ = trained(model_name)
    model.save(tmp_path / model_name)
    again = models.load(tmp_path / model_name)
    np.testing.assert_array_equal(_predict(again, colour_section(2))[0], _predict(model, colour_section(2))[0])
    assert again.card.sections == ("colour0", "colour1")
    assert again.genes == model.genes


def test_batch_size_does_not_change_the_answer(trained, colour_section, model_name):
    model, _, _ = trained(model_name)
    one, _ = _predict(model, colour_section(2), batch_size=1)
    many, _ = _predict(model, colour_section(2), batch_size=5)
    assert np.abs(one - many).max() <= 1e-3 * max(one.std(), 1e-6)


def test_trains_and_predicts_in_bfloat16(colour_section, build, model_name):
    from stpredict._inference import RuntimeOptions, predict
    from stpredict._training import TrainOptions, fit

    model = build(model_name)
    if model_name == "PixNet":  # with the context, a closed form that is fitted after the last step
        model = type(model)(config=replace(model.config, context_rank=2))
    plan = TrainOptions(max_epochs=1, batch_size=64, device="cpu", precision="bf16", progress=False)
    fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("colour0", "colour1"))
    half, whole = (
        predict(model, colour_section(2), list(model.genes), runtime=options.resolve(model.output))[0]
        for options in (RuntimeOptions(device="cpu", precision=p, progress=False) for p in ("bf16", "32"))
    )
    assert np.isfinite(half).all()
    assert np.abs(half - whole).mean() <= 0.03  # of values between 0 and 1; EGN may choose other exemplars


def test_a_shape_off_the_image_is_nan_and_the_others_stay(trained, colour_section, model_name):
    import shapely

    model, _, _ = trained(model_name)
    section = colour_section(2)
    geometry = section.geometry.copy()
    geometry[3] = shapely.Point(-500, -500)
    values, share = _predict(model, replace(section, geometry=geometry))
    whole, _ = _predict(model, section)
    assert np.isnan(values[3]).all()
    assert share[3] == 0
    keep = np.arange(24) != 3
    if not model.uses_section_context:  # else the shape that is gone was context of the others
        np.testing.assert_allclose(values[keep], whole[keep], rtol=1e-4, atol=1e-5)
    assert np.isfinite(values[keep]).all()


def test_an_empty_or_double_panel_is_refused(build, model_name):
    with pytest.raises(ValueError, match=f"{model_name} needs a panel of distinct genes, got 0"):
        build(model_name, ())
    with pytest.raises(ValueError, match="got 2 names of which 1 are distinct"):
        build(model_name, ("red", "red"))


def test_a_single_name_is_no_panel(model_name):
    from stpredict import models

    with pytest.raises(ValueError, match=r"genes='GNAS' must be a list, each of it a text. Pass \['GNAS'\]."):
        getattr(models, model_name)("GNAS")


def test_a_model_says_in_one_line_what_it_is(trained, build, model_name):
    assert repr(trained(model_name)[0]).startswith(f"{model_name}(3 genes, mpp=1")
    assert repr(trained(model_name)[0]).endswith("trained on colour0, colour1)")
    assert repr(build(model_name)).endswith("not trained)")


def test_first_weights_are_of_the_seed_and_nothing_else(build, model_name):
    import torch

    from stpredict.models._base import first_seed, weights_sha256

    hashes = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        hashes.append(weights_sha256(build(model_name)))
        assert torch.equal(torch.get_rng_state(), before)
    with first_seed(3):
        hashes.append(weights_sha256(build(model_name)))
    assert hashes[0] == hashes[1]
    assert (hashes[0] == hashes[2]) == (model_name in ("Mean", "Ridge"))  # which draw nothing


def test_the_seed_of_a_constructor_is_checked_and_goes_before_all_others(model_name):
    from stpredict import models
    from stpredict.models._base import first_seed, weights_sha256

    if model_name in ("GeneQuery", "Mean", "Ridge", "SGN"):
        pytest.skip("needs texts, or draws nothing")
    make = functools.partial(getattr(models, model_name), ["red"])
    with first_seed(4):
        hashes = [weights_sha256(model) for model in (make(seed=5), make(seed=5), make())]
    assert hashes[0] == hashes[1] != hashes[2]
    for wrong in (-1, 1.5, 2**32, "0"):
        with pytest.raises(ValueError, match="seed="):
            make(seed=wrong)
