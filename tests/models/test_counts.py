"""Maps of counts: their likelihood against SciPy, what it leaves open, pooling before the link, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

GENES = ("red", "green", "blue")
RUN = {"device": "cpu", "precision": "32", "progress": False}


def _config(**fields):
    from stpredict.models import PixNetConfig

    small = {
        "mpp": 1.0,
        "encoder": "mobilenetv2_035",
        "filters": (8, 8, 12, 16),
        "window_px": 256,
        "core_px": 256,
        "halo_px": 256,
        "link": "counts",
    }
    return PixNetConfig(genes=GENES, **(small | fields))


def _measured(section, *, total=200, seed=0, efficiency=0.4):
    """The section with counts of its genes: a tenth of the RNA at most is red where the disk is red, and so on."""
    rng = np.random.default_rng(seed)
    depth = total * np.exp(efficiency * rng.normal(size=section.n_shapes))
    counts = rng.poisson(depth[:, None] * section.expression / 10)
    n = np.maximum(counts.sum(axis=1) + rng.poisson(depth * 0.8), 1).astype(np.float64)
    return replace(section, expression=np.log1p(1e4 * counts / n[:, None]).astype(np.float32), total=n), counts


@pytest.fixture(scope="module")
def model(colour_section):
    """A map of counts whose rates differ from place to place: rows are drawn, and its level is set."""
    import torch

    from stpredict.models import PixNet

    made = PixNet(config=_config(encoder="mobilenetv2_100"), seed=0)
    sections = [_measured(colour_section(seed))[0] for seed in (0, 1)]
    made.prepare(sections)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in made.decoder.modules():  # else features hardly differ from place to place
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.05, 0.15, generator=generator)
        made.genes_head.weight.normal_(0, 0.1, generator=generator)
        made.count_rates.total.normal_(0, 0.05, generator=generator)
        made.count_rates.density.weight.normal_(0, 0.3, generator=generator)
    made.finish(sections)
    return made.eval()


def _infer(model, section, genes=GENES, **settings):
    from stpredict._inference import RuntimeOptions, predict_with_spread

    return predict_with_spread(
        model, section, list(genes), runtime=RuntimeOptions(**RUN).resolve(model.output), **settings
    )


def test_the_likelihood_is_that_of_scipy():
    import torch
    from scipy.stats import nbinom

    from stpredict.models._counts import nb_nll

    rng = np.random.default_rng(0)
    mean, dispersion = rng.gamma(1.0, 5.0, (40, 3)), np.array([0.01, 0.4, 3.0])
    counts = rng.poisson(mean * rng.gamma(1.0, 1.0, (40, 3)))
    assert (counts == 0).any() and counts.max() > 10
    found = nb_nll(*(torch.from_numpy(np.asarray(each, np.float64)) for each in (counts, mean, dispersion)))
    wanted = -nbinom.logpmf(counts, 1 / dispersion, 1 / (1 + mean * dispersion)).sum()
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_its_gradient_is_that_of_differences():
    import torch

    from stpredict.models._counts import nb_nll

    rng = np.random.default_rng(1)
    counts = torch.from_numpy(rng.poisson(2.0, (6, 2)).astype(np.float64))
    mean = torch.from_numpy(rng.uniform(0.5, 4, (6, 2))).requires_grad_()
    dispersion = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, d: nb_nll(counts, m, d), (mean, dispersion))


def test_counts_come_back_whole_from_the_target():
    import torch

    from stpredict.metrics import log1p_cp10k
    from stpredict.models._counts import counts_of

    rng = np.random.default_rng(2)
    counts = rng.integers(0, 2 ** rng.integers(1, 19, (500, 1)), (500, 7))
    total = counts.sum(axis=1) + rng.integers(1, 10_000, 500)
    target = torch.from_numpy(log1p_cp10k(counts, total).astype(np.float32))
    np.testing.assert_array_equal(counts_of(target, torch.from_numpy(total.astype(np.float32))).numpy(), counts)


def _loss(rates, density, counts, total, area, section):
    import torch

    from stpredict.models._samples import Batch

    expression = np.log1p(1e4 * counts / total[:, None]).astype(np.float32)
    extra = {"total": torch.from_numpy(total.astype(np.float32)), "area": torch.from_numpy(area.astype(np.float32))}
    rows = np.column_stack([section, np.arange(len(section))])
    batch = Batch(torch.empty(0), None, torch.from_numpy(expression), GENES, rows, extra)
    density = torch.from_numpy(density.astype(np.float32))
    return rates.loss(density, density[:, -1], batch, torch.arange(3)).item()


def test_a_batch_has_the_likelihood_of_counts_given_totals_and_of_totals_given_their_section():
    import torch
    from scipy.stats import nbinom

    from stpredict.models._counts import CountRates

    rng = np.random.default_rng(3)
    rates, section = CountRates(3, 8), np.repeat([4, 1, 7], [5, 6, 4])
    with torch.no_grad():
        rates.log_dispersion.copy_(torch.tensor([0.2, 0.5, 1.5, 0.3]).log())
    density = np.column_stack([rng.uniform(1, 80, (15, 3)), rng.uniform(500, 1500, 15)])
    total, area = rng.integers(300, 3000, 15).astype(float), rng.uniform(1e3, 3e3, 15)
    counts = rng.poisson(total[:, None] * density[:, :3] / density[:, 3:])
    amount = density[:, 3] * area
    scale = np.array([total[section == s].sum() / amount[section == s].sum() for s in section])
    wanted = 0.0
    for k, mean, d in [
        *((counts[:, j], total * density[:, j] / density[:, 3], d) for j, d in enumerate((0.2, 0.5, 1.5))),
        (total, scale * amount, 0.3),
    ]:
        wanted -= nbinom.logpmf(k, 1 / d, 1 / (1 + mean * d)).sum()
    found = _loss(rates, density, counts, total, area, section)
    assert found == pytest.approx(wanted / 4 / (total.sum() / 1e4), rel=1e-4)
    brighter = np.where(section == 1, 3.0, 1.0)[:, None]  # how much RNA a section gives up is free
    assert _loss(rates, density * brighter, counts, total, area, section) == pytest.approx(found, rel=1e-5)
    other = density * np.where(np.arange(15) == 2, 3.0, 1.0)[:, None]  # not how it is spread over its shapes
    assert abs(_loss(rates, other, counts, total, area, section) - found) > 1e-3 * found


def test_a_batch_without_shapes_costs_nothing():
    from stpredict.models._counts import CountRates

    none = np.zeros(0)
    assert _loss(CountRates(3, 8), np.zeros((0, 4)), np.zeros((0, 3)), none, none, none.astype(int)) == 0.0


def test_all_rna_is_one_map_and_trains_the_density_alone(colour_section):
    import torch

    from stpredict.models import PixNet

    model = PixNet(config=_config(), seed=0)
    section, _ = _measured(colour_section(0))
    model.prepare([section])
    samples = model.samples([section], train=True)
    batch, rates = samples.collate([samples[0], samples[1]]), model.count_rates
    latent, row = model.latent(batch), model.query(GENES)[-1]
    torch.testing.assert_close(rates.rna(latent, row)[:, 0], torch.einsum("d,bdrc->brc", row, latent))
    rates.rna(latent, row).sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"count_rates.density.weight", "count_rates.density.bias"}


def test_it_starts_at_the_mean_share_everywhere(colour_section):
    import torch

    from stpredict.models import PixNet

    model = PixNet(config=_config(), seed=0)
    section, counts = _measured(colour_section(0))
    model.prepare([section])
    with torch.no_grad():
        model.genes_head.weight.zero_()
    values = _infer(model, section).values
    share = counts.sum(axis=0) / section.total.sum()
    np.testing.assert_allclose(values, np.broadcast_to(np.log1p(1e4 * share), values.shape), rtol=1e-4)


def test_dispersions_start_at_their_moments(colour_section):
    from stpredict.models._counts import CountRates

    section, rng = colour_section(0), np.random.default_rng(5)
    n = 4000
    section = replace(
        section, geometry=np.repeat(section.geometry[:1], n), radius=np.ones(n), ids=np.arange(n),
        area=np.full(n, 3.0), expression=None,
    )  # fmt: skip
    total = rng.poisson(2000 * rng.gamma(5.0, 1 / 5.0, n)) + 1.0
    counts = rng.poisson(total[:, None] * np.array([0.01, 0.02, 0.05]) * rng.gamma(2.0, 1 / 2.0, (n, 3)))
    expression = np.log1p(1e4 * counts / total[:, None]).astype(np.float32)
    rates = CountRates(3, 8)
    rates.start([replace(section, expression=expression, total=total)])
    np.testing.assert_allclose(rates.log_dispersion.detach().exp().numpy(), [0.5, 0.5, 0.5, 0.2], rtol=0.15)
    np.testing.assert_allclose(rates.share.numpy(), [0.01, 0.02, 0.05], rtol=0.05)


def test_a_shape_reads_the_share_of_what_lies_inside(model, colour_section):
    """Layer against raster, in NumPy: rates are added up first, and divided and logged once."""
    from stpredict._coverage import coverage
    from stpredict._window import Window

    section = colour_section(2)
    raster = np.full((4, 128, 128), np.nan, np.float32)
    found = _infer(model, section, raster=lambda y, x, part: raster.__setitem__((slice(None), y, x), part))
    assert model.channels(["blue", "red"]) == ["blue", "red", "__total__"]
    assert raster.min() > 0
    covered = coverage(section.shapes, Window(0, 0, 512, 512), cell_px=4)
    sums = covered @ raster.reshape(4, -1).T.astype(np.float64)
    np.testing.assert_allclose(found.values, np.log1p(1e4 * sums[:, :3] / sums[:, 3:]), rtol=1e-4)
    logs = (covered @ np.log1p(1e4 * raster[:3] / raster[3]).reshape(3, -1).T) / covered.sum(axis=1)[:, None]
    assert np.abs(found.values - logs).max() > 1e-2  # the mean of logs is another number
    np.testing.assert_allclose(_infer(model, section, ("blue",)).values, found.values[:, 2:], rtol=1e-5)


def test_a_large_shape_is_the_rna_weighted_mean_of_its_parts(model, colour_section):
    """Squares that tile one: its share is theirs, weighted by their RNA."""
    import shapely

    def at(squares):
        n = len(squares)
        return replace(
            colour_section(2), geometry=np.array(squares, dtype=object), radius=np.full(n, np.nan), ids=np.arange(n),
            area=np.array([s.area for s in squares]), expression=None, genes=None,
        )  # fmt: skip

    parts = [shapely.box(x, y, x + 37, y + 29) for x in range(20, 168, 37) for y in range(31, 147, 29)]
    raster = np.zeros((4, 128, 128), np.float32)
    of_parts = _infer(model, at(parts), raster=lambda y, x, part: raster.__setitem__((slice(None), y, x), part))
    whole = _infer(model, at([shapely.union_all(parts)])).values[0]
    from stpredict._coverage import coverage
    from stpredict._window import Window

    covered = coverage(at(parts).shapes, Window(0, 0, 512, 512), cell_px=4)
    rna = covered @ raster[3].ravel().astype(np.float64)
    np.testing.assert_allclose(np.expm1(whole), (rna / rna.sum()) @ np.expm1(of_parts.values), rtol=1e-4)


def test_the_level_of_all_rna_is_set_and_changes_no_value(model, colour_section):
    import copy

    import torch

    section = colour_section(2)
    values, other = _infer(model, section).values, copy.deepcopy(model)
    other.count_rates.level *= 7
    np.testing.assert_allclose(_infer(other, section).values, values, rtol=1e-5)
    training = [_measured(colour_section(seed))[0] for seed in (0, 1)]
    other.finish(training)
    torch.testing.assert_close(other.count_rates.level, model.count_rates.level, rtol=1e-4, atol=0)


def test_the_sum_has_the_same_shares(model, colour_section):
    section, plain = colour_section(2), model.config
    mean = _infer(model, section).values
    model.config = replace(plain, reduction="sum")
    try:
        np.testing.assert_allclose(_infer(model, section).values, mean, rtol=1e-4)
    finally:
        model.config = plain


def test_pieces_add_up_to_the_whole(model, colour_section, tmp_path):
    from stpredict._inference import RuntimeOptions, n_chunks, run_chunks
    from stpredict._spatialdata import PartialFiles

    section, run = colour_section(2), RuntimeOptions(batch_size=1, **RUN).resolve(model.output)
    n, parts = n_chunks(model, section, runtime=run, raster=False), PartialFiles(tmp_path)
    assert n == 4
    for which in ([3, 1], [0]):
        run_chunks(model, section, GENES, which, runtime=run, parts=parts)
    np.testing.assert_array_equal(_infer(model, section, parts=parts).values, _infer(model, section).values)


def test_members_are_averaged_in_rates(colour_section):
    from stpredict import models

    members = [models.PixNet(config=_config(), seed=seed) for seed in range(2)]
    sections = [_measured(colour_section(seed))[0] for seed in (0, 1)]
    import torch

    for k, each in enumerate(members):
        each.prepare(sections)
        with torch.no_grad():
            each.genes_head.weight.normal_(0.1 * (k - 1), 0.1, generator=torch.Generator().manual_seed(k))
            each.count_rates.level *= 10.0**k  # forgotten by `finish`
        each.finish(sections)
    ensemble, section = models.Ensemble(members), colour_section(2)
    rasters = [np.zeros((4, 128, 128), np.float32) for _ in range(3)]
    each = np.stack(
        [
            _infer(m, section, raster=lambda y, x, part, r=r: r.__setitem__((slice(None), y, x), part)).values
            for m, r in zip(members, rasters[:2], strict=True)
        ]
    )
    found = _infer(
        ensemble, section, raster=lambda y, x, part: rasters[2].__setitem__((slice(None), y, x), part)
    )  # fmt: skip
    np.testing.assert_allclose(rasters[2], np.mean(rasters[:2], axis=0), rtol=1e-4)
    from stpredict._coverage import coverage
    from stpredict._window import Window

    covered = coverage(section.shapes, Window(0, 0, 512, 512), cell_px=4)
    sums = covered @ np.mean(rasters[:2], axis=0, dtype=np.float64).reshape(4, -1).T
    np.testing.assert_allclose(found.values, np.log1p(1e4 * sums[:, :3] / sums[:, 3:]), rtol=1e-4)
    np.testing.assert_allclose(found.spread, each.std(axis=0, ddof=1), rtol=1e-3, atol=1e-4)
    assert np.abs(found.values - each.mean(axis=0)).max() > 1e-3
    with pytest.raises(ValueError, match=r"agree in link.*member 1"):
        models.Ensemble([models.PixNet(config=_config()), models.PixNet(config=_config(link="log1p"))])


def test_windows_carry_totals_and_areas(model, colour_section):
    sections = [_measured(colour_section(seed))[0] for seed in (0, 1)]
    samples = model.samples(sections, train=True, seed=0)
    batch = samples.collate([samples[i] for i in range(4)])
    wanted = np.array([sections[i].total[k] for i, k in batch.rows])
    np.testing.assert_array_equal(batch.extra["total"].numpy(), wanted)
    np.testing.assert_allclose(batch.extra["area"].numpy(), np.pi * 24**2, rtol=1e-5)
    assert model.samples([sections[0], colour_section(1)], train=True).collate([samples[0]]).extra == {}


def test_values_that_are_no_raw_counts_are_refused(model, colour_section):
    section, _ = _measured(colour_section(0))
    with pytest.raises(ValueError, match=r"section 'colour0' has none.*target='as_is'.*link='identity'"):
        model.prepare([colour_section(0)])
    even = replace(section, total=np.rint(9000 + 800 * np.random.default_rng(0).normal(size=section.n_shapes)))
    with pytest.raises(ValueError, match=r"look depth-equalised: the totals of its 24 shapes differ by \d%.*layer="):
        model.prepare([even])


def test_no_gene_is_called_as_all_rna_is():
    from stpredict.models import PixNet

    with pytest.raises(ValueError, match="no gene can be called '__total__'"):
        PixNet(["red", "__total__"])


def test_in_bf16_the_loss_is_nearly_the_same(model, colour_section):
    """Over the windows of a section: those of single ones scatter by some per cent, to either side."""
    import torch

    samples = model.samples([_measured(colour_section(0))[0]], train=False)
    exact, rounded = 0.0, 0.0
    for k in range(len(samples)):
        batch = samples.collate([samples[k]])
        with torch.no_grad():
            exact += float(model.loss(batch, model.query(GENES)))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(batch, model.query(GENES))
        assert loss.dtype == torch.float32
        rounded += float(loss)
    assert rounded == pytest.approx(exact, rel=0.02)  # 1.0 % on a processor with bfloat16, less emulated


def _trained(sections, link, encoder="mobilenetv2_035", **plan):
    from stpredict._training import TrainOptions, fit
    from stpredict.models import PixNet

    model = PixNet(config=_config(link=link, context_rank=0, encoder=encoder), seed=0)
    options = TrainOptions(**({"batch_size": 2, "device": "cpu", "precision": "32", "progress": False} | plan))
    history = fit(model, sections, [], options)
    return model, history


@pytest.mark.long
def test_bins_of_fifteen_counts_train(colour_section):
    """Bins of 16 um of which most have not one count of a gene: what is learnt is the colour all the same."""
    import shapely

    def bins(seed):
        section = colour_section(seed)
        corners = [(x, y) for y in range(0, 512, 16) for x in range(0, 512, 16)]
        pixels = section.image.pixels.astype(float)
        mean = np.array([pixels[:, y : y + 16, x : x + 16].mean(axis=(1, 2)) for x, y in corners]) / 255
        n = len(corners)
        return replace(
            section, geometry=np.array([shapely.box(x, y, x + 16, y + 16) for x, y in corners], dtype=object),
            radius=np.full(n, np.nan), ids=np.arange(n), area=np.full(n, 256.0), expression=mean.astype(np.float32),
        )  # fmt: skip

    sections = [_measured(bins(seed), total=15, seed=seed)[0] for seed in (0, 1)]
    assert np.median(sections[0].total) < 16
    model, history = _trained(sections, "counts", "mobilenetv2_100", max_epochs=16, lr=0.01)
    truth = bins(2)
    values = _infer(model, truth).values
    r = [np.corrcoef(values[:, j], truth.expression[:, j])[0, 1] for j in range(3)]
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert min(r) > 0.5


def test_saved_and_loaded_it_is_the_same(model, colour_section, tmp_path):
    from stpredict.models import load
    from stpredict.models._base import new_card

    model.card = new_card(model)
    model.save(tmp_path / "counts")
    again = load(tmp_path / "counts")
    section = colour_section(2)
    np.testing.assert_array_equal(_infer(again, section).values, _infer(model, section).values)


def test_a_text_head_maps_a_gene_that_it_never_saw(colour_section):
    import torch

    from stpredict._embeddings import GeneEmbeddings
    from stpredict.models import PixNet

    names = (*GENES, "rosy")
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    texts = GeneEmbeddings(genes=names, vectors=vectors, encoder="letters")
    made = PixNet(GENES, head="text", embeddings=texts).config
    config = replace(made, **{k: getattr(_config(), k) for k in ("mpp", "filters", "window_px", "core_px", "halo_px")})
    model = PixNet(config=replace(config, link="counts"), embeddings=texts, seed=0)
    section, counts = _measured(colour_section(0))
    model.prepare([section])
    samples = model.samples([section], train=True)
    batch = samples.collate([samples[0], samples[1]])
    loss = model.loss(batch, model.query(batch.genes))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.genes_head.network.parameters())
    with torch.no_grad():
        model.genes_head.network[-1].weight.zero_()
    values = _infer(model, section, ("rosy", "red")).values
    share = counts.sum(axis=0) / section.total.sum()  # of a gene that was never counted: the panel's mean
    np.testing.assert_allclose(
        values, np.broadcast_to(np.log1p(1e4 * np.r_[share.mean(), share[0]]), values.shape), 1e-4
    )
