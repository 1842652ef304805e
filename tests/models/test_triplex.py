"""TRIPLEX: its views against loops over spots, its loss against NumPy, and for what an answer must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
import torch

GENES = ("red", "green", "blue")
TINY = {"patch_px": 32, "mpp": 1.0, "width": 16, "side": 3}


def fresh(**changes):
    from stpredict.models import TRIPLEX, TRIPLEXConfig

    torch.manual_seed(0)
    return TRIPLEX(config=TRIPLEXConfig(genes=GENES, **TINY | changes))


def train(model, sections, *, epochs=3, **plan):
    from stpredict._training import TrainOptions, fit

    fixed = TrainOptions(max_epochs=epochs, device="cpu", precision="32", progress=False, **plan)
    return fit(model, sections, [], fixed, sections=("a", "b"))


@pytest.fixture(scope="module")
def trained(colour_section):
    model = fresh()
    train(model, [colour_section(0), colour_section(1)], batch_size=8, lr=3e-3)
    with torch.no_grad():  # the bias of the neighbours starts at zero and has hardly moved
        model.neighbour_tower.blocks[0].bias.normal_()
    return model


def predict(model, section, genes=GENES, **runtime):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return infer(model, section, list(genes), runtime=run)[0]


def batch_of(model, sections, rows, *, train=False):
    samples = model.eval().samples(sections, train=train)
    return samples.collate([samples[i] for i in rows])


def test_the_loss_of_a_batch_is_the_formula(trained, colour_section):
    section = colour_section(0)
    batch = batch_of(trained, [section], range(9), train=True)
    with torch.no_grad():
        loss = float(trained.loss(batch, trained.query(batch.genes)))
        views = [view.double().numpy() for view in trained._views(batch)]
    state = {key: value.double().numpy() for key, value in trained.state_dict().items()}
    heads = ["out", "branches.0", "branches.1", "branches.2"]
    fused, *branches = (
        state["mean"] + state["spread"] * (view @ state[f"{name}.weight"].T + state[f"{name}.bias"])
        for view, name in zip(views, heads, strict=True)
    )
    np.testing.assert_allclose(predict(trained, section)[:9], fused, atol=1e-5)
    true = section.expression[:9].astype(float)
    expected = np.mean((fused - true) ** 2)
    for branch in branches:
        expected += 0.7 * np.mean((branch - true) ** 2) + 0.3 * np.mean((branch - fused) ** 2)
    assert loss == pytest.approx(expected, rel=1e-5)
    part = dataclasses.replace(batch, expression=batch.measured[:, [2, 0]], genes=("blue", "red"))
    shuffled = dataclasses.replace(batch, expression=batch.measured[:, [2, 0, 1]], genes=("blue", "red", "green"))
    with torch.no_grad():
        assert float(trained.loss(shuffled, trained.query(shuffled.genes))) == pytest.approx(loss, rel=1e-5)
        assert float(trained.loss(part, trained.query(part.genes))) != pytest.approx(loss, rel=1e-2)


def test_an_answer_depends_on_neither_batch_nor_company_nor_order(trained, colour_section):
    from stpredict._section import take

    section, other = colour_section(2), colour_section(3)
    whole = predict(trained, section)
    np.testing.assert_allclose(predict(trained, section, batch_size=5), whole, atol=1e-5)
    spots = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(predict(trained, take(section, spots)), whole[spots], atol=1e-5)
    for rows in ([26, 3, 40, 5, 5], [5], [24, 5]):  # with spots of another section, alone, last
        with torch.no_grad():
            batch = batch_of(trained, [section, other], rows)
            values = trained.head(trained.latent(batch), trained.query(GENES)).numpy()
        np.testing.assert_allclose(values[rows.index(5)], whole[5], atol=1e-5)


def test_an_answer_depends_on_its_own_section(trained, colour_section):
    from stpredict._section import take

    half = predict(trained, take(colour_section(2), np.arange(12)))
    assert np.abs(half - predict(trained, colour_section(2))[:12]).max() > 1e-4


def test_a_shape_off_the_image_is_context_of_none(trained, colour_section):
    from stpredict._section import take

    section = colour_section(2)
    for nowhere in (shapely.Point(-500, -500), shapely.Point()):
        geometry = section.geometry.copy()
        geometry[3] = nowhere
        keep = np.arange(24) != 3
        values = predict(trained, dataclasses.replace(section, geometry=geometry))
        np.testing.assert_allclose(values[keep], predict(trained, take(section, keep)), atol=1e-5)
        assert np.isnan(values[3]).all()
    geometry = np.array([shapely.Point(-500, -500)] * 24, dtype=object)
    assert np.isnan(predict(trained, dataclasses.replace(section, geometry=geometry))).all()


@pytest.mark.parametrize("lattice", [False, True])
def test_neighbours_are_patches_side_by_side(colour_section, lattice):
    from stpredict._window import Window

    model = fresh(lattice=lattice)
    section = colour_section(0)
    geometry = section.geometry.copy()
    geometry[0] = shapely.Point(10, 501)  # x, y: the lower left corner of a 512 px image
    section = dataclasses.replace(section, geometry=geometry)
    model.context_encoder.fit([section], patch_px=32)
    for train_ in (False, True):
        batch = batch_of(model, [section], [0, 4], train=train_)
        around, there = batch.extra["around"], batch.extra["present"]
        corner = {0: (480 - 32, 0 - 32)} if lattice else {0: (485 - 32, -6 - 32)}
        point = geometry[4]
        low = [np.floor(v / 32) * 32 if lattice else np.floor(v - 16 + 0.5) for v in (point.y, point.x)]
        corner[1] = (int(low[0]) - 32, int(low[1]) - 32)
        # the last row of three is below the image where the middle one reaches 512; the first column is left of it
        assert there[0].tolist() == [False, True, True, False, True, True, False, False, False]
        for row, (y, x) in corner.items():
            for j in range(9):
                image = section.image.read(Window(y + 32 * (j // 3), x + 32 * (j % 3), 32, 32))
                pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
                expected = model.context_encoder(pixels)[0] if there[row, j] else torch.zeros(around.shape[2])
                torch.testing.assert_close(around[row, j], expected, atol=1e-4, rtol=1e-4)


def test_a_lattice_has_fewer_patches(colour_section, monkeypatch):
    from stpredict.nn import features

    counts = {}
    for lattice in (False, True):
        monkeypatch.setattr(features, "_held", type(features._held)())
        model = fresh(lattice=lattice, patch_px=64)
        samples = model.samples([colour_section(0)], train=True)
        samples.collate([samples[0]])
        counts[lattice] = model.context_encoder._cache.n_encoded
        samples.collate([samples[1], samples[2]])
        assert model.context_encoder._cache.n_encoded == counts[lattice]  # once a section
    assert counts[True] <= 24 + 8 * 8  # every shape's own patch, and the lattice of the image
    assert counts[False] > 24 * 5


def test_a_patch_off_the_image_is_not_seen(trained, colour_section):
    batch = batch_of(trained, [colour_section(0)], range(24))
    there = batch.extra["present"].clone()
    there[:, [0, 5]] = False
    with torch.no_grad():
        views = []
        for noise in (0.0, 100.0):
            around = torch.where(there[..., None], batch.extra["around"], noise)
            changed = dataclasses.replace(batch, extra={**batch.extra, "around": around, "present": there})
            views.append(trained._views(changed))
        for one, other in zip(*views, strict=True):
            torch.testing.assert_close(one, other)
        assert (trained._views(batch)[2] - views[0][2]).abs().max() > 1e-3


def test_the_section_of_a_batch_is_all_its_shapes(trained, colour_section):
    from stpredict.models._patches import array_grid

    sections = [colour_section(0), colour_section(1)]
    batch = batch_of(trained, sections, [30, 2, 25])
    extra = batch.extra
    assert extra["lengths"].tolist() == [24, 24]
    assert extra["row"].tolist() == [30, 2, 25]
    np.testing.assert_array_equal(extra["place"].numpy(), np.concatenate([array_grid(s) for s in sections]))
    torch.testing.assert_close(extra["whole"], trained.context_encoder.encode_sections(sections, patch_px=32))
    assert batch_of(trained, sections, [30]).extra["row"].tolist() == [6]
    with torch.no_grad():
        fused, own, _, section = trained._views(batch)
        torch.testing.assert_close(own, trained.projections[0](trained.encoder(batch.image)).mean(1))
        x = trained.projections[2](extra["whole"][24:])
        torch.testing.assert_close(section[[0, 2]], trained.section_tower(x, extra["place"][24:])[[6, 1]])
    assert fused.shape == (3, 16)


def test_published_shapes_and_parameters():
    from stpredict.models import TRIPLEX

    genes = tuple(f"g{i}" for i in range(250))
    model = TRIPLEX(genes, config="published").eval()

    def block(ratio, d=512):  # two norms; queries, keys, values; output; feed-forward
        return 4 * d + 3 * d * d + (d * d + d) + (2 * ratio * d * d + ratio * d + d)

    count = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    assert count == {
        "encoder": 11_689_512 - 513_000,  # ResNet18 without its classifier
        "context_encoder": 11_689_512 - 513_000,
        "projections": 0,
        "neighbour_tower": 3 * (block(1) + 16 * 25) + 2 * 512,
        "section_tower": 3 * block(4) + (9 * 512 + 512) + 2 * 512,
        "fusion_tower": block(4) + 2 * 512,
        "out": 250 * 513,
        "branches": 3 * 250 * 513,
    }
    assert all(p.requires_grad for p in model.encoder.parameters())
    assert not any(p.requires_grad for p in model.context_encoder.parameters())
    with torch.no_grad():
        tokens = model.encoder(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
    assert tokens.shape == (2, 49, 512)
    assert model.context_encoder.width == 512
    heads = {
        name: getattr(model, name).blocks[0].heads for name in ("fusion_tower", "section_tower", "neighbour_tower")
    }
    assert heads == {"fusion_tower": 4, "section_tower": 16, "neighbour_tower": 16}
    assert [getattr(model, name).blocks[0].dropout.p for name in heads] == [0.2, 0.1, 0.3]
    c, r = model.config, model.config.recipe
    assert (c.patch_px, c.side, c.lattice, c.branch_share) == (224, 5, False, 0.3)
    assert (r.max_epochs, r.lr, r.encoder_lr, r.batch_size) == (200, 1e-4, 1e-4, 128)


def test_training_end_to_end_moves_the_encoder_of_the_patch_alone(colour_section):
    from stpredict.models import Recipe

    recipe = Recipe(max_epochs=1, batch_size=8, lr=1e-3, encoder_lr=1e-3)
    model = fresh(frozen=False, recipe=recipe)
    before = [e.encoder.net.conv_stem.weight.detach().clone() for e in (model.encoder, model.context_encoder)]
    train(model, [colour_section(0)], epochs=1)
    assert not torch.equal(before[0], model.encoder.encoder.net.conv_stem.weight)
    assert torch.equal(before[1], model.context_encoder.encoder.net.conv_stem.weight)
    whole = predict(model, colour_section(2))
    np.testing.assert_allclose(predict(model, colour_section(2), batch_size=7), whole, atol=1e-5)


def test_a_trained_encoder_sees_the_patch_turned_and_a_frozen_one_as_it_is(colour_section):
    from stpredict.models import Recipe
    from stpredict.models._samples import dihedral

    section, recipe = colour_section(0), Recipe(encoder_lr=1e-3)
    for frozen in (True, False):
        model = fresh(frozen=frozen, recipe=recipe)
        plain = model.samples([section], train=False)
        turned = model.samples([section], train=True, seed=1)
        assert len(turned) == len(plain) == 24
        seen = []
        for i in range(24):
            own = plain[i].image
            for epoch in range(4):
                image = turned[i + 24 * epoch].image
                fits = [k for k in range(8) if np.array_equal(image, dihedral(own, k))]
                assert fits
                seen.append(fits[0])
        assert set(seen) == ({0} if frozen else set(range(8)))
        batch = turned.collate([turned[24], turned[25]])  # the surroundings are those of the spot as it lies
        still = plain.collate([plain[0], plain[1]])
        torch.testing.assert_close(batch.extra["around"], still.extra["around"])


def test_nothing_is_dropped_out_in_evaluation(trained, colour_section):
    """In the authors' code three dropouts of the section's branch are on when it is tested."""
    batch = batch_of(trained, [colour_section(0)], range(24))
    with torch.no_grad():
        first, second = trained.eval()._views(batch), trained._views(batch)
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        drawn = trained.train()._views(batch)
    trained.eval()
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(first, drawn, strict=True))


def test_it_learns_what_it_is_trained_on(colour_section):
    model = fresh(feature_dropout=0.0)
    train(model, [colour_section(0)], epochs=12, lr=3e-3)
    pred, true = predict(model, colour_section(0)), colour_section(0).expression
    assert np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(pred.T, true.T, strict=True)]) > 0.8


def test_the_scale_of_a_gene_comes_from_training_sections(trained, colour_section):
    measured = np.concatenate([colour_section(seed).expression for seed in (0, 1)])
    np.testing.assert_allclose(trained.mean.numpy(), measured.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(trained.spread.numpy(), measured.std(axis=0), rtol=1e-4)


def test_a_section_too_large_for_memory_says_the_limit_and_the_way_out(trained, colour_section, monkeypatch):
    import psutil

    little = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(ValueError, match="section 'colour2' of 24 shapes on a grid of .* A section is never cut"):
        predict(trained, colour_section(2))


def test_what_it_cannot_be_built_from():
    from stpredict.models import TRIPLEX

    with pytest.raises(ValueError, match="side=4: a spot lies in the middle of an odd number of patches"):
        fresh(side=4)
    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        TRIPLEX(GENES, config="large")
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh(frozen=False)
    assert TRIPLEX(GENES, mpp=0.7).mpp == 0.7
