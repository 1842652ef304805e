"""HisToGene: against the paper's formula written out, its sizes, and for what an answer must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")


def fresh(genes=GENES, **changes):
    from stpredict.models import HisToGene, HisToGeneConfig

    torch.manual_seed(0)
    small = {"mpp": 1.0, "patch_px": 64, "width": 32, "heads": 2, "head_width": 16, "mlp_width": 48} | changes
    return HisToGene(config=HisToGeneConfig(genes=genes, **small))


def fitted(sections, model, *, val=(), **plan):
    from stpredict._training import TrainOptions, fit

    history = fit(
        model, sections, list(val), TrainOptions(device="cpu", precision="32", progress=False, **plan), sections=("a",)
    )
    return model, history


def predict(model, section, genes=GENES, **runtime):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return infer(model, section, list(genes), runtime=run)[0]


def pixels(**changes):
    return fresh(**{"patch": "pixels", "encoder": None, "patch_px": 32, "place_sd": 1.0} | changes)


@pytest.fixture(scope="module")
def trained(colour_section):
    """A model of features and one of pixels, after a few steps."""
    sections = [colour_section(0), colour_section(1)]
    return {
        "features": fitted(sections, fresh(), max_epochs=5)[0],
        "pixels": fitted(sections, pixels(), max_epochs=5, lr=1e-4)[0],
    }


def layer_norm(x, norm):
    x = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + norm.eps)
    return x / scale * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(x, layer):
    out = x @ layer.weight.detach().numpy().astype(np.float64).T
    return out if layer.bias is None else out + layer.bias.detach().numpy()


def block_by_hand(block, x):
    """A pre-norm block on one sequence (n, d), head by head."""
    from scipy.special import erf, softmax

    q, k, v = np.split(linear(layer_norm(x, block.attention_norm), block.qkv), 3, axis=1)
    width = q.shape[1] // block.heads
    heads = [slice(h * width, (h + 1) * width) for h in range(block.heads)]
    attended = [softmax(q[:, h] @ k[:, h].T / width**0.5, axis=1) @ v[:, h] for h in heads]
    x = x + linear(np.concatenate(attended, axis=1), block.out)
    hidden = linear(layer_norm(x, block.mlp[0]), block.mlp[1])
    return x + linear(hidden * (1 + erf(hidden / 2**0.5)) / 2, block.mlp[4])


def by_hand(model, section):
    """(n, g): the paper's formula for one section, in float64."""
    from stpredict.models._patches import array_grid

    samples = model.samples([section], train=False)
    batch = samples.collate([samples[i] for i in range(len(samples))])
    if model.encoder is None:
        patch = batch.image.numpy().reshape(len(samples), -1).astype(np.float64)
        assert patch.max() > 200
    else:
        with torch.no_grad():
            patch = model.encoder(batch.image).numpy()
    rows, columns = (table.weight.detach().numpy() for table in (model.row_place, model.column_place))
    place = array_grid(section)
    x = linear(patch, model.embedding) + rows[place[:, 0]] + columns[place[:, 1]]
    for block in model.blocks:
        x = block_by_hand(block, x)
    return model.mean.numpy() + model.spread.numpy() * linear(layer_norm(x, model.norm), model.linear)


@pytest.mark.parametrize("patch", ["features", "pixels"])
def test_an_answer_is_the_formula_of_the_paper(trained, colour_section, patch):
    model, section = trained[patch], colour_section(2)
    expected = by_hand(model, section)
    np.testing.assert_allclose(predict(model, section), expected, atol=2e-4)
    assert expected.std(axis=0).min() > 1e-3


def test_the_loss_is_the_mean_squared_error_in_target_units(trained, colour_section):
    model, sections = trained["features"], [colour_section(0), colour_section(1)]
    samples = model.samples(sections, train=True)
    error = [by_hand(model, section) - section.expression for section in sections]
    with torch.no_grad():
        for i in range(2):
            batch = samples.collate([samples[i]])
            assert len(batch.rows) == 24
            loss = float(model.loss(batch, model.query(batch.genes)))
            assert loss == pytest.approx((error[i] ** 2).mean(), rel=1e-3)
        both = samples.collate([samples[0], samples[1]])
        assert float(model.loss(both, model.query(GENES))) == pytest.approx((np.stack(error) ** 2).mean(), rel=1e-3)


