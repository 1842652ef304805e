"""BLEEP: its loss and its look-up against NumPy, its bank against leaks, its published sizes against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")


def fresh(**changes):
    from stpredict.models import BLEEP, BLEEPConfig

    torch.manual_seed(0)
    return BLEEP(config=BLEEPConfig(**{"genes": GENES, "mpp": 1.0, "patch_px": 64, "width": 32, "top": 5} | changes))


def fit(model, train, val=(), **plan):
    from stpredict import _training

    names = tuple(section.name for section in train)
    plan = {"max_epochs": 2, "device": "cpu", "precision": "32", "progress": False} | plan
    return _training.fit(model, list(train), list(val), _training.TrainOptions(**plan), sections=names)


def predict(model, section, genes=GENES, **runtime):
    from stpredict import _inference

    run = _inference.RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return _inference.predict(model, section, list(genes), runtime=run)[0]


def batch_of(model, section, n=None):
    samples = model.samples([section], train=False)
    return samples.collate([samples[i] for i in range(n or len(samples))])


@pytest.fixture(scope="module")
def trained(colour_section):
    model = fresh()
    fit(model, [colour_section(0), colour_section(1)])
    return model


def softmax(x):
    exp = np.exp(x - x.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def loss_by_hand(images, spots, temperature):
    """The published formula, one entry after the other."""
    n = len(images)
    logits = spots @ images.T / temperature
    targets = softmax((images @ images.T + spots @ spots.T) / 2 / temperature)
    by_row, by_column = np.log(softmax(logits)), np.log(softmax(logits.T))
    of_spots = [-sum(targets[i, j] * by_row[i, j] for j in range(n)) for i in range(n)]
    of_images = [-sum(targets.T[i, j] * by_column[i, j] for j in range(n)) for i in range(n)]
    return float(np.mean([(a + b) / 2 for a, b in zip(of_spots, of_images, strict=True)]))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_loss_is_the_published_formula(temperature):
    from stpredict.models.bleep import contrastive

    images, spots = np.random.default_rng(0).normal(size=(2, 7, 5))
    images *= 1.7  # lengths matter: the embeddings are not normalised
    loss = contrastive(torch.from_numpy(images), torch.from_numpy(spots), temperature=temperature)
    assert float(loss) == pytest.approx(loss_by_hand(images, spots, temperature), rel=1e-12)


def test_the_soft_targets_carry_gradient():
    from stpredict.models.bleep import contrastive

    images, spots = np.random.default_rng(1).normal(size=(2, 4, 3))
    leaf = torch.from_numpy(images.copy()).requires_grad_()
    contrastive(leaf, torch.from_numpy(spots)).backward()
    slope = np.zeros_like(images)
    for at in np.ndindex(*images.shape):
        step = np.zeros_like(images)
        step[at] = 1e-6
        slope[at] = (loss_by_hand(images + step, spots, 1.0) - loss_by_hand(images - step, spots, 1.0)) / 2e-6
    np.testing.assert_allclose(leaf.grad.numpy(), slope, atol=1e-7)


def test_the_model_s_loss_is_that_of_its_embeddings_and_takes_a_batch_of_one(trained, colour_section):
    model = trained.eval()
    batch = batch_of(model, colour_section(3))
    with torch.no_grad():
        images = model.latent(batch).double().numpy()
        spots = model.expression_projection(batch.measured).double().numpy()
        loss = float(model.loss(batch, model.query(batch.genes)))
        alone = float(model.loss(batch_of(model, colour_section(3), 1), model.query(GENES)))
    assert loss == pytest.approx(loss_by_hand(images, spots, 1.0), rel=1e-5)
    assert alone == 0.0


@pytest.mark.parametrize("matching", ["average", "simple", "weighted"])
def test_an_answer_is_the_average_of_the_nearest_spots_of_the_bank(trained, colour_section, matching):
    model = fresh(matching=matching)
    model.prepare([colour_section(0)])
    model.bank_embedding, model.bank_expression = trained.bank_embedding, trained.bank_expression
    model.eval()
    with torch.no_grad():
        latent = model.latent(batch_of(model, colour_section(2))).numpy()
    bank, expression = trained.bank_embedding.numpy(), trained.bank_expression.numpy()
    expected = []
    for row in latent:
        cosine = bank @ row / (np.linalg.norm(bank, axis=1) * np.linalg.norm(row))
        nearest = np.argsort(-cosine)[: 1 if matching == "simple" else 5]
        weights = np.ones(len(nearest))
        if matching == "weighted":
            distance = ((bank[nearest] - row) ** 2).sum(axis=1)
            weights = np.exp(distance.min() - distance)
        expected.append(np.average(expression[nearest], axis=0, weights=weights))
    values = predict(model, colour_section(2))
    np.testing.assert_allclose(values, np.array(expected), atol=1e-5)
    assert values.std(axis=0).min() > 1e-3


def test_a_bank_smaller_than_the_top_is_used_whole(colour_section):
    model = fresh(top=50)
    fit(model, [colour_section(0)], max_epochs=1)  # one section: the bank is that section
    expected = np.tile(colour_section(0).expression.mean(axis=0), (24, 1))
    np.testing.assert_allclose(predict(model, colour_section(2)), expected, rtol=1e-5)


def test_the_bank_is_the_training_spots_and_nothing_else(trained, colour_section):
    train = np.concatenate([colour_section(seed).expression for seed in (0, 1)])
    np.testing.assert_array_equal(trained.bank_expression.numpy(), train)
    with torch.no_grad():
        embedded = trained.eval().expression_projection(torch.from_numpy(train))
    torch.testing.assert_close(trained.bank_embedding, embedded, atol=1e-5, rtol=1e-5)
    assert trained.bank_embedding.shape == (48, 32)


def test_validation_and_test_sections_do_not_enter_the_bank(colour_section):
    held = replace(colour_section(2), expression=colour_section(2).expression + 100)
    model = fresh()
    history = fit(model, [colour_section(0), colour_section(1)], [held])
    assert np.isfinite(history["val_loss"]).all()  # before the bank is there
    assert float(model.bank_expression.max()) <= 1
    before = model.bank_expression.clone()
    values = predict(model, held)
    assert values.max() <= 1
    np.testing.assert_array_equal(values, predict(model, colour_section(2)))
    torch.testing.assert_close(model.bank_expression, before, atol=0, rtol=0)


def test_training_anew_drops_the_old_bank(trained, colour_section):
    import copy

    model = copy.deepcopy(trained)
    model.prepare([colour_section(2)])
    assert model.bank_embedding.shape == (0, 32)
    assert model.bank_expression.shape == (0, 3)


def test_an_answer_does_not_depend_on_the_company_or_the_order(trained, colour_section):
    from stpredict._section import take

    section = colour_section(2)
    whole = predict(trained, section)
    for j, gene in enumerate(GENES):
        np.testing.assert_allclose(predict(trained, section, [gene])[:, 0], whole[:, j], atol=1e-6)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(predict(trained, take(section, order)), whole[order], atol=1e-6)
    np.testing.assert_allclose(predict(trained, section, batch_size=1), whole, atol=1e-6)


def test_many_shapes_are_matched_in_parts(trained, colour_section, monkeypatch):
    from stpredict.models import bleep

    whole = predict(trained, colour_section(2))
    monkeypatch.setattr(bleep, "ROWS", 7)
    np.testing.assert_allclose(predict(trained, colour_section(2)), whole, atol=1e-6)


def test_the_bank_travels_with_the_model(trained, colour_section, tmp_path):
    from stpredict import models

    trained.save(tmp_path / "bleep")
    again = models.load(tmp_path / "bleep")
    torch.testing.assert_close(again.bank_expression, trained.bank_expression, atol=0, rtol=0)
    np.testing.assert_array_equal(predict(again, colour_section(2)), predict(trained, colour_section(2)))


def test_it_finds_the_colour_of_a_training_patch(colour_section):
    sections = [colour_section(seed) for seed in (0, 1, 2)]
    model = fresh(feature_dropout=0.0, top=3)
    fit(model, sections, max_epochs=15)
    pred = np.concatenate([predict(model, section) for section in sections])
    true = np.concatenate([section.expression for section in sections])
    assert min(np.corrcoef(pred[:, j], true[:, j])[0, 1] for j in range(3)) > 0.5


def test_a_trained_encoder_sees_turned_patches_in_training_alone(colour_section):
    from stpredict.models import Recipe

    model = fresh(frozen=False, features="averaged", recipe=Recipe(batch_size=12, encoder_lr=1e-3))
    section = colour_section(0)
    plain, turned = (model.samples([section], train=train, seed=4) for train in (False, True))
    drawn = [turned[5 + 24 * epoch].image for epoch in range(30)]
    symmetries = {np.rot90(image, k).tobytes() for image in (plain[5].image, plain[5].image[:, ::-1]) for k in range(4)}
    assert {np.ascontiguousarray(image).tobytes() for image in drawn} == symmetries
    assert len(symmetries) == 8
    weight = model.encoder.encoder.net.conv_stem.weight.detach().clone()
    fit(model, [section], max_epochs=1)
    assert (model.encoder.encoder.net.conv_stem.weight - weight).abs().max() > 0


def test_the_published_sizes_are_those_of_the_paper():
    from stpredict.models import BLEEP

    genes = [f"g{i}" for i in range(3467)]
    with torch.device("meta"):
        model = BLEEP(genes, config="published")
    head = lambda n: (n * 256 + 256) + (256 * 256 + 256) + 2 * 256  # noqa: E731
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {
        "encoder": 23_508_032,  # ResNet50 without its classifier
        "image_projection": head(2048),
        "expression_projection": head(3467),
    }
    assert head(2048) == 590_848
    assert head(3467) == 954_112
    assert all(p.requires_grad for p in model.parameters())
    config, recipe = model.config, model.recipe
    assert (config.patch_px, config.width, config.temperature, config.top) == (224, 256, 1.0, 50)
    assert (recipe.lr, recipe.encoder_lr, recipe.weight_decay, recipe.batch_size) == (1e-3, 1e-3, 1e-3, 128)
    assert BLEEP(GENES, config="small", mpp=0.7).mpp == 0.7


def test_what_cannot_be_is_refused(colour_section, monkeypatch):
    from stpredict.models import BLEEP, Recipe

    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        BLEEP(GENES, config="large")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations are checked in tests alone
    with pytest.raises(ValueError, match="matching='best' must be one of 'average'"):
        fresh(matching="best")
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh(frozen=False, recipe=Recipe(encoder_lr=0.0))
    with pytest.raises(ValueError, match="no reference bank: it is built from the training sections when training"):
        predict(fresh(), colour_section(0))
