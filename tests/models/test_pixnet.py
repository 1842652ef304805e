"""PixNet: shapes and counts of both configurations, attention against NumPy, tiles, units, and taking weights over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def awake(build):
    """A PixNet whose batch norms and branches are not at their silent initial state."""
    import torch

    model = build("PixNet")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.decoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        model.genes_head.weight.normal_(0, 0.5, generator=generator)
    return model.eval()


def _infer(model, section, **settings):
    from stpredict._inference import RuntimeOptions, predict

    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    return predict(model, section, list(model.genes), runtime=run, **settings)


def _block(c_in: int, c_out: int) -> int:  # depth-wise 3x3, norm, 1x1, norm; no biases
    return 9 * c_in + 2 * c_in + c_in * c_out + 2 * c_out


def _depth_to_space(c_in: int, c: int) -> int:  # 3x3 to 4 C, 3x3, block
    return (9 * c_in * 4 * c + 4 * c) + (9 * c * c + c) + _block(c, c)


def _bilinear(c_in: int, c: int) -> int:
    return _block(c_in, c) + _block(c, c)


def _fusion(skip: int, up: int) -> int:  # depth-wise 3x3, 1x1, layer norm, batch norm, 1x1 to Q K V
    return (9 * skip + skip) + (skip * skip + skip) + 2 * skip + 2 * skip + ((skip + up) * 3 * up + 3 * up)


def test_the_published_configuration_counts_as_derived_by_hand():
    import torch

    from stpredict.models.pixnet import PUBLISHED, PixNet, PixNetConfig

    config = PixNetConfig(genes=tuple(f"g{i}" for i in range(250)), **PUBLISHED)
    assert config.taps == (8, 16, 24, 24)  # groups 2, 4 and 6 of 6; the last is skip and bottom
    with torch.device("meta"):
        model = PixNet(
            config=replace(config, encoder="vit_giant_patch14_224")
        )  # UNI2-h's architecture, by its timm name
    assert sum(p.numel() for p in model.encoder.parameters()) == 681_394_176
    f = (64, 128, 256, 512, 512, 512)
    wanted = _block(1536, f[5])
    wanted += _depth_to_space(f[5], f[4]) + _fusion(1536, f[4])
    wanted += _depth_to_space(f[4], f[3]) + _fusion(1536, f[3])
    wanted += _depth_to_space(f[3], f[2]) + _fusion(1536, f[2])
    wanted += _bilinear(f[2], f[1]) + _bilinear(f[1], f[0]) + _block(f[0], f[0])
    assert sum(p.numel() for p in model.decoder.parameters()) == wanted
    assert model.genes_head.weight.shape == (250, 64)
    assert model.stride == 3.5  # 14 px tokens, two bare levels: 1.75 um at 0.5 um / px


def test_the_side_of_a_cell_is_said_by_model_card_and_list(build, colour_section, tmp_path):
    import json

    import torch

    from stpredict import models
    from stpredict._training import TrainOptions, fit
    from stpredict.models.pixnet import PUBLISHED, PixNet, PixNetConfig

    with torch.device("meta"):
        small = PixNet(genes=("g",))
        published = PixNet(
            config=replace(PixNetConfig(genes=("g",), **PUBLISHED), encoder="vit_giant_patch14_224", turns=1)
        )
        finer = PixNet(genes=("g",), mpp=1.0)
    assert (small.cell_um, published.cell_um, finer.cell_um) == (8.0, 1.75, 4.0)
    assert "mpp=2, cell_um=8, encoder=" in repr(small)
    assert build("Ridge").cell_um is None
    assert "cell_um" not in repr(build("Ridge"))
    assert models.list_models().set_index("name").loc["pixnet-her2st", "cell_um"] == 8.0

    model = build("PixNet")
    fit(model, [colour_section(0)], [], TrainOptions(max_epochs=1, device="cpu", progress=False), sections=("a",))
    model.save(tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert card["cell_um"] == model.cell_um
    for known in ({}, {"cell_um": None}):  # an older card, and one that does not say it
        (tmp_path / "m" / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "cell_um"} | known))
        assert models.load(tmp_path / "m").card.cell_um == model.cell_um
    (tmp_path / "m" / "card.json").write_text(json.dumps(card | {"cell_um": 3.0}))
    with pytest.raises(ValueError, match=r"card\.json: genes, mpp or cell_um are not those of the PixNet"):
        models.load(tmp_path / "m")


def test_the_published_decoder_has_the_shapes_of_the_paper():
    import torch

    from stpredict.models._pixnet import Decoder
    from stpredict.models.pixnet import PUBLISHED

    with torch.device("meta"):
        decoder = Decoder((1536,) * 4, PUBLISHED["filters"], n_bilinear=2, window=8)
        pyramid = [torch.empty(1, 1536, 64 // 2**i, 64 // 2**i) for i in range(4)]  # 896 px in tokens of 14 px
        out = []
        for up in decoder.ups:
            up.register_forward_hook(lambda _m, _i, y: out.append(tuple(y.shape[1:])))
        assert decoder(pyramid).shape == (1, 64, 256, 256)
    assert out == [(512, 16, 16), (512, 32, 32), (256, 64, 64), (128, 128, 128), (64, 256, 256)]
    kinds = [type(up).__name__ for up in decoder.ups]
    assert kinds == ["DepthToSpaceUp"] * 3 + ["BilinearUp"] * 2
    assert len(decoder.fusions) == 3


def test_the_small_configuration_counts_as_derived_by_hand(build):
    model = build("PixNet")
    c, f = model.encoder.channels, (8, 8, 12, 16)
    wanted = _block(c[3], f[3]) + _bilinear(f[3], f[2]) + _fusion(c[2], f[2])
    wanted += _bilinear(f[2], f[1]) + _fusion(c[1], f[1])
    wanted += _bilinear(f[1], f[0]) + _fusion(c[0], f[0]) + _block(f[0], f[0])
    assert sum(p.numel() for p in model.decoder.parameters()) == wanted


def test_an_even_image_has_an_even_map():
    import torch

    from stpredict.models._pixnet import Decoder
    from stpredict.models.pixnet import PixNetConfig

    torch.manual_seed(0)
    c, channels = PixNetConfig(genes=("a",)), (6, 8, 10, 12)
    even = [torch.randn(1, n, 1, 1).expand(1, n, 256 // 2**i, 256 // 2**i) for i, n in enumerate(channels)]
    spread = {}
    for n_bilinear in (c.n_bilinear, 1):
        decoder = Decoder(channels, c.filters, n_bilinear=n_bilinear, window=8, n_grids=c.attention_grids).eval()
        with torch.inference_mode():
            seen = decoder(even)[0, :, 96:160, 96:160]  # far from the border
        assert seen.std(dim=0).mean() > 1e-3  # channels differ
        spread[n_bilinear] = float((seen - seen.mean(dim=(1, 2), keepdim=True)).abs().max() / seen.abs().max())
    assert spread[c.n_bilinear] < 1e-6
    assert spread[1] > 1e-4  # depth-to-space: the cells of a square differ


def test_two_grids_of_attention_exchange_their_parts_half_a_square_further_on():
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    fusion = SkipFusion(5, 6, window=8, n_grids=2).eval()
    torch.testing.assert_close(fusion.weight + fusion.weight.roll((4, 4), (0, 1)), torch.ones(8, 8))
    skip, up = torch.randn(2, 5, 64, 48), torch.randn(2, 6, 64, 48)
    with torch.inference_mode():
        here = fusion(skip, up)
        moved = fusion(skip.roll((4, 4), (2, 3)), up.roll((4, 4), (2, 3))).roll((-4, -4), (2, 3))
    inner = (..., slice(16, -16), slice(16, -16))
    torch.testing.assert_close(here[inner], moved[inner], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 7, 8])
def test_two_grids_of_squares_of_any_side_agree_where_all_is_even(window):
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    two, one = (SkipFusion(5, 6, window=window, n_grids=n).eval() for n in (2, 1))
    one.load_state_dict(two.state_dict())
    skip, up = (torch.randn(1, n, 1, 1).expand(1, n, 112, 112) for n in (5, 6))
    with torch.inference_mode():
        torch.testing.assert_close(two(skip, up)[..., 8:-8, 8:-8], one(skip, up)[..., 8:-8, 8:-8])
    assert 0 < two.weight.min() <= two.weight.max() < 1


def test_a_cell_at_the_border_of_a_square_is_hardly_of_that_square():
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    over = []
    for n_grids in (1, 2):
        fusion = SkipFusion(5, 6, window=8, n_grids=n_grids).eval()
        smooth = torch.nn.functional.interpolate(torch.randn(1, 11, 8, 8), size=(128, 128), mode="bicubic")
        with torch.inference_mode():
            seen = fusion(smooth[:, :5], smooth[:, 5:])
        steps = (seen - smooth[:, 5:]).diff(dim=3).abs().mean(dim=(0, 1, 2))[16:-16]
        border = (torch.arange(16, 16 + len(steps)) + 1) % 8 == 0
        over.append(float(steps[border].mean() / steps[~border].mean()))
    assert over[0] > 3 * over[1]
    assert over[1] < 3


def test_the_gradients_of_two_grids_are_those_of_differences():
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    fusion = SkipFusion(2, 2, window=4, n_grids=2).double().eval()
    given = [torch.randn(1, 2, 8, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(fusion, given)
    with torch.no_grad():  # torch's fused attention, where no gradient is asked
        without = fusion(*given)
    torch.testing.assert_close(fusion(*given).detach(), without, rtol=1e-10, atol=1e-12)


def test_two_grids_in_bfloat16_are_those_of_float32_to_rounding():
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    fusion = SkipFusion(5, 6, window=8, n_grids=2).eval()
    skip, up = torch.randn(1, 5, 32, 32), torch.randn(1, 6, 32, 32)
    with torch.inference_mode():
        exact = fusion(skip, up)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = fusion(skip, up)
    assert 0 < float((rounded.float() - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_attention_with_a_gradient_has_the_values_and_gradients_of_torchs_own():
    import torch

    from stpredict.models._pixnet import _attend

    torch.manual_seed(0)
    given = [torch.randn(3, 16, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight, found = torch.randn(3, 16, 6, dtype=torch.float64), []
    for attend in (_attend, torch.nn.functional.scaled_dot_product_attention):
        out = attend(*given)
        found.append((out, *torch.autograd.grad((out * weight).sum(), given)))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)


def test_skip_fusion_is_attention_in_windows():
    import torch

    from stpredict.models._pixnet import SkipFusion

    torch.manual_seed(0)
    fusion = SkipFusion(5, 6, window=4).eval()
    skip, up = torch.randn(2, 5, 8, 12), torch.randn(2, 6, 8, 12)
    seen = {}
    fusion.qkv.register_forward_hook(lambda _m, _i, y: seen.update(qkv=y.detach().double().numpy()))
    with torch.inference_mode():
        got = fusion(skip, up).numpy()
    q, k, v = np.split(seen["qkv"], 3, axis=1)
    wanted = up.double().numpy().copy()
    for b in range(2):
        for y in range(0, 8, 4):
            for x in range(0, 12, 4):
                part = (b, slice(None), slice(y, y + 4), slice(x, x + 4))
                rows = [m[part].reshape(6, 16).T for m in (q, k, v)]
                scores = rows[0] @ rows[1].T / np.sqrt(6)
                share = np.exp(scores - scores.max(axis=1, keepdims=True))
                share /= share.sum(axis=1, keepdims=True)
                wanted[part] += (share @ rows[2]).T.reshape(6, 4, 4)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("core_px", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_tiles_do_not_show(awake, colour_section, core_px):
    section = colour_section(5, size=1280)
    whole, tiled = (replace(awake.config, core_px=px, halo_px=halo) for px, halo in ((1280, 512), (core_px, 256)))
    values = {}
    for name, config in (("whole", whole), ("tiled", tiled)):
        awake.config = config
        values[name], _ = _infer(awake, section)
    assert np.abs(values["whole"] - values["tiled"]).max() <= 1e-3 * values["whole"].std(axis=0).min()


def test_the_raster_read_inside_shapes_is_the_layer(awake, colour_section):
    from stpredict import _coverage
    from stpredict._window import Window

    section = colour_section(4)
    raster = np.full((3, 128, 128), np.nan, dtype=np.float32)

    def write(y, x, part):
        assert np.isnan(raster[:, y, x]).all()
        raster[:, y, x] = part

    values, share = _infer(awake, section, raster=write)
    assert np.isfinite(raster).all()
    covered = _coverage.coverage(section.shapes, Window(0, 0, 512, 512), cell_px=4)
    wanted = (covered @ raster.reshape(3, -1).T) / covered.sum(axis=1)[:, None]
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(share, 1.0)


def test_a_shape_half_off_the_image_is_read_where_it_is_covered(awake, colour_section):
    import shapely

    section = colour_section(4)
    geometry, radius = section.geometry.copy(), section.radius.copy()
    geometry[0], geometry[1], radius[1] = shapely.Point(0, 200), shapely.box(0, 176, 24, 224), np.nan
    area = section.area.copy()
    area[1] = 24 * 48
    values, share = _infer(awake, replace(section, geometry=geometry, radius=radius, area=area))
    assert share[0] == pytest.approx(0.5, abs=1e-6)
    assert share[1] == pytest.approx(1.0, abs=1e-6)
    assert np.isfinite(values).all()


@pytest.mark.slow
def test_eight_turns_make_the_map_turn_with_the_image(awake, colour_section):
    from stpredict._section import ImageView

    section, plain = colour_section(4), awake.config
    rasters = []
    for turn in range(3):
        turned = replace(section, image=ImageView(np.rot90(section.image.pixels, turn, (1, 2)).copy(), (1.0, 1.0), 1.0))
        raster = np.zeros((3, 128, 128), np.float32)
        awake.config = replace(plain, turns=8, core_px=512)
        _infer(awake, turned, raster=lambda y, x, part, raster=raster: raster.__setitem__((slice(None), y, x), part))
        awake.config = plain
        rasters.append(np.rot90(raster, -turn, (1, 2)))
    np.testing.assert_allclose(rasters[1], rasters[0], atol=2e-4)
    np.testing.assert_allclose(rasters[2], rasters[0], atol=2e-4)


def test_a_sum_is_the_mean_times_the_area(awake, colour_section):
    section = colour_section(4)
    mean, _ = _infer(awake, section)
    plain = awake.config
    awake.config = replace(plain, reduction="sum")
    total, _ = _infer(awake, section)
    awake.config = plain
    np.testing.assert_allclose(total, mean * (np.pi * 24**2), rtol=1e-4)


def test_the_log1p_link_maps_a_rate_that_is_not_negative(colour_section):
    import torch

    from stpredict.models import PixNet, PixNetConfig

    torch.manual_seed(0)
    config = PixNetConfig(
        genes=("red", "green", "blue"),
        mpp=1.0,
        encoder="mobilenetv2_035",
        filters=(8, 8, 12, 16),
        window_px=256,
        core_px=256,
        link="log1p",
    )
    model = PixNet(config=config).eval()
    section = colour_section(4)
    model.prepare([section])
    parts = []
    values, _ = _infer(model, section, raster=lambda _y, _x, part: parts.append(part))
    assert min(part.min() for part in parts) > 0
    assert (values > 0).all()
    bias = torch.nn.functional.softplus(model.genes_head.bias).detach().numpy()
    np.testing.assert_allclose(np.log1p(bias), section.expression.mean(axis=0), rtol=1e-3)


def test_prepare_starts_at_the_training_mean(build, colour_section):
    model = build("PixNet")
    sections = [colour_section(0), colour_section(1)]
    model.prepare(sections)
    wanted = np.mean([s.expression.mean(axis=0) for s in sections], axis=0)
    np.testing.assert_allclose(model.genes_head.bias.detach().numpy(), wanted, rtol=1e-5)


def test_a_saved_pixnet_gives_its_encoder_and_decoder_away(build, colour_section, tmp_path):
    import torch

    from stpredict._training import TrainOptions, fit
    from stpredict.models import PixNet

    donor = build("PixNet")
    fit(donor, [colour_section(0)], [], TrainOptions(max_epochs=1, device="cpu", progress=False))
    donor.save(tmp_path / "donor")
    heir = PixNet(["a", "b"], encoder_weights=tmp_path / "donor", mpp=1.0)
    assert heir.config.filters == donor.config.filters
    for part in ("encoder", "decoder"):
        for key, value in getattr(donor, part).state_dict().items():
            torch.testing.assert_close(getattr(heir, part).state_dict()[key], value)
    assert heir.genes_head.weight.shape == (2, 8)
    with pytest.raises(FileNotFoundError, match="no model 'pixnet-of-nobody'"):
        PixNet(["a"], encoder_weights="pixnet-of-nobody")
    with pytest.raises(FileNotFoundError, match="encoder_weights='imagenet.safetensors': there is no such file"):
        PixNet(["a"], encoder_weights="imagenet.safetensors")


def test_sizes_that_do_not_divide_are_refused_with_the_unit():
    from stpredict.models import PixNet, PixNetConfig

    with pytest.raises(ValueError, match=r"core_px=1000 must be a multiple of 128 px"):
        PixNet(config=PixNetConfig(genes=("a",), core_px=1000))
    with pytest.raises(ValueError, match="config='huge' is unknown"):
        PixNet(["a"], config="huge")


@pytest.mark.slow
def test_a_text_head_learns_from_texts_and_maps_a_gene_that_it_never_saw(colour_section, tmp_path):
    from dataclasses import replace

    import torch

    from stpredict._embeddings import GeneEmbeddings
    from stpredict._inference import RuntimeOptions, predict
    from stpredict._training import TrainOptions, fit
    from stpredict.models import PixNet, load

    names = ("red", "green", "blue", "rosy")
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    vectors[3] = vectors[0] + 0.05 * vectors[1]  # a text much like that of red
    embeddings = GeneEmbeddings(genes=names, vectors=vectors, encoder="letters")
    torch.manual_seed(0)
    small = PixNet(names[:3], head="text", embeddings=embeddings).config
    config = replace(
        small, mpp=1.0, encoder="mobilenetv2_035", filters=(8, 8, 12, 16), window_px=256, core_px=512, halo_px=256
    )
    model = PixNet(config=config, embeddings=embeddings)
    before = {key: value.clone() for key, value in model.genes_head.state_dict().items()}
    fit(model, [colour_section(0), colour_section(1)], [], TrainOptions(max_epochs=2, device="cpu", progress=False))
    after = model.genes_head.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))
    model.save(tmp_path / "text")
    maps, run = [], RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    loaded, genes = load(tmp_path / "text"), ["red", "rosy", "blue"]
    values, _ = predict(loaded, colour_section(2), genes, runtime=run, raster=lambda _y, _x, part: maps.append(part))
    assert np.isfinite(values).all() and len(maps) == 1 and maps[0].shape[0] == 3
    r = np.corrcoef(values.T)
    assert r[0, 1] > max(r[0, 2], 0.9)


def test_the_rate_of_a_strongly_expressed_gene_starts_at_its_mean(colour_section):
    """A rate of 3,000 per 10,000 counts: exp of it is more than any float holds."""
    import torch

    from stpredict.models.pixnet import PixNet, PixNetConfig

    section = colour_section(0)
    values = np.full_like(section.expression, np.log1p(3000.0))
    model = PixNet(config=PixNetConfig(genes=("red", "green", "blue"), encoder="mobilenetv2_050", link="log1p"))
    model.prepare([replace(section, expression=values)])
    assert torch.isfinite(model.genes_head(("red",))).all()
    bias = torch.nn.functional.softplus(model.genes_head(("red", "green", "blue"))[:, -1])
    torch.testing.assert_close(bias, torch.full((3,), 3000.0), rtol=1e-4, atol=0)


def test_a_training_that_diverged_leaves_no_card(colour_section):
    from stpredict._training import TrainOptions, fit
    from stpredict.models.pixnet import PixNet, PixNetConfig

    model = PixNet(config=PixNetConfig(genes=("red", "green", "blue"), encoder="mobilenetv2_050", context_rank=0))
    section = colour_section(0)
    values = section.expression.copy()
    values[:, 1] = np.inf
    plan = TrainOptions(max_epochs=1, batch_size=2, device="cpu", precision="32", progress=False)
    fit(model, [section], [], plan)
    assert model.card is not None  # and none after it went on to values that are no numbers
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="training diverged: .* from epoch 0 on"):
        fit(model, [replace(section, expression=values)], [], plan)
    assert model.card is None


def test_taps_that_skip_a_stage_are_refused():
    from stpredict.models import PixNet, PixNetConfig

    for taps in ((0, 2, 3, 4), (1, 2, 4)):
        config = PixNetConfig(genes=("a",), filters=(4, 4, 4, 4), taps=taps, context_rank=0)
        with pytest.raises(
            ValueError, match=rf"taps=.*{taps[0]}, {taps[1]}.* of 'mobilenetv2_100' give maps with strides"
        ):
            PixNet(config=config)