@pytest.mark.parametrize("patch", ["features", "pixels"])
def test_the_order_of_the_spots_does_not_matter(trained, colour_section, patch):
    from stpredict._section import take

    model, section = trained[patch], colour_section(2)
    order = np.random.default_rng(0).permutation(24)
    shuffled = predict(model, take(section, order), batch_size=5)
    np.testing.assert_allclose(shuffled, predict(model, section)[order], atol=1e-4)


def test_a_section_answers_the_same_beside_others(trained, colour_section):
    from stpredict._section import take
    from stpredict.models._base import predict_batch

    model, sections = trained["features"], [take(colour_section(2), np.arange(9)), colour_section(3)]
    samples = model.samples(sections, train=False)
    with torch.no_grad():
        both = predict_batch(model, samples.collate([samples[i] for i in range(33)]), model.query(GENES)).numpy()
    np.testing.assert_allclose(both, np.concatenate([predict(model, s) for s in sections]), atol=1e-5)


def test_a_spot_sees_the_other_spots_of_its_section(trained, colour_section):
    from stpredict._section import take

    model, section = trained["features"], dataclasses.replace(colour_section(2), grid=np.arange(48).reshape(24, 2))
    half = take(section, np.arange(12))
    assert np.abs(predict(model, half) - predict(model, section)[:12]).max() > 1e-4


def test_a_gene_does_not_depend_on_what_else_is_asked(trained, colour_section):
    model, section = trained["features"], colour_section(2)
    whole = predict(model, section)
    for j, gene in enumerate(GENES):
        np.testing.assert_allclose(predict(model, section, [gene])[:, 0], whole[:, j], atol=1e-6)


def test_places_count_from_the_corner_and_rows_are_no_columns(trained, colour_section):
    model, plain = trained["pixels"], colour_section(2)
    grid = np.random.default_rng(1).integers(0, 9, (24, 2))
    grid[0] = 0
    section = dataclasses.replace(plain, grid=grid)
    base = predict(model, section)
    np.testing.assert_array_equal(predict(model, dataclasses.replace(plain, grid=grid + (40, -7))), base)
    assert np.abs(predict(model, dataclasses.replace(plain, grid=grid[:, ::-1])) - base).max() > 1e-4
    latent = model.samples([section], train=False)
    batch = latent.collate([latent[i] for i in (3, 17)])
    np.testing.assert_array_equal(batch.extra["place"].numpy(), grid[[3, 17]])


def test_a_place_beyond_the_table_says_the_size_and_the_way_out(trained, colour_section):
    grid = np.zeros((24, 2), dtype=int)
    grid[5] = (12, 63)
    section = dataclasses.replace(colour_section(2), grid=grid)
    assert np.isfinite(predict(trained["features"], section)).all()
    grid[5, 1] = 64
    message = r"section 'colour2' lies on a grid of 13 rows and 65 columns; .* for 64 of either.*n_places=65"
    with pytest.raises(ValueError, match=message):
        predict(trained["features"], section)
    with pytest.raises(ValueError, match=message):
        fitted([section], fresh(), max_epochs=1)
    assert predict(fresh(n_places=65), section).shape == (24, 3)


def test_a_training_step_is_a_whole_section_with_all_genes(colour_section):
    from stpredict._section import take

    model = fresh()
    sections = [colour_section(0), take(colour_section(1), np.arange(7))]
    samples = model.samples(sections, train=True, seed=5)
    assert (len(samples), model.recipe.batch_size) == (2, 1)
    for epoch in range(2):
        for i, section in enumerate(sections):
            batch = samples.collate([samples[2 * epoch + i]])
            np.testing.assert_array_equal(batch.expression.numpy(), section.expression)
            assert batch.genes == GENES
            assert batch.extra["place"].shape == (section.n_shapes, 2)


def test_the_scale_of_a_gene_comes_from_training_sections_and_starts_the_answer(colour_section):
    model = fresh()
    sections = [colour_section(0), colour_section(1)]
    model.prepare(sections)
    measured = np.concatenate([s.expression for s in sections])
    torch.nn.init.zeros_(model.linear.weight)
    torch.nn.init.zeros_(model.linear.bias)
    np.testing.assert_allclose(predict(model, colour_section(2)), np.tile(measured.mean(axis=0), (24, 1)), rtol=1e-5)
    torch.nn.init.ones_(model.linear.bias)
    raised = measured.mean(axis=0) + measured.std(axis=0)
    np.testing.assert_allclose(predict(model, colour_section(2)), np.tile(raised, (24, 1)), rtol=1e-5)


