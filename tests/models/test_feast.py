"""FEAST: attention with negative weights and the whole answer against NumPy, places between spots, published sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch

GENES = ("red", "green", "blue")


def fresh(**changes):
    from stpredict.models import FEAST, FEASTConfig

    small = {"genes": GENES, "mpp": 1.0, "patch_px": 64, "width": 16, "heads": 2, "near": 5}
    return FEAST(config=FEASTConfig(**small | changes))


def fit(model, train, val=(), **plan):
    from stpredict import _training

    plan = {"max_epochs": 2, "device": "cpu", "precision": "32", "progress": False} | plan
    return _training.fit(model, list(train), list(val), _training.TrainOptions(**plan))


def predict(model, section):
    from stpredict import _inference

    run = _inference.RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    return _inference.predict(model, section, list(GENES), runtime=run)[0]


def on_a_grid(section, n=4):
    """The section with its first n x n shapes on a square array of 100 px, and their places."""
    from stpredict._section import take

    some = take(section, np.arange(n * n))
    places = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), axis=-1).reshape(-1, 2)
    geometry = np.array([shapely.Point(80 + 100 * x, 80 + 100 * y) for y, x in places], dtype=object)
    return replace(some, geometry=geometry, grid=places.astype(np.int64))


def softmax(x):
    exp = np.exp(x - x.max())
    return exp / exp.sum()


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def norm(x, state, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def block_by_hand(x, apart, among, state, name, *, heads, beta, tau):
    """A block row by row and head by head; `among` says which rows each attends to, `apart` how far they are."""
    d = x.shape[1]
    q, k, v = np.split(linear(x, state, f"{name}.qkv"), 3, axis=1)
    attended = np.zeros_like(x)
    for i in range(len(apart)):
        for h in range(heads):
            part = slice(h * d // heads, (h + 1) * d // heads)
            score = np.array([q[i, part] @ k[j, part] for j in among[i]]) / np.sqrt(d / heads)
            penalty = np.array(apart[i]) / 2 ** (h + 1)
            weight = softmax(score - penalty) - beta * softmax((-score - penalty) / tau)
            attended[i, part] = sum(w * v[j, part] for w, j in zip(weight, among[i], strict=True))
    x = norm(x + linear(attended, state, f"{name}.out"), state, f"{name}.norm")
    hidden = linear(gelu(linear(x, state, f"{name}.mlp.0")), state, f"{name}.mlp.3")
    return norm(x + hidden, state, f"{name}.mlp_norm")


@pytest.mark.parametrize("among", [False, True])
def test_a_block_is_the_formula(among):
    from stpredict.models.feast import NegativeBlock

    torch.manual_seed(0)
    block = NegativeBlock(6, heads=2, beta=1.5, tau=0.6, dropout=0.3).eval()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 6))
    rows = np.array([rng.permutation(7)[:3] if among else np.arange(7) for _ in range(7)])
    apart = rng.uniform(0, 3, rows.shape)
    state = {f"b.{key}": value.double().numpy() for key, value in block.state_dict().items()}
    wanted = block_by_hand(x, apart, rows, state, "b", heads=2, beta=1.5, tau=0.6)
    given = torch.from_numpy(x).float(), torch.from_numpy(apart).float()
    found = block(*given, torch.from_numpy(rows) if among else None)
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5)


def test_the_nearest_go_by_place_where_they_are_equally_far():
    from stpredict.models.feast import _nearest

    rng = np.random.default_rng(0)
    places = np.array([(y, x) for y in range(4) for x in range(4)], dtype=float)
    order = rng.permutation(16)
    index, distance = _nearest(torch.from_numpy(places[order]), 6)
    for i, at in enumerate(places[order]):
        others = sorted((np.hypot(*(p - at)), *p) for p in places if (p != at).any())[:6]
        assert [tuple(places[order][j]) for j in index[i]] == [each[1:] for each in others]
        np.testing.assert_allclose(distance[i], [each[0] for each in others], rtol=1e-6)
    assert _nearest(torch.zeros(1, 2), 6)[0].tolist() == [[0]]


def test_an_answer_is_the_formula(colour_section):
    """Spots and pseudo-spots through both halves of two blocks, in NumPy."""
    section = on_a_grid(colour_section(0))
    model = fresh(depth=2).eval()
    model.encoder.fit([section], patch_px=64)
    model.mean, model.spread = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.1, 2.0, 3.0])
    centre = np.array([(p.y, p.x) for p in section.geometry])

    def features(centres):
        at = replace(section, geometry=np.array([shapely.Point(x, y) for y, x in centres], dtype=object))
        return model.encoder.encode_sections([at], patch_px=64).double().numpy()

    places, x = [section.grid.astype(float)], [features(centre)]
    for half in ((0.5, 0), (0, 0.5), (0.5, 0.5)):
        places.append(section.grid + np.array(half))
        x.append(features(centre + 100 * np.array(half)))
    place = np.concatenate(places)
    assert (100 * place.max() + 80 + 24) < 512  # all of them lie on the image
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    x = linear(np.maximum(linear(np.concatenate(x), state, "project.0"), 0), state, "project.2")
    apart = np.hypot(*(place[:, None] - place).transpose(2, 0, 1))
    ranked = [sorted((round(apart[i, j], 9), *place[j], j) for j in range(64) if j != i)[:5] for i in range(64)]
    near, far = [[each[3] for each in row] for row in ranked], [[each[0] for each in row] for row in ranked]
    sizes = {"heads": 2, "beta": 1.5, "tau": 0.6}
    for k in range(2):
        x = block_by_hand(x, far, near, state, f"local_blocks.{k}", **sizes)
        own = block_by_hand(x[:16], apart[:16, :16], [range(16)] * 16, state, f"global_blocks.{k}", **sizes)
        x = np.concatenate([own, x[16:]])
    z = np.maximum(linear(norm(x[:16], state, "norm"), state, "mlp.0"), 0)
    z = np.maximum(linear(z, state, "mlp.3"), 0)
    wanted = model.mean.numpy() + model.spread.numpy() * linear(z, state, "out")
    np.testing.assert_allclose(predict(model, section), wanted, atol=1e-4)
    assert wanted.std(axis=0).min() > 1e-4


def test_an_answer_depends_neither_on_order_nor_on_the_way_features_come(colour_section):
    from stpredict._section import take

    section = on_a_grid(colour_section(0))
    model = fresh()
    model.prepare([section])
    model.eval()
    whole = predict(model, section)
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_allclose(predict(model, take(section, order)), whole[order], atol=1e-4)
    samples = model.samples([section], train=True)
    with torch.no_grad():
        known = model.head(model.latent(samples.collate([samples[0]])), model.query(GENES)).numpy()
    np.testing.assert_allclose(known, whole, atol=1e-4)
    half = predict(model, take(section, np.arange(8)))
    assert np.abs(half - whole[:8]).max() > 1e-4  # attention is over the section


def test_a_pseudo_spot_off_the_image_is_not_there(colour_section):
    section = on_a_grid(colour_section(0))
    low = replace(section, geometry=shapely.transform(section.geometry, lambda xy: xy + (150, 0)))
    samples = fresh().samples([low], train=False)
    there = samples.extra["there"].numpy()
    edge = section.grid[:, 1] == 3  # centre at 530 px, beside an image of 512
    assert there[~edge & (section.grid[:, 1] < 2)].all()
    assert (there[edge][:, 1:] == 0).all()
    assert bool((samples.extra["between"].reshape(16, 3, -1)[torch.from_numpy(there == 0)] == 0).all())


def test_it_learns_what_it_is_trained_on(colour_section):
    model = fresh(feature_dropout=0.0, dropout=0.0, width=32)
    fit(model, [colour_section(0)], max_epochs=60, lr=3e-3)
    pred, true = predict(model, colour_section(0)), colour_section(0).expression
    assert np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(pred.T, true.T, strict=True)]) > 0.8


def test_a_section_too_large_for_memory_says_the_way_out(colour_section, monkeypatch):
    import psutil

    model = fresh()
    model.prepare([colour_section(0)])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ValueError, match="a section of 24 shapes needs .* A section is never cut"):
        predict(model, colour_section(2))


def test_the_published_sizes_are_those_of_the_code():
    from stpredict.models import FEAST

    with torch.device("meta"):
        model = FEAST([f"g{i}" for i in range(250)], config="published")
    d, inner = 768, 1152
    block = 3 * d * d + (d * d + d) + 4 * d + (d * inner + inner) + (inner * d + d)
    wanted = (1536 * d + d) + (d * d + d) + 6 * block + 2 * d
    wanted += (d * 2 * d + 2 * d) + (2 * d * d + d) + (d * 250 + 250)
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder")) == wanted
    c, r = model.config, model.config.recipe
    assert (c.beta, c.tau, c.near, c.heads, c.depth, c.dropout) == (1.5, 0.6, 32, 8, 3, 0.3)
    assert (r.lr, r.weight_decay, r.max_epochs) == (1e-4, 1e-5, 1500)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 3}, "heads=3 do not divide the width 16"), ({"near": 0}, "near"), ({"tau": 0.0}, "tau")],
)
def test_choices_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fresh(**changes)
