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
    assert float(share) == trained.config.context_share == 0.5
    assert np.abs(found[0.0] - found[1.0]).max() > 1e-2
    np.testing.assert_allclose(found[0.5], (found[0.0] + found[1.0]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[0.25], 0.75 * found[0.0] + 0.25 * found[1.0], atol=1e-5)


def test_the_closed_form_is_the_ridge_of_reduced_rank_on_the_pooled_statistics(trained, colour_section):
    from stpredict.models._pixnet import PENALTIES, _statistics
    from stpredict.models._reduced_rank import reduced_rank_ridge

    sections, context = [colour_section(0), colour_section(1)], trained.context_map
    x = _statistics(context, sections, window_px=2 * trained.config.window_px, stride=trained.stride)
    y = np.concatenate([s.expression for s in sections]).astype(np.float64)
    z = (x - context.centre.numpy()) / context.spread.numpy()
    found = z @ context.projection.numpy().T @ context.weight.numpy().T + context.intercept.numpy()
    of = np.repeat([0, 1], [s.n_shapes for s in sections])
    fitted = reduced_rank_ridge(z, y, sections=of, folds=of, penalties=PENALTIES, max_rank=32)
    np.testing.assert_allclose(found, z @ (fitted.weight @ fitted.projection).T + y.mean(axis=0), atol=1e-4)
    assert np.corrcoef(found[:, 0], y[:, 0])[0, 1] > 0.5
    assert (context.weight[:, len(fitted.projection) :] == 0).all()
    assert np.isfinite(context.projection.numpy()).all()


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_map_says_what_the_regression_says(trained, colour_section, monkeypatch, zoom):
    from copy import deepcopy

    from stpredict.models._pixnet import _statistics
    from stpredict.models._windows import WindowSamples

    trained = deepcopy(trained)
    context = trained.context_map
    context.zoom = zoom
    trained.finish([colour_section(0), colour_section(1)])
    # windows as tiles are: laid on the encoder's own grid, and every border far from every shape
    monkeypatch.setattr(WindowSamples, "_snap", lambda _, corner: tuple(int(v) for v in np.floor(corner / 32) * 32))
    x = _statistics(context, [colour_section(3)], window_px=1024, stride=trained.stride)
    z = (x - context.centre.numpy()) / context.spread.numpy()
    expected = z @ context.projection.numpy().T @ context.weight.numpy().T + context.intercept.numpy()
    context.share = torch.tensor(1.0)
    pred, true = predict(trained, colour_section(3)), colour_section(3).expression
    context.share = torch.tensor(0.5)
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
    assert float(trained.context_map.share) == 0.5
    assert np.abs(found["whole"] - found["tiled"]).max() <= 1e-3 * found["whole"].std(axis=0).min()


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
