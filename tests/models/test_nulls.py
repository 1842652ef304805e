"""Mean and Ridge: what they are on a section whose colour is its expression, and on real sections."""

from __future__ import annotations

import numpy as np
import pytest


def _fit(model, sections):
    from stpredict._training import TrainOptions, fit

    fit(model, sections, [], TrainOptions(device="cpu", progress=False))
    return model


def _predict(model, section):
    from stpredict._inference import RuntimeOptions, predict

    return predict(
        model,
        section,
        list(model.genes),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output),
    )[0]


def test_mean_is_the_mean_of_section_means(colour_section, build):
    from stpredict._section import take

    sections = [colour_section(0), take(colour_section(1), np.arange(5))]
    values = _predict(_fit(build("Mean"), sections), colour_section(2))
    wanted = np.mean([s.expression.mean(axis=0) for s in sections], axis=0)
    np.testing.assert_allclose(values, np.tile(wanted, (24, 1)), rtol=1e-5)


def test_ridge_reads_colour(colour_section):
    from stpredict import metrics
    from stpredict.models.ridge import Ridge, RidgeConfig

    # a patch that covers about what the disk of 48 px does; with 112 um it would be mostly what lies around
    model = Ridge(config=RidgeConfig(genes=("red", "green", "blue"), patch_um=42.0))
    section = colour_section(9)
    values = _predict(_fit(model, [colour_section(seed) for seed in range(6)]), section)
    assert metrics.pcc(values, section.expression).min() > 0.95


@pytest.mark.parametrize("name", ["Ridge", "EncoderRidge"])
@pytest.mark.parametrize("n", [1, 4])
def test_too_few_spots_to_choose_a_penalty_are_refused_before_an_encoder_looks_at_them(
    colour_section, build, monkeypatch, name, n
):
    from stpredict._section import take
    from stpredict.models._patches import PatchEncoder

    monkeypatch.setattr(PatchEncoder, "fit", lambda *_, **__: pytest.fail("the encoder was fitted"))
    with pytest.raises(ValueError, match=rf"{name} chooses.*takes 5 shapes.*'colour0' have {n} usable.*min_counts="):
        build(name).prepare([take(colour_section(0), np.arange(n))])


def test_ridge_of_one_gene_is_that_of_the_same_gene_twice(colour_section):
    from dataclasses import replace

    from stpredict.models.ridge import Ridge

    def section(seed, genes):
        whole = colour_section(seed)
        return replace(whole, genes=genes, expression=np.repeat(whole.expression[:, :1], len(genes), axis=1))

    one, two = (
        _predict(_fit(Ridge(genes), [section(seed, genes) for seed in range(2)]), section(2, genes))
        for genes in (("red",), ("red", "again"))
    )
    assert one.shape[1] == 1
    np.testing.assert_allclose(one[:, 0], two[:, 0], rtol=1e-4)


def test_ridge_equals_the_normal_equations(colour_section, build):
    sections = [colour_section(0), colour_section(1)]
    model = _fit(build("Ridge"), sections)
    x = model._statistics(sections)
    z = (x - x.mean(0)) / x.std(0)
    y = np.concatenate([s.expression for s in sections]).astype(float)
    w = np.linalg.solve(z.T @ z + float(model.penalty[0]) * np.eye(42), z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(_predict(model, sections[0]), (z @ w + y.mean(0))[:24], atol=2e-4)


def test_colour_statistics_are_those_of_numpy_and_scikit_image():
    import torch
    from skimage.color import separate_stains

    from stpredict.models.ridge import colour_statistics
    from stpredict.nn.stain import HED_OF_RGB

    image = np.random.default_rng(0).integers(60, 256, (20, 30, 3), dtype=np.uint8)
    got = colour_statistics(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].numpy().reshape(6, 7)
    density = -np.log((image.astype(float) + 1) / 256)
    planes = np.concatenate([image / 255, density @ HED_OF_RGB], axis=2).reshape(-1, 6)
    wanted = np.column_stack([planes.mean(0), planes.std(0), np.percentile(planes, [5, 25, 50, 75, 95], axis=0).T])
    np.testing.assert_allclose(got, wanted, atol=2e-4)
    theirs = separate_stains(image, HED_OF_RGB)[..., 0].ravel()
    ours = np.maximum(planes[:, 3], 0)  # theirs has no negative amounts, and another offset under the logarithm
    assert np.corrcoef(theirs, ours)[0, 1] > 0.999


@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        pytest.param("C2", 0.22, marks=pytest.mark.long),
        pytest.param("C3", 0.26, marks=pytest.mark.long),
        pytest.param("C4", 0.26, marks=pytest.mark.long),
        pytest.param("C5", 0.25, marks=pytest.mark.long),
    ],
)
def test_ridge_reaches_its_protocol_values(data, test, wanted):
    import stpredict as stp

    names = ["C2", "C3", "C4", "C5"]
    sections = dict(zip(names, stp.datasets.her2st(names, path=data / "her2st"), strict=True))
    train = [sdata for name, sdata in sections.items() if name != test]
    model = stp.models.Ridge(stp.pp.gene_panel(train, n_genes=250, by="mean"))
    stp.tl.train(train, model, val=0, progress=False)
    stp.tl.predict(sections[test], model, progress=False)
    assert stp.tl.evaluate(sections[test], "ridge")["pcc"].mean() > wanted - 0.015
