"""DeepSpot: phi, rho and the three sets against NumPy, neighbours on the grid, published sizes against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch

GENES = ("red", "green", "blue")
SMALL = {"genes": GENES, "mpp": 1.0, "patch_px": 96, "part_px": 32, "width": 8, "members": 3}


def fresh(**changes):
    from stpredict.models import DeepSpot, DeepSpotConfig

    return DeepSpot(config=DeepSpotConfig(**SMALL | changes))


def fit(model, train, val=(), **plan):
    from stpredict import _training

    plan = {"max_epochs": 2, "device": "cpu", "precision": "32", "progress": False} | plan
    return _training.fit(model, list(train), list(val), _training.TrainOptions(**plan))


def predict(model, section):
    from stpredict import _inference

    run = _inference.RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    return _inference.predict(model, section, list(GENES), runtime=run)[0]


def numbers(tensor):
    return tensor.detach().double().numpy()


def on_a_grid(section, n=4):
    """The section with its first n x n shapes laid on a square array, and their places."""
    from stpredict._section import take

    some = take(section, np.arange(n * n))
    places = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), axis=-1).reshape(-1, 2)
    centres = 80 + 100 * places
    geometry = np.array([shapely.Point(x, y) for y, x in centres], dtype=object)
    return replace(some, geometry=geometry, grid=places.astype(np.int64))


def phi_by_hand(model, x):
    """The lower median over the members of ReLU(linear)."""
    weight, bias = numbers(model.phi.linear.weight), numbers(model.phi.linear.bias)
    each = np.maximum(x @ weight.T + bias, 0).reshape(*x.shape[:-1], model.config.members, -1)
    return np.sort(each, axis=-2)[..., (model.config.members - 1) // 2, :]


@pytest.mark.parametrize("members", [1, 3, 4])
def test_phi_is_the_lower_median_of_its_members(members):
    from stpredict.models.deepspot import Phi

    phi = Phi(6, 5, members=members, dropout=0.3).eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    weight, bias = numbers(phi.linear.weight), numbers(phi.linear.bias)
    each = [np.maximum(x @ weight[5 * m : 5 * m + 5].T + bias[5 * m : 5 * m + 5], 0) for m in range(members)]
    wanted = np.sort(each, axis=0)[(members - 1) // 2]
    np.testing.assert_allclose(numbers(phi(torch.from_numpy(x).float())), wanted, atol=1e-6)


def test_the_parts_of_a_patch_are_its_squares_row_by_row():
    from stpredict.models.deepspot import cut

    image = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12)).astype(np.uint8)
    parts = cut(torch.from_numpy(image), 3, 4).numpy()
    assert parts.shape == (2, 9, 3, 4, 4)
    for k in range(9):
        y, x = divmod(k, 3)
        np.testing.assert_array_equal(parts[:, k], image[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4])
    uneven = cut(torch.from_numpy(image[..., :11, :11]), 3, 3).numpy()  # two pixels are left over at the end
    np.testing.assert_array_equal(uneven[:, 8], image[:, :, 6:9, 6:9])
    large = cut(torch.from_numpy(image), 3, 8).numpy().astype(int)
    assert large.shape == (2, 9, 3, 8, 8)
    assert np.abs(large.mean(axis=(3, 4)) - parts.mean(axis=(3, 4))).max() < 25  # the same square, interpolated
    flat = cut(torch.full((1, 3, 12, 12), 77, dtype=torch.uint8), 3, 8)
    assert bool((flat == 77).all())


def test_the_answer_is_that_of_the_formula(colour_section):
    """phi of the spot | sum over nine parts | maximum over the neighbours; then the mean of rho's members."""
    from stpredict.models.deepspot import cut

    section = on_a_grid(colour_section(0))
    model = fresh().eval()
    model.encoder.fit([section], patch_px=96)
    model.mean, model.spread = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 2.0, 3.0])
    samples = model.samples([section], train=False)
    images = samples.collate([samples[i] for i in range(16)]).image
    with torch.no_grad():
        own = numbers(model.encoder(images))
        parts = numbers(model.encoder(cut(images, 3, 32).flatten(0, 1))).reshape(16, 9, -1)
    places = section.grid
    apart = np.abs(places[:, None] - places).max(axis=2)
    rows = []
    for i in range(16):
        near = np.flatnonzero(apart[i] == 1)
        assert len(near) in (3, 5, 8)
        rows.append(
            np.concatenate(
                [
                    phi_by_hand(model, own[i]),
                    phi_by_hand(model, parts[i]).sum(axis=0),
                    phi_by_hand(model, own[near]).max(axis=0),
                ]
            )
        )
    each = [np.array(rows) @ numbers(w).T + numbers(b) for w, b in zip(model.rho_weight, model.rho_bias, strict=True)]
    wanted = model.mean.numpy() + model.spread.numpy() * np.mean(each, axis=0)
    np.testing.assert_allclose(predict(model, section), wanted, atol=1e-4)


