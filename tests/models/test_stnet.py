"""STNet: the start, the loss and the symmetries of the paper, and the sizes of its network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")


def fresh(genes=GENES, **changes):
    from stpredict.models import STNet, STNetConfig

    torch.manual_seed(0)
    return STNet(config=dataclasses.replace(STNetConfig(genes=genes, mpp=1.0, patch_px=64), **changes))


def fitted(sections, model, **plan):
    from stpredict._training import TrainOptions, fit

    history = fit(
        model, sections, [], TrainOptions(device="cpu", precision="32", progress=False, **plan), sections=("a", "b")
    )
    return model, history


def predict(model, section, genes=GENES, **runtime):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return infer(model, section, list(genes), runtime=run)[0]


@pytest.fixture(scope="module")
def trained(colour_section):
    return fitted([colour_section(0), colour_section(1)], fresh(), max_epochs=30, lr=3e-3, batch_size=12)


def a_batch(model, section, *, train, n=9):
    samples = model.samples([section], train=train)
    return samples.collate([samples[i] for i in range(n)])


def test_it_starts_at_the_mean_label_of_the_training_spots(colour_section):
    from stpredict._section import take

    sections = [colour_section(0), take(colour_section(1), np.arange(5))]
    model = fresh()
    model.linear.weight.data.fill_(3.0)
    model.prepare(sections)
    mean = np.concatenate([s.expression for s in sections]).mean(axis=0)
    np.testing.assert_allclose(predict(model, colour_section(2)), np.tile(mean, (24, 1)), rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_the_loss_is_the_squared_error_summed_over_the_batch_per_gene(trained, colour_section, train):
    model, _ = trained
    batch = a_batch(model, colour_section(0), train=train)
    model.train(train)
    with torch.no_grad():
        loss = float(model.loss(batch, model.query(batch.genes)))
        features = model.latent(batch).numpy()
    model.eval()
    weight, bias = model.linear.weight.detach().numpy(), model.linear.bias.detach().numpy()
    error = features.astype(np.float64) @ weight.T + bias - batch.expression.numpy()
    assert loss == pytest.approx(sum((row**2).sum() for row in error) / 3, rel=1e-4)
    assert loss > 1e-4


def test_the_loss_of_some_genes_is_divided_by_their_number(trained, colour_section):
    model, _ = trained
    batch = a_batch(model, colour_section(0), train=False)
    one = dataclasses.replace(batch, expression=batch.expression[:, 1:2], genes=("green",))
    with torch.no_grad():
        pred = predict(model, colour_section(0), ["green"])[batch.rows[:, 1], 0]
        loss = float(model.loss(one, model.query(one.genes)))
    assert loss == pytest.approx(float(((pred - one.expression[:, 0].numpy()) ** 2).sum()), rel=1e-4)


def test_a_prediction_is_the_mean_over_the_symmetries_of_the_patch(trained, colour_section):
    model, _ = trained
    batch = a_batch(model, colour_section(2), train=False)
    query = model.query(GENES)

    def alone(image):
        model.train()
        out = model.head(model.latent(dataclasses.replace(batch, image=image)), query)
        model.eval()
        return out.numpy()

    with torch.no_grad():
        square = batch.image
        turns = [square, square.transpose(2, 3)]  # a transposition and the quarter turns make all eight
        turns = [torch.rot90(x, k, dims=(2, 3)) for x in turns for k in range(4)]
        each = np.stack([alone(x) for x in turns])
        whole = model.head(model.latent(batch), query).numpy()
    np.testing.assert_allclose(whole, each.mean(axis=0), atol=1e-5)
    assert each.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(whole, predict(model, colour_section(2))[:9], atol=1e-5)


def test_turning_the_image_changes_nothing_that_is_averaged(trained, colour_section):
    model, _ = trained
    batch = a_batch(model, colour_section(2), train=False)
    with torch.no_grad():
        upright = model.latent(batch)
        for image in (batch.image.flip(2), batch.image.flip(3), torch.rot90(batch.image, 1, dims=(2, 3))):
            torch.testing.assert_close(
                model.latent(dataclasses.replace(batch, image=image)), upright, atol=1e-5, rtol=1e-5
            )
        model.train()
        single = model.latent(batch) - model.latent(dataclasses.replace(batch, image=batch.image.flip(2)))
        model.eval()
    assert single.abs().max() > 1e-2


@pytest.mark.parametrize("symmetries", [1, 4, 8])
def test_training_draws_every_symmetry_about_as_often(colour_section, symmetries):
    section = colour_section(0)
    samples = fresh(symmetries=symmetries).samples([section], train=True, seed=3)
    plain = fresh().samples([section], train=False)[0].image
    every = [np.rot90(x, k) for x in (plain, plain.transpose(1, 0, 2)) for k in range(4)]
    assert len({x.tobytes() for x in every}) == 8
    drawn = [samples[epoch * len(samples)].image for epoch in range(400)]
    counts = np.array([sum(np.array_equal(x, image) for image in drawn) for x in every])
    assert counts.sum() == 400
    assert (counts > 0).sum() == symmetries
    assert counts.max() < 2 * 400 / symmetries
    again = fresh(symmetries=symmetries).samples([section], train=True, seed=3)
    np.testing.assert_array_equal(again[48].image, samples[48].image)


@pytest.mark.usefixtures("no_features")
def test_a_frozen_encoder_sees_each_symmetry_once(trained, colour_section):
    model, _ = trained
    section, cache = colour_section(7), model.encoder._cache
    before = cache.n_encoded
    first = predict(model, section)
    assert cache.n_encoded - before == 8 * section.n_shapes
    np.testing.assert_array_equal(predict(model, section, batch_size=5), first)
    predict(model, section, ["blue"])
    assert cache.n_encoded - before == 8 * section.n_shapes


def test_a_gene_does_not_depend_on_its_company(colour_section):
    alone, _ = fitted(
        [
            dataclasses.replace(s, genes=("blue",), expression=s.expression[:, 2:])
            for s in (colour_section(0), colour_section(1))
        ],
        fresh(("blue",), recipe=dataclasses.replace(fresh().recipe, gradient_clip=1e9)),
        max_epochs=2,
    )
    together, _ = fitted(
        [colour_section(0), colour_section(1)],
        fresh(recipe=dataclasses.replace(fresh().recipe, gradient_clip=1e9)),
        max_epochs=2,
    )
    # AdamW's step does not see that the loss is divided by another number of genes
    np.testing.assert_allclose(
        predict(alone, colour_section(2), ["blue"]), predict(together, colour_section(2), ["blue"]), rtol=1e-4
    )


def test_it_learns_the_colour_of_a_patch(trained, colour_section):
    model, history = trained
    seen = colour_section(0)
    pred = predict(model, seen)
    assert min(np.corrcoef(pred[:, j], seen.expression[:, j])[0, 1] for j in range(3)) > 0.8
    losses = history["train_loss"].to_numpy()
    assert losses[-1] < 0.7 * losses[0]


def test_the_published_network_has_the_sizes_of_densenet_121():
    from stpredict.models import STNet

    genes = tuple(f"g{i}" for i in range(250))
    with torch.device("meta"):
        model = STNet(genes, config="published")
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    width, trunk = 64, 64 * 3 * 49 + 2 * 64  # 7 x 7 convolution and its norm
    for block, layers in enumerate((6, 12, 24, 16)):
        for layer in range(layers):  # norm, 1 x 1 to 128, norm, 3 x 3 to 32
            conv = sizes[f"encoder.encoder.net.features_denseblock{block + 1}.denselayer{layer + 1}.conv1.weight"]
            assert conv == (128, width, 1, 1)
            trunk += 2 * width + 128 * width + 2 * 128 + 32 * 128 * 9
            width += 32
        if block < 3:  # transition: norm, 1 x 1 to half
            trunk += 2 * width + width * (width // 2)
            width //= 2
    trunk += 2 * width  # the last norm
    assert (trunk, width) == (6_953_856, 1024)
    assert sum(p.numel() for p in model.encoder.parameters()) == trunk
    assert sizes["linear.weight"] == (250, 1024)
    assert sum(p.numel() for p in model.parameters()) == trunk + 250 * 1024 + 250
    assert all(p.requires_grad for p in model.parameters())
    assert (model.config.patch_px, model.recipe.max_epochs, model.recipe.batch_size) == (224, 50, 32)
    features = model.encoder(torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta"))
    assert features.shape == (2, 1024)


def test_training_all_layers_moves_them(colour_section):
    from stpredict.models import Recipe

    recipe = Recipe(max_epochs=1, batch_size=8, lr=1e-3, encoder_lr=1e-3, gradient_clip=8.0)
    model = fresh(encoder="mobilenetv2_050", frozen=False, symmetries=4, recipe=recipe)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    statistics = model.encoder.encoder.net.bn1.running_mean.clone()
    fitted([colour_section(0)], model)
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []
    torch.testing.assert_close(model.encoder.encoder.net.bn1.running_mean, statistics, atol=0, rtol=0)
    one, many = (predict(model, colour_section(2), batch_size=n) for n in (1, 24))
    assert np.abs(one - many).max() <= 1e-3 * one.std()


def test_arguments_override_a_named_configuration():
    from stpredict.models import STNet

    model = STNet(GENES, mpp=1.5)
    assert (model.genes, model.mpp, model.config.mpp, model.config.frozen) == (GENES, 1.5, 1.5, True)


def test_what_it_cannot_be_built_from(tmp_path):
    from stpredict.models import STNet

    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        STNet(GENES, config="large")
    with pytest.raises(ValueError, match="symmetries=3 is no number of symmetries of a square: use 1"):
        fresh(symmetries=3)
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh(frozen=False)
    with pytest.raises(FileNotFoundError, match="is no file"):
        STNet(GENES, encoder_weights=tmp_path / "none.safetensors")


def test_a_trained_encoder_is_folded_for_prediction_and_gives_the_same(colour_section):
    """The folded copy has no norms left in its encoder, and the model itself keeps its own."""
    from stpredict._inference._run import fold_batch_norms
    from stpredict.models._base import Recipe

    model = fresh(frozen=False, recipe=Recipe(encoder_lr=1e-3)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.linear.weight.normal_(generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    fast, samples = fold_batch_norms(model), model.samples([colour_section(0)], train=False)
    batch = samples.collate([samples[i] for i in range(4)])
    count = lambda m: sum(isinstance(each, torch.nn.BatchNorm2d) for each in m.modules())  # noqa: E731
    assert count(model) > count(fast) == 0
    with torch.inference_mode():
        wanted = model.latent(batch)
        torch.testing.assert_close(fast.latent(batch), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def rate_by_hand(section):
    return np.expm1(section.expression.astype(np.float64))


def test_the_loss_of_strank_compares_the_spots_of_a_section(colour_section):
    sections = [colour_section(0), colour_section(1)]
    model = fresh(loss="strank")
    model.prepare(sections)
    torch.nn.init.normal_(model.linear.weight)
    model.eval()
    samples = model.samples(sections, train=False)
    rows = [0, 1, 2, 3, 30, 31, 32]
    batch = samples.collate([samples[i] for i in rows])
    pred = np.concatenate([predict(model, section) for section in sections])[rows].astype(np.float64)
    rate = np.concatenate([rate_by_hand(section) for section in sections])[rows]
    total = 0.0
    for part in (slice(0, 4), slice(4, 7)):
        log_p = pred[part] - np.log(np.exp(pred[part]).sum(axis=0))
        total -= (rate[part] * log_p).sum()
    with torch.no_grad():
        found = float(model.loss(batch, model.query(GENES)))
    assert found == pytest.approx(total / (7 * 3) / rate.mean(), rel=1e-4)


def test_strank_learns_and_its_answer_has_the_unit_of_the_target(colour_section):
    sections = [colour_section(0), colour_section(1)]
    scaled = dataclasses.replace(sections[1], expression=np.log1p(3 * np.expm1(sections[1].expression)))
    model, _ = fitted([sections[0], scaled], fresh(loss="strank"), max_epochs=30, lr=3e-3, batch_size=12)
    pred = np.concatenate([predict(model, section) for section in sections])
    true = np.concatenate([sections[0].expression, scaled.expression])
    for j in range(3):
        slope, shift = np.polyfit(pred[:, j], true[:, j], 1)  # the line of the training spots is the identity
        assert slope == pytest.approx(1, abs=1e-3)
        assert shift == pytest.approx(0, abs=1e-3)
    held = predict(model, colour_section(2))
    r = [np.corrcoef(p, t)[0, 1] for p, t in zip(held.T, colour_section(2).expression.T, strict=True)]
    assert np.mean(r) > 0.5


def test_strank_needs_rates(colour_section):
    from stpredict.models import STNet

    section = dataclasses.replace(colour_section(0), expression=colour_section(0).expression - 1)
    with pytest.raises(ValueError, match='loss="strank" compares rates, and the target has values below 0'):
        fitted([section], fresh(loss="strank"), max_epochs=1)
    assert STNet(GENES, loss="strank").config.loss == "strank"
