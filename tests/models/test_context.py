"""The context of PixNet: fitted in closed form, an average with the decoder, and nothing before it is fitted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
import torch


def with_context(build):
    from stpredict.models import PixNet, PixNetConfig

    rank = PixNetConfig.__dataclass_fields__["context_rank"].default
    config = dataclasses.replace(build("PixNet", encoder="mobilenetv2_100").config, context_rank=rank)
    torch.manual_seed(0)  # as `build` does: the weights are random, and those of other seeds see less
    return PixNet(config=config)


def like(trained, **changes):
    """A model of another configuration with the same encoders and decoder; its context is to be fitted."""
    from stpredict.models import PixNet

    model = PixNet(config=dataclasses.replace(trained.config, **changes))
    fitted = ("centre", "spread", "projection", "landmarks", "weight", "intercept", "share", "colours")
    kept = tuple(f"context_map.{name}" for name in fitted)
    model.load_state_dict({k: v for k, v in trained.state_dict().items() if not k.startswith(kept)}, strict=False)
    return model.eval()


def said(context, x):
    """What the closed form says of statistics (n, f): values (n, g)."""
    z = torch.from_numpy((x - context.centre.numpy()) / context.spread.numpy())
    if context.landmarks is not None:
        z = (-torch.cdist(z.double(), context.landmarks.double()).square()).exp().float()
    return (z @ context.projection.T @ context.weight.T + context.intercept).numpy()


@pytest.fixture(scope="module")
def trained(colour_section, build):
    from stpredict._training import TrainOptions, fit

    model = with_context(build)
    plan = TrainOptions(max_epochs=1, device="cpu", precision="32", progress=False)
    fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("a", "b"))
    return model


def predict(model, section):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    return infer(
        model,
        section,
        list(model.genes),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output),
    )[0]


def test_the_map_is_the_average_of_both_branches(trained, colour_section):
    share = trained.context_map.share
    found = {}
    for value in (0.0, 1.0, 0.5, 0.25):
        trained.context_map.share = torch.tensor(value)
        found[value] = predict(trained, colour_section(2))
    trained.context_map.share = share
    assert float(share) == pytest.approx(0.7)
    assert np.abs(found[0.0] - found[1.0]).max() > 1e-2
    np.testing.assert_allclose(found[0.5], (found[0.0] + found[1.0]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[0.25], 0.75 * found[0.0] + 0.25 * found[1.0], atol=1e-5)


@pytest.mark.parametrize(
    ("landmarks", "wide", "counted"), [(0, 0, False), (0, 8, True), (12, 8, False), (512, 0, False), (512, 8, True)]
)
def test_the_closed_form_is_the_ridge_of_reduced_rank_on_the_pooled_statistics(
    trained, colour_section, landmarks, wide, counted
):
    from scipy.spatial.distance import cdist

    from stpredict.models._pixnet import KERNEL_PENALTIES, PENALTIES, _statistics
    from stpredict.models._reduced_rank import reduced_rank_ridge

    model = like(trained, context_landmarks=landmarks, context_wide_cells=wide)
    sections, context = [colour_section(0), colour_section(1)], model.context_map
    weights = None
    if counted:
        rng = np.random.default_rng(0)
        totals = [rng.integers(500, 20_000, s.n_shapes).astype(float) for s in sections]
        sections = [dataclasses.replace(s, total=total) for s, total in zip(sections, totals, strict=True)]
        weights = np.concatenate([total / (total + 5000) for total in totals])
        weights /= weights.mean()
    model.finish(sections)
    x = _statistics(context, sections, window_px=context.window_px(model.config.window_px), stride=model.stride)
    y = np.concatenate([s.expression for s in sections]).astype(np.float64)
    features = z = ((x - context.centre.numpy()) / context.spread.numpy()).astype(np.float64)
    if landmarks:
        n = min(landmarks, len(z))
        near = context.landmarks.numpy()[:n].astype(np.float64)
        assert min(cdist(near, z).min(axis=1)) < 1e-5  # they are training shapes
        assert (context.landmarks[n:] == 0).all()
        assert (context.projection[:, n:] == 0).all()
        size, axes = np.linalg.eigh(np.exp(-cdist(near, near, "sqeuclidean")))
        kept = size > 1e-5 * size.max()
        features = np.exp(-cdist(z, near, "sqeuclidean")) @ axes[:, kept] / np.sqrt(size[kept])
    of = np.repeat([0, 1], [s.n_shapes for s in sections])
    penalties = KERNEL_PENALTIES if landmarks else PENALTIES
    fitted = reduced_rank_ridge(features, y, sections=of, folds=of, penalties=penalties, max_rank=32, weights=weights)
    wanted = (features - features.mean(axis=0)) @ (fitted.weight @ fitted.projection).T + y.mean(axis=0)
    # the whitening of a kernel divides float32 by small roots
    np.testing.assert_allclose(said(context, x), wanted, rtol=1e-7, atol=5e-4 if landmarks else 1e-4)
    assert np.corrcoef(wanted[:, 0], y[:, 0])[0, 1] > 0.5
    assert (context.weight[:, len(fitted.projection) :] == 0).all()
    assert np.isfinite(context.projection.numpy()).all()


def test_features_of_landmarks_multiply_to_the_kernel():
    from scipy.spatial.distance import cdist

    from stpredict.models._pixnet import _features, gaussian_kernel

    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) / 2
    kernel = np.exp(-cdist(x, x, "sqeuclidean"))
    np.testing.assert_allclose(gaussian_kernel(*map(torch.from_numpy, (x, x))).numpy(), kernel, atol=1e-6)
    landmarks, features, _ = _features(x, 64)
    assert (landmarks[40:] == 0).all()
    np.testing.assert_allclose(features @ features.T, kernel, atol=2e-3)
    fewer, features, whitening = _features(x, 10)
    assert len(whitening) == len(fewer) == 10
    rest = kernel - features @ features.T  # of Nystroem's approximation: never negative, 0 on the landmarks
    assert np.linalg.eigvalsh(rest).min() > -1e-4
    at = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in fewer]
    np.testing.assert_allclose(rest[at], 0, atol=2e-3)


def test_the_wider_square_holds_the_means_of_the_nearer(build):
    model = with_context(build)
    context, image = model.context_map, torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        near, wide = context.statistics(image).chunk(2, dim=1)
    assert near.shape == wide.shape
    weight = np.r_[0.5, np.ones(7), 0.5] / 8
    middle = near[0, :, 4:13, 4:13].numpy()
    np.testing.assert_allclose(wide[0, :, 8, 8], np.einsum("frc,r,c->f", middle, weight, weight), rtol=1e-4, atol=1e-5)


def test_shapes_of_few_counts_weigh_less(trained, colour_section):
    from stpredict.models._scale import depth_weights

    sections = [colour_section(0), colour_section(1)]
    assert depth_weights(sections, 5000.0) is None  # no counts are known
    rng = np.random.default_rng(0)
    deep = [dataclasses.replace(s, total=rng.integers(500, 20_000, s.n_shapes).astype(float)) for s in sections]
    total = np.concatenate([s.total for s in deep])
    weights = depth_weights(deep, 5000.0)
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(weights / weights[0], total / (total + 5000) * (total[0] + 5000) / total[0])
    assert depth_weights(deep, 0.0) is None

    def fitted(given):
        trained.finish(given)
        return trained.context_map.projection.clone()

    alike = fitted(sections)
    assert torch.equal(alike, fitted([dataclasses.replace(s, total=np.full(s.n_shapes, 7e3)) for s in sections]))
    assert not torch.equal(alike, fitted(deep))
    fitted(sections)


def test_the_loss_weighs_shapes_by_their_counts(trained, colour_section):
    from stpredict.models import predict_batch
    from stpredict.nn import mse_pcc

    section = colour_section(0)
    section = dataclasses.replace(section, total=np.random.default_rng(0).integers(500, 20_000, section.n_shapes) * 1.0)
    samples = trained.samples([section], train=False)
    batch = samples.collate([samples[i] for i in range(len(samples))])
    query = trained.query(trained.genes)
    with torch.no_grad():
        found, values = trained.loss(batch, query), predict_batch(trained, batch, query)
    total = torch.from_numpy(section.total[batch.rows[:, 1]]).float()
    wanted = mse_pcc(values, batch.measured, weight=total / (total + 5000))
    torch.testing.assert_close(found, wanted)
    assert abs(float(found - mse_pcc(values, batch.measured))) > 1e-4


@pytest.mark.parametrize(("zoom", "landmarks"), [(1, 0), (2, 0), (1, 512)])
def test_the_map_says_what_the_regression_says(trained, colour_section, monkeypatch, zoom, landmarks):
    from stpredict.models._pixnet import _statistics
    from stpredict.models._windows import WindowSamples

    trained = like(trained, context_landmarks=landmarks)
    context = trained.context_map
    context.zoom = zoom
    trained.finish([colour_section(0), colour_section(1)])
    # windows as tiles are: laid on the encoder's own grid, and every border far from every shape
    monkeypatch.setattr(WindowSamples, "_snap", lambda _, corner: tuple(int(v) for v in np.floor(corner / 32) * 32))
    x = _statistics(context, [colour_section(3)], window_px=1024, stride=trained.stride)
    expected = said(context, x)
    context.share = torch.tensor(1.0)
    pred, true = predict(trained, colour_section(3)), colour_section(3).expression
    r = [np.corrcoef(pred[:, j], expected[:, j])[0, 1] for j in range(3)]
    assert min(r) > 0.99, r
    mean = np.concatenate([colour_section(s).expression for s in (0, 1)]).mean(axis=0)
    assert ((pred - true) ** 2).mean() < 0.97 * ((mean - true) ** 2).mean()


@pytest.mark.slow
def test_tiles_do_not_show_with_the_default_halo(trained, colour_section):
    from stpredict.models import PixNetConfig

    section, plain = colour_section(5, size=1024), trained.config
    halo = PixNetConfig.__dataclass_fields__["halo_px"].default
    found = {}
    for name, core_px, halo_px in (("whole", 1024, 512), ("tiled", 512, halo)):
        trained.config = dataclasses.replace(plain, core_px=core_px, halo_px=halo_px)
        found[name] = predict(trained, section)
    trained.config = plain
    assert float(trained.context_map.share) == pytest.approx(0.7)
    assert np.abs(found["whole"] - found["tiled"]).max() <= 1e-3 * found["whole"].std(axis=0).min()


def test_the_share_is_less_for_bins_and_cells_than_for_spots(trained, colour_section):
    from copy import deepcopy

    from stpredict.models._pixnet import default_share

    spots = colour_section(0)
    bins = dataclasses.replace(spots, area=spots.area / 100)
    just = dataclasses.replace(spots, area=np.full(len(spots.area), 1001.0))
    below = dataclasses.replace(spots, area=np.r_[1e6, np.full(len(spots.area) - 1, 999.0)])  # the median decides
    assert default_share([just], 1.0) == default_share([bins], 10.0) == default_share([below], 1.1) == 0.7
    assert default_share([bins], 1.0) == default_share([spots], 0.1) == default_share([below], 1.0) == 0.3
    again = deepcopy(trained)
    assert again.config.context_share is None
    again.finish([bins])
    assert float(again.context_map.share) == pytest.approx(0.3)
    again.config = dataclasses.replace(again.config, context_share=0.9)
    again.finish([bins])
    assert float(again.context_map.share) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("peak", "width", "chosen"),
    [(0.3, 1e-3, 0.3), (0.3, 0.15, 0.4), (1.0, 1e-3, 1.0), (0.0, 1e-3, 0.0), (0.2, 1e3, 0.7)],
    ids=["sharp", "within .005 of the best", "context alone", "decoder alone", "flat"],
)
def test_held_out_shapes_choose_the_share(trained, peak, width, chosen):
    """Predictions are linear in the share, so those of 0 and 1 say all others."""
    from copy import deepcopy

    model = deepcopy(trained)
    decoder, context = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32)

    def predict():
        share = float(model.context_map.share)
        return (1 - share) * decoder + share * context

    def score(pred):
        share = float(np.mean((pred - decoder) / (context - decoder)))
        return -0.005 * ((share - peak) / width) ** 2

    model.choose(predict, score)
    assert float(model.context_map.share) == pytest.approx(chosen, abs=1e-6)


def test_a_training_with_held_out_shapes_scores_the_share_on_them(colour_section, build, monkeypatch):
    """The rule again, by one prediction a share, from a default that is none of the best."""
    import stpredict.models.pixnet as pixnet
    from stpredict._training import TrainOptions, _loop, fit
    from stpredict._training._evidence import held_out, mean_pcc
    from stpredict.nn.device import autocast

    counted = []
    monkeypatch.setattr(_loop, "held_out", lambda *given: counted.append(1) or held_out(*given))
    monkeypatch.setattr(pixnet, "default_share", lambda *given: 0.1)
    model, val = with_context(build), [colour_section(k) for k in (3, 4, 5)]
    plan = TrainOptions(max_epochs=1, device="cpu", precision="32", progress=False)
    fit(model, [colour_section(0), colour_section(1)], val, plan, sections=("a", "b"))
    assert len(counted) == 3
    chosen, scores = float(model.context_map.share), {}
    with autocast("32-true", torch.device("cpu")):
        for share in np.linspace(0, 1, 11).round(1):
            model.context_map.share.fill_(share)
            scores[float(share)] = float(np.nanmean(mean_pcc(held_out(model, val))))
    good = [share for share in scores if scores[share] >= max(scores.values()) - 0.005]
    assert 0.1 not in good
    assert chosen == pytest.approx(min(good, key=lambda share: abs(share - 0.1)), abs=1e-6)


def test_a_share_that_is_given_or_cannot_be_scored_stays(trained):
    from copy import deepcopy

    model, asked = deepcopy(trained), []
    model.choose(lambda: np.ones((60, 3), np.float32), lambda pred: np.nan)
    assert float(model.context_map.share) == pytest.approx(0.7)
    model.choose(lambda: asked.append(1) or np.ones((49, 3), np.float32), lambda pred: pytest.fail("scored"))
    assert (len(asked), float(model.context_map.share)) == (1, pytest.approx(0.7))
    with pytest.raises(MemoryError):
        model.choose(_no_memory, lambda pred: 1.0)
    assert float(model.context_map.share) == pytest.approx(0.7)
    model.config = dataclasses.replace(model.config, context_share=0.2)
    model.choose(lambda: pytest.fail("predicted"), lambda pred: 1.0)
    assert float(model.context_map.share) == pytest.approx(0.7)


def _no_memory():
    raise MemoryError


def test_training_again_begins_without_it(trained, colour_section):
    from copy import deepcopy

    again = deepcopy(trained)
    again.prepare([colour_section(0)])
    assert float(again.context_map.share) == 0.0
    assert again.query(again.genes).shape == (3, 8 + 32 + 1)


@pytest.mark.parametrize("changes", [{"link": "log1p"}, {"reduction": "sum"}, {"context_rank": 0}])
def test_it_is_there_only_where_it_fits(build, changes):
    from stpredict.models import PixNet

    model = PixNet(config=dataclasses.replace(with_context(build).config, **changes))
    assert model.context_map is None


@pytest.mark.parametrize("name", ["context_cells", "context_wide_cells"])
def test_a_square_has_an_even_side(build, name):
    from stpredict.models import PixNet

    config = dataclasses.replace(with_context(build).config, **{name: 3})
    with pytest.raises(ValueError, match=f"{name}=3 must be even"):
        PixNet(config=config)
    assert PixNet(config=dataclasses.replace(config, context_rank=0)).context_map is None  # there it is not asked


def test_a_halo_that_the_wider_square_outgrows_is_wider(build):
    from stpredict.models import PixNet

    config = dataclasses.replace(with_context(build).config, halo_px=128, core_px=512, window_px=128)
    model = PixNet(config=config)
    assert (model.config.halo_px, model.tiling.halo_px) == (128, 256)
    assert PixNet(config=dataclasses.replace(config, halo_px=384)).tiling.halo_px == 384
    assert PixNet(config=dataclasses.replace(config, context_wide_cells=0)).tiling.halo_px == 128
    context = model.context_map
    assert context.reach_px == 192
    assert context.window_px(128) == 512  # twice the training window would hold no whole square
    assert context.window_px(384) == 768
    assert PixNet(config=dataclasses.replace(config, context_wide_cells=0)).context_map.reach_px == 64


def test_shapes_that_all_look_alike_say_the_mean(trained, colour_section):
    section = colour_section(0)
    same = section.geometry[np.zeros(section.n_shapes, dtype=int)]
    section = dataclasses.replace(section, geometry=same, radius=np.full(section.n_shapes, section.radius[0]))
    model = like(trained)
    model.finish([section, dataclasses.replace(section, name="again")])
    context = model.context_map
    assert np.abs(context.weight.numpy() @ context.projection.numpy()).max() < 1e-3
    np.testing.assert_allclose(context.intercept, section.expression.mean(axis=0), atol=1e-3)


def test_its_zoom_is_that_of_the_configuration(build):
    from stpredict.models import PixNet

    for zoom in (1, 2):
        model = PixNet(config=dataclasses.replace(with_context(build).config, context_zoom=zoom))
        assert model.context_map.zoom == zoom


def test_a_donor_without_a_context_gives_none(build, trained, tmp_path):
    from stpredict.models import PixNet

    trained.save(tmp_path / "with")
    plain = PixNet(config=dataclasses.replace(trained.config, context_rank=0))
    plain.card = dataclasses.replace(trained.card, config=dataclasses.asdict(plain.config))
    plain.save(tmp_path / "without")
    heir = PixNet(("a", "b"), config=trained.config, encoder_weights=tmp_path / "with")
    first = next(iter(trained.context_map.encoder.state_dict().values()))
    assert torch.equal(next(iter(heir.context_map.encoder.state_dict().values())), first)
    assert PixNet(("a", "b"), config=trained.config, encoder_weights=tmp_path / "without").context_map is None
    with pytest.raises(ValueError, match="encoder='resnet18', but encoder_weights="):
        PixNet(("a", "b"), encoder="resnet18", encoder_weights=tmp_path / "with")
    file = tmp_path / "with" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not the file its card describes"):
        PixNet(("a", "b"), encoder_weights=tmp_path / "with")


def test_a_vision_transformer_has_none():
    from stpredict.models import PixNet, PixNetConfig

    config = PixNetConfig(
        genes=("a",),
        encoder="vit_tiny_patch16_224",
        taps=(3, 6, 9, 12),
        attention_window=7,
        window_px=896,
        core_px=896,
        halo_px=896,
    )
    assert PixNet(config=config).context_map is None


def test_what_chooses_the_penalty_is_a_section_or_of_one_alone_a_block(colour_section):
    from stpredict._places import inner_groups

    one, two = colour_section(0), colour_section(1)
    assert inner_groups([one, two]).tolist() == [0] * one.n_shapes + [1] * two.n_shapes
    alone, centre = inner_groups([one]), shapely.get_coordinates(one.geometry)
    assert len(set(alone)) > 4
    for block in set(alone):  # no shape of another block within the box of its centres
        low, high = centre[alone == block].min(axis=0), centre[alone == block].max(axis=0)
        assert set(alone[((centre >= low) & (centre <= high)).all(axis=1)]) == {block}


def test_shares_of_colours_are_what_numpy_makes_of_the_pixels(colour_section):
    from stpredict.models._pixnet import ColourShares
    from stpredict.nn.stain import RGB_OF_HED

    rgb = np.moveaxis(colour_section(4).image.read(colour_section(4).image.window), -1, 0)[:, :128, :128]
    colours = ColourShares(3)
    image = torch.from_numpy(rgb.astype(np.float32) / 255)[None]
    density = -np.log((rgb.astype(np.float64) + 1) / 256).reshape(3, 64, 2, 64, 2).mean(axis=(2, 4))
    density = np.concatenate([density, np.tensordot(np.linalg.inv(RGB_OF_HED.astype(np.float64)).T, density, axes=1)])
    colours.fit(colours.densities(image).movedim(1, -1).reshape(-1, 6))
    flat = density.reshape(6, -1)
    tissue = flat[:, flat[:3].mean(axis=0) > 0.1]
    np.testing.assert_allclose(colours.levels, np.quantile(tissue, [0.05, 0.5, 0.95], axis=1).T, atol=1e-4)
    found = colours(colours.densities(image))
    above = flat[:, None] - colours.levels.numpy()[:, :, None]
    soft = 1 / (1 + np.exp(-above / (0.2 * tissue.std(axis=1))[:, None, None]))
    np.testing.assert_allclose(found[0].reshape(6, 3, -1), soft, atol=2e-3)
    assert (np.diff(found.mean(dim=(0, 2, 3)).reshape(6, 3), axis=1) < 0).all()


def test_glass_does_not_move_the_levels_of_colours():
    from stpredict.models._pixnet import ColourShares

    generator = torch.Generator().manual_seed(0)
    tissue, glass = 0.3 + torch.rand(500, 6, generator=generator), torch.rand(5000, 6, generator=generator) / 100
    alone, among = ColourShares(5), ColourShares(5)
    alone.fit(tissue)
    among.fit(torch.cat([glass, tissue]))
    assert torch.equal(alone.levels, among.levels)
    assert torch.equal(alone.width, among.width)
    alone.fit(glass)  # nothing else is there: levels lie where it does
    assert float(alone.levels.max()) < 0.01


def test_colours_weigh_as_much_as_the_encoder(trained, colour_section):
    from stpredict.models._pixnet import _statistics

    context, n = trained.context_map, trained.context_map.n_of_encoder
    x = _statistics(
        context,
        [colour_section(0), colour_section(1)],
        window_px=context.window_px(trained.config.window_px),
        stride=trained.stride,
    )
    z = (x - context.centre.numpy()) / context.spread.numpy()
    for square, values in zip(np.split(z, 2, axis=1), np.split(x, 2, axis=1), strict=True):
        assert square.shape[1] == n + 6 * trained.config.context_levels
        assert (square[:, n:] ** 2).sum() == pytest.approx((square[:, :n] ** 2).sum(), rel=1e-2)
        assert (values[:, n:] >= 0).all() and (values[:, n:] <= 1).all()


@pytest.mark.parametrize(
    "added",
    [("context_levels", "context_wide_cells", "context_landmarks", "half_weight_counts"),
     ("context_wide_cells", "context_landmarks", "half_weight_counts")],
)  # fmt: skip
def test_a_model_of_before_has_what_it_had(trained, tmp_path, added):
    import json

    from stpredict import models
    from stpredict.models import PixNet

    before = PixNet(config=dataclasses.replace(trained.config, **dict.fromkeys(added, 0) | {"half_weight_counts": 0.0}))
    assert (before.context_map.colours is None) == ("context_levels" in added)
    assert before.context_map.landmarks is None
    assert before.context_map.wide_box is None
    before.card = dataclasses.replace(trained.card, config=dataclasses.asdict(before.config))
    before.save(tmp_path / "before")
    path = tmp_path / "before" / "card.json"
    content = json.loads(path.read_text())
    for name in added:
        del content["config"][name]
    path.write_text(json.dumps(content))
    loaded = models.load(tmp_path / "before")
    assert loaded.config == before.config
    assert set(loaded.state_dict()) == set(before.state_dict())