def test_a_spot_without_neighbours_has_zeros_for_them(colour_section):
    from stpredict._section import take
    from stpredict.models.deepspot import largest

    assert largest(torch.ones(2, 3, 4), torch.tensor([[True, False, False], [False] * 3])).tolist() == [
        [1] * 4,
        [0] * 4,
    ]
    section = on_a_grid(colour_section(0))
    model = fresh().eval()
    alone = model.samples([take(section, np.array([5]))], train=False)
    latent = model.latent(alone.collate([alone[0]]))
    assert bool((latent[:, 16:] == 0).all()) and bool((latent[:, :16] != 0).any())


def test_only_neighbours_within_reach_matter(colour_section):
    from stpredict._section import take

    section = on_a_grid(colour_section(0))
    model = fresh().eval()
    whole = predict(model, section)
    without_far = predict(model, take(section, np.arange(15)))  # the last lies next to 10, 11 and 14 alone
    same = np.array([i not in (10, 11, 14) for i in range(15)])
    np.testing.assert_allclose(without_far[same], whole[:15][same], atol=1e-5)
    assert (np.abs(without_far - whole[:15]).max(axis=1)[~same] > 1e-6).any()
    wide = fresh(reach=3).eval()
    assert (
        np.abs(predict(wide, take(section, np.arange(15))) - predict(wide, section)[:15]).max(axis=1) > 1e-7
    ).sum() > 3


def test_features_known_ahead_are_those_of_the_images(colour_section):
    section = on_a_grid(colour_section(0))
    model = fresh()
    model.prepare([section])
    model.eval()
    latents = []
    for train in (True, False):
        samples = model.samples([section], train=train)
        latents.append(numbers(model.latent(samples.collate([samples[i] for i in range(16)]))))
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-5)


def test_the_loss_is_in_standard_units(colour_section):
    section = on_a_grid(colour_section(0))
    model = fresh()
    model.prepare([section])
    model.eval()
    samples = model.samples([section], train=True)
    batch = samples.collate([samples[i] for i in range(16)])
    pred, true = predict(model, section), section.expression
    wanted = np.square((pred - true) / true.std(axis=0)).mean()
    assert float(model.loss(batch, model.query(GENES)).detach()) == pytest.approx(wanted, rel=1e-4)
    plain = fresh(dropout=0.0, out_dropout=0.0)
    plain.load_state_dict(model.state_dict())
    assert float(plain.train().loss(batch, plain.query(GENES)).detach()) == pytest.approx(wanted, rel=1e-4)


def test_it_learns_colours(colour_section):
    from stpredict.metrics import pcc

    model = fresh(width=64)
    fit(model, [colour_section(seed) for seed in range(4)], [colour_section(8)], max_epochs=40, lr=3e-3)
    held = colour_section(9)
    assert pcc(predict(model, held), held.expression).mean() > 0.5


def test_the_published_sizes_are_those_of_the_code():
    from stpredict.models import DeepSpot

    with torch.device("meta"):
        model = DeepSpot([f"g{i}" for i in range(250)], config="published")
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder"))
    assert count == 10 * (1024 * 512 + 512) + 10 * (3 * 512 * 250 + 250)
    c = model.config
    assert (c.dropout, c.out_dropout, c.side**2, c.reach) == (0.3, 0.1, 9, 1)
    assert (c.recipe.lr, c.recipe.weight_decay, c.recipe.batch_size, c.recipe.max_epochs) == (1e-4, 1e-6, 1024, 15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_px": 32, "side": 33}, "side=33: a patch of 32 px has no 33 x 33 parts"),
        ({"part_px": 40}, "part_px=40 must be a multiple of 32 px"),
        ({"patch_px": 99}, "patch_px=99 must be a multiple of 32 px"),
        ({"reach": 0}, "reach"),
        ({"members": 0}, "members"),
    ],
)
def test_choices_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fresh(**changes)
