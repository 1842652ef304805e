"""HE2RNA: top-k means against NumPy, bags, what it is told of measurements, published sizes against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")


def fresh(**changes):
    from stpredict.models import HE2RNA, HE2RNAConfig

    return HE2RNA(config=HE2RNAConfig(**{"genes": GENES, "mpp": 1.0, "patch_px": 64} | changes))


def fit(model, train, val=(), **plan):
    from stpredict import _training

    plan = {"max_epochs": 2, "device": "cpu", "precision": "32", "progress": False} | plan
    return _training.fit(model, list(train), list(val), _training.TrainOptions(**plan))


def predict(model, section):
    from stpredict import _inference

    run = _inference.RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    return _inference.predict(model, section, list(GENES), runtime=run)[0]


def top_mean_by_hand(scores, ks):
    """Gene by gene, k by k."""
    profile = []
    for column in scores.T:
        ranked = sorted(column, reverse=True)
        profile.append(np.mean([np.mean(ranked[:k]) for k in ks]))
    return np.array(profile)


@pytest.mark.parametrize("ks", [(1,), (2, 5), (3, 7, 50)])
def test_the_profile_of_a_bag_is_the_mean_of_its_highest_scores(ks):
    from stpredict.models.he2rna import top_mean

    scores = np.random.default_rng(0).normal(size=(7, 4))
    np.testing.assert_allclose(top_mean(torch.from_numpy(scores), ks), top_mean_by_hand(scores, ks), rtol=1e-12)
    made = fresh(ks=ks).bulk(torch.from_numpy(scores[:, :3]))
    np.testing.assert_allclose(made, top_mean_by_hand(scores[:, :3], ks), rtol=1e-12)


def test_a_bag_without_tiles_has_no_profile():
    with pytest.raises(ValueError, match="a bag without tiles has no profile"):
        fresh().bulk(torch.zeros(0, 3))


def test_the_scores_are_those_of_the_formula_with_weights_by_hand(colour_section):
    model = fresh(layers=(5, 4)).eval()
    section = colour_section(0)
    model.encoder.fit([section], patch_px=64)
    model.mean, model.spread = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 2.0, 3.0])
    x = model.encoder.encode_sections([section], patch_px=64).double().numpy()
    for layer in model.hidden:
        x = np.maximum(x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy(), 0)
    out = x @ model.out.weight.detach().double().numpy().T + model.out.bias.detach().double().numpy()
    np.testing.assert_allclose(predict(model, section), model.mean.numpy() + model.spread.numpy() * out, atol=1e-5)


def test_bags_are_blocks_of_a_section_or_the_whole(colour_section):
    from stpredict._places import blocks

    section = colour_section(0)
    bags = fresh(side=3).bags(section)
    assert sorted(np.concatenate(bags).tolist()) == list(range(24))
    assert all(len(set(blocks(section, 3)[rows])) == 1 for rows in bags) and len(bags) > 4
    (whole,) = fresh(bag="section").bags(section)
    assert whole.tolist() == list(range(24))


def test_a_batch_of_bags_has_the_loss_of_the_formula(colour_section):
    sections = [colour_section(0), colour_section(1)]
    model = fresh(side=2, ks=(2, 4), feature_dropout=0.0, dropout=0.0)
    model.prepare(sections)
    samples = model.samples(sections, train=True)
    assert len(samples) == 8
    batch = samples.collate([samples[i] for i in (1, 6, 2)])
    model.eval()
    with torch.no_grad():
        found = float(model.loss(batch, model.query(GENES)))
    each = [(0, model.bags(sections[0])[1]), (1, model.bags(sections[1])[2]), (0, model.bags(sections[0])[2])]
    scores = [predict(model, section) for section in sections]
    error = [
        (top_mean_by_hand(scores[i][rows], (2, 4)) - sections[i].expression[rows].mean(axis=0)) ** 2 for i, rows in each
    ]
    assert found == pytest.approx(np.mean(error), rel=1e-4)


def test_k_is_drawn_in_training(colour_section):
    section = colour_section(0)
    model = fresh(bag="section", ks=(1, 24), feature_dropout=0.0, dropout=0.0)
    model.prepare([section])
    samples = model.samples([section], train=True)
    batch = samples.collate([samples[0]])
    losses = set()
    for seed in range(8):
        torch.manual_seed(seed)
        losses.add(round(float(model.train().loss(batch, model.query(GENES)).detach()), 7))
    scores, true = predict(model.eval(), section), section.expression.mean(axis=0)
    wanted = {float(np.mean((top_mean_by_hand(scores, (k,)) - true) ** 2)) for k in (1, 24)}
    assert sorted(losses) == pytest.approx(sorted(wanted), rel=1e-3)


def test_nothing_but_the_profiles_of_bags_is_learnt_from(colour_section):
    """Measurements that change places within their bags train the same model, to the bit."""
    sections = [colour_section(0), colour_section(1)]
    models = [fresh(side=2) for _ in range(2)]
    shuffled = []
    for section in sections:
        expression = section.expression.copy()
        for rows in models[0].bags(section):
            expression[rows] = expression[rows[::-1]]
        shuffled.append(replace(section, expression=expression))
    assert not np.array_equal(shuffled[0].expression, sections[0].expression)
    for model, some in zip(models, (sections, shuffled), strict=True):
        fit(model, some)
    np.testing.assert_allclose(predict(models[0], colour_section(2)), predict(models[1], colour_section(2)), atol=1e-4)


def test_it_learns_a_map_from_the_profiles_of_bags(colour_section):
    from stpredict.metrics import pcc

    model = fresh(side=4)
    fit(model, [colour_section(seed) for seed in range(4)], max_epochs=60)
    held = colour_section(9)
    assert pcc(predict(model, held), held.expression).mean() > 0.5


def test_validation_sees_bags_too(colour_section):
    history = fit(fresh(side=2), [colour_section(0), colour_section(1)], [colour_section(2)])
    assert np.isfinite(history["val_loss"]).all()


def test_the_published_sizes_are_those_of_the_paper():
    from stpredict.models import HE2RNA

    with torch.device("meta"):
        model = HE2RNA([f"g{i}" for i in range(250)], config="published")
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder"))
    assert count == 2048 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 250 + 250
    c = model.config
    assert (c.ks, c.dropout, c.patch_px * c.mpp) == ((1, 2, 5, 10, 20, 50, 100), 0.25, 112)
    assert (c.recipe.max_epochs, c.recipe.batch_size, c.recipe.lr, c.recipe.patience) == (200, 16, 3e-4, 50)


@pytest.mark.parametrize("changes", [{"ks": ()}, {"ks": (0,)}, {"side": 0}, {"layers": (0,)}])
def test_choices_without_sense_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        fresh(**changes)