def test_validation_sees_whole_sections(colour_section):
    model, history = fitted(
        [colour_section(0)], fresh(), val=[colour_section(1), colour_section(2)], max_epochs=2, lr=1e-3
    )
    pred = {s: predict(model, colour_section(s)) for s in (1, 2)}
    error = np.mean([(pred[s] - colour_section(s).expression) ** 2 for s in (1, 2)])
    assert history["val_loss"].min() == pytest.approx(error, rel=1e-4)
    expected = np.mean([np.corrcoef(pred[s][:, 0], colour_section(s).expression[:, 0])[0, 1] for s in (1, 2)])
    assert model.card.val_pcc["red"] == pytest.approx(expected, abs=1e-4)


def test_dropout_acts_in_training_alone(trained, colour_section):
    model = trained["features"]
    samples = model.samples([colour_section(2)], train=False)
    batch = samples.collate([samples[i] for i in range(6)])
    with torch.no_grad():
        torch.testing.assert_close(model.latent(batch), model.latent(batch), atol=0, rtol=0)
        model.train()
        apart = (model.latent(batch) - model.latent(batch)).abs().max()
        model.eval()
    assert apart > 1e-2


def test_it_learns_the_colours_of_the_sections_it_has_seen(colour_section):
    model, history = fitted([colour_section(0), colour_section(1)], fresh(feature_dropout=0.0), max_epochs=30, lr=3e-3)
    seen = colour_section(0)
    pred = predict(model, seen)
    assert min(np.corrcoef(pred[:, j], seen.expression[:, j])[0, 1] for j in range(3)) > 0.8
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] / 2


def test_every_parameter_of_the_pixel_model_moves(colour_section):
    model = pixels()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    fitted([colour_section(0)], model, max_epochs=1)
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


def test_the_published_network_has_the_sizes_of_the_tutorial():
    from stpredict.models import HisToGene

    with torch.device("meta"):
        model = HisToGene(tuple(f"g{i}" for i in range(785)), config="published")
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sizes["embedding.weight"] == (1024, 37_632)
    assert sizes["row_place.weight"] == sizes["column_place.weight"] == (64, 1024)
    assert sizes["linear.weight"] == (785, 1024)
    attention = 2 * 1024 + 1024 * 3 * 16 * 64 + (16 * 64 * 1024 + 1024)  # norm; q, k, v without bias; out
    mlp = 2 * 1024 + (1024 * 2048 + 2048) + (2048 * 1024 + 1024)
    ends = (112 * 112 * 3 * 1024 + 1024) + 2 * 64 * 1024 + 2 * 1024 + (1024 * 785 + 785)
    assert sum(p.numel() for p in model.parameters()) == ends + 8 * (attention + mlp) == 106_648_337
    assert (len(model.blocks), model.blocks[0].heads) == (8, 16)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert (model.recipe.max_epochs, model.recipe.lr, model.recipe.batch_size) == (100, 1e-5, 1)
    assert "encoder" not in repr(model)


def test_a_section_too_large_for_memory_says_the_limit_and_the_way_out(trained, colour_section, monkeypatch):
    from stpredict.models import histogene

    monkeypatch.setattr(histogene, "FLOAT_BYTES", 10**12)
    with pytest.raises(ValueError, match="a section of 24 shapes needs .* at most 0 shapes fit.* use larger bins"):
        predict(trained["features"], colour_section(2))


def test_what_it_cannot_be_built_from():
    from stpredict.models import HisToGene

    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        HisToGene(GENES, config="large")
    with pytest.raises(ValueError, match="patch='pixels' with encoder='mobilenetv2_100'"):
        fresh(patch="pixels")
    with pytest.raises(
        ValueError, match="patch='features' with encoder=None: use 'features' with the name of an encoder"
    ):
        fresh(encoder=None)
    with pytest.raises(ValueError, match="patch='pixels' has no encoder; leave out encoder_weights="):
        HisToGene(config=pixels().config, encoder_weights="timm")
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh(frozen=False)
