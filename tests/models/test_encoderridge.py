"""EncoderRidge: its closed form, its two choices without held-out data, and what it reaches on real sections."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

GENES = ("red", "green", "blue")


def fresh(**changes):
    from stpredict.models import EncoderRidge, EncoderRidgeConfig

    return EncoderRidge(config=dataclasses.replace(EncoderRidgeConfig(genes=GENES, mpp=1.0, patch_px=64), **changes))


def fitted(model, sections):
    from stpredict._training import TrainOptions, fit

    fit(model, sections, [], TrainOptions(device="cpu", precision="32", progress=False))
    return model


def features(model, sections):
    return model.encoder.encode_sections(sections, patch_px=model.config.patch_px).double().numpy()


def measured(sections):
    return np.concatenate([s.expression for s in sections]).astype(np.float64)


def predict(model, section):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    return infer(model, section, list(GENES), runtime=run)[0]


def by_sklearn(k, penalty):
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    return make_pipeline(PCA(k, svd_solver="full"), Ridge(penalty))


def test_it_equals_principal_components_and_ridge_of_scikit_learn(colour_section):
    sections = [colour_section(0), colour_section(1)]
    model = fitted(fresh(components=(5,), penalties=(30.0,)), sections)
    wanted = by_sklearn(5, 30.0).fit(features(model, sections), measured(sections))
    held = colour_section(2)
    np.testing.assert_allclose(predict(model, held), wanted.predict(features(model, [held])), atol=2e-4)
    assert (int(model.n_components), float(model.penalty)) == (5, 30.0)


def test_both_choices_are_those_of_a_search_that_leaves_images_out(colour_section):
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    sections = [colour_section(seed) for seed in range(3)]
    sizes, penalties = (2, 6, 20), (1.0, 100.0, 1e4)
    model = fitted(fresh(components=sizes, penalties=penalties), sections)
    x, y, groups = features(model, sections), measured(sections), np.repeat(np.arange(3), 24)
    error = {}
    for k in sizes:
        for penalty in penalties:
            found = cross_val_predict(by_sklearn(k, penalty), x, y, groups=groups, cv=LeaveOneGroupOut())
            error[k, penalty] = ((found - y) ** 2).sum()
    assert (int(model.n_components), float(model.penalty)) == min(error, key=error.get)
    assert len(set(np.round(list(error.values()), 6))) == len(error)


def test_of_one_image_blocks_are_left_out_however_many_sections_show_it(colour_section, monkeypatch):
    from stpredict._places import blocks
    from stpredict._section import take
    from stpredict.models import encoderridge

    section, seen = colour_section(0), []
    choose = encoderridge._choose

    def watch(parts, *rest):
        seen.append([part.n for part in parts])
        return choose(parts, *rest)

    monkeypatch.setattr(encoderridge, "_choose", watch)
    fitted(fresh(), [section])
    fitted(fresh(), [take(section, np.arange(12)), take(section, np.arange(12, 24))])
    assert sorted(seen[0]) == sorted(np.bincount(blocks(section))[np.bincount(blocks(section)) > 0])
    assert 2 < len(seen[1]) <= 16 and sum(seen[1]) == 24


@pytest.mark.parametrize("sizes", [(24, 32, 64, 128, 256), (25, 30, 35, 40), (40, 41, 42, 43)])
def test_more_components_than_spots_tie_and_the_fewest_are_taken(colour_section, sizes):
    """Of 24 spots 23 components vary: the errors of all these sizes differ by rounding alone."""
    model = fitted(fresh(components=sizes, penalties=(1.0, 10.0)), [colour_section(0), colour_section(1)])
    assert int(model.n_components) == sizes[0]


def test_components_beyond_those_that_are_used_are_zero(colour_section):
    model = fitted(fresh(components=(2, 4), penalties=(1e-3,)), [colour_section(0), colour_section(1)])
    k = int(model.n_components)
    assert model.projection.shape[0] == 4
    assert bool((model.projection[k:] == 0).all()) and bool((model.weight[:, k:-1] == 0).all())
    assert bool((model.projection[:k] != 0).any())


@pytest.mark.parametrize(
    "changes", [{"components": ()}, {"penalties": ()}, {"components": (0,)}, {"penalties": (-1.0,)}]
)
def test_choices_that_leave_nothing_to_try_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        fresh(**changes)


@pytest.mark.long
def test_it_is_above_ridge_on_real_sections(data):
    import stpredict as stp

    weights = data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    settings = {"encoder_kwargs": {"pad_type": "same"}, "encoder_mean": (0.5,) * 3, "encoder_std": (0.5,) * 3}
    train, test = (stp.datasets.her2st(names, path=data / "her2st") for names in (["C2", "C3", "C5"], ["C4"]))
    panel = stp.pp.gene_panel(train, n_genes=250)
    config = stp.models.EncoderRidgeConfig(genes=tuple(panel), **settings)
    scores = {}
    for model in (stp.models.EncoderRidge(config=config, encoder_weights=weights), stp.models.Ridge(panel)):
        stp.tl.train(train, model, val=0, progress=False)
        stp.tl.predict(test[0], model, progress=False)
        scores[type(model).__name__] = stp.tl.evaluate(test, type(model).__name__.lower())["pcc"].mean()
    assert scores["EncoderRidge"] > scores["Ridge"] + 0.02
