"""EGN: loss, pool, bridge and search against NumPy; exemplars against leaks; published sizes against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")


def fresh(**changes):
    from stpredict.models import EGN, EGNConfig

    torch.manual_seed(0)
    small = {"genes": GENES, "mpp": 1.0, "patch_px": 64, "width": 32, "depth": 2, "heads": 2, "head_width": 16}
    small |= {"mlp_width": 48, "bridge_heads": 2, "bridge_head_width": 16, "exemplars": 4}
    return EGN(config=EGNConfig(**small | changes))


def fit(model, train, val=(), **plan):
    from stpredict import _training

    names = tuple(section.name for section in train)
    plan = {"max_epochs": 2, "device": "cpu", "precision": "32", "progress": False} | plan
    return _training.fit(model, list(train), list(val), _training.TrainOptions(**plan), sections=names)


def predict(model, section, genes=GENES, **runtime):
    from stpredict import _inference

    run = _inference.RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return _inference.predict(model, section, list(genes), runtime=run)[0]


def batch_of(model, sections, *, train=False):
    samples = model.samples(sections, train=train)
    return samples.collate([samples[i] for i in range(len(samples))])


def exemplars(model, sections, *, train=True):
    """(n, k) bank rows of every window's exemplars."""
    batch = batch_of(model, sections, train=train)
    where = (batch.extra[name] for name in ("section", "corner", "group"))
    return model.nearest(model.encoder(batch.image).mean(1), *where).numpy()


@pytest.fixture(scope="module")
def trained(colour_section):
    model = fresh()
    fit(model, [colour_section(0), colour_section(1)])
    return model


def test_the_loss_is_the_squared_error_and_the_correlation_in_min_max_units(trained, colour_section):
    measured = np.concatenate([colour_section(seed).expression for seed in (0, 1)])
    low, span = measured.min(axis=0), np.ptp(measured, axis=0)
    np.testing.assert_array_equal(trained.low.numpy(), low)
    np.testing.assert_allclose(trained.span.numpy(), span, rtol=1e-6)
    trained.eval()
    batch = batch_of(trained, [colour_section(2)])
    with torch.no_grad():
        loss = float(trained.loss(batch, trained.query(batch.genes)))
    pred, true = ((v - low) / span for v in (predict(trained, colour_section(2)), batch.measured.numpy()))
    pcc = [np.corrcoef(pred[:, j], true[:, j])[0, 1] for j in range(3)]
    assert loss == pytest.approx(((pred - true) ** 2).mean() + 0.5 * (1 - np.mean(pcc)), rel=1e-4)
    one = replace(trained.config, pcc_weight=1.0)
    trained.config, kept = one, trained.config
    with torch.no_grad():
        assert float(trained.loss(batch, trained.query(GENES))) == pytest.approx(loss + 0.5 * (1 - np.mean(pcc)), 1e-4)
    trained.config = kept


def test_a_batch_of_one_has_a_finite_loss(trained, colour_section):
    samples = trained.train().samples([colour_section(0)], train=True)
    batch = samples.collate([samples[3]])
    loss = trained.loss(batch, trained.query(GENES))
    loss.backward()
    assert np.isfinite(float(loss.detach()))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained.parameters())
    trained.zero_grad()


@pytest.mark.parametrize("temperature", [0.0, 0.1, 3.0, float("inf")])
def test_the_pool_is_the_mean_and_an_attention_of_every_score_over_places(temperature):
    from stpredict.models.egn import ResidualPool

    torch.manual_seed(0)
    pool = ResidualPool(6, weight=0.5, temperature=temperature).double()
    z = torch.randn(4, 9, 6, dtype=torch.float64)
    weight, bias = pool.scores.weight.detach().numpy(), pool.scores.bias.detach().numpy()
    expected = np.zeros((4, 6))
    for i, tokens in enumerate(z.numpy()):
        for j in range(6):
            score = tokens @ weight[j] + bias[j]
            share = np.exp(temperature * (score - score.max())) if np.isfinite(temperature) else score == score.max()
            expected[i, j] = score.mean() + 0.5 * (score * share).sum() / share.sum()
    np.testing.assert_allclose(pool(z).detach().numpy(), expected, rtol=1e-10)


def test_the_bridge_is_the_paper_s_formula():
    from stpredict.models.egn import ExemplarBridge

    torch.manual_seed(0)
    bridge = ExemplarBridge(8, n_tokens=4, heads=2, head_width=3, gate_width=5).double()
    z, h = torch.randn(3, 4, 8).double(), torch.randn(3, 8).double()
    r, s = torch.randn(2, 3, 5, 8).double()
    there = torch.ones(3, 5, dtype=torch.bool)
    there[1, 3:], there[2] = False, False
    with torch.no_grad():
        out = bridge(z, h, r, s, there)
        for n in range(3):
            told = torch.zeros(5, 8).double()
            for j in range(5):
                gates = torch.sigmoid(bridge.gates(torch.cat([h[n], h[n] - r[n, j]])))
                told[j] = gates[:8] * bridge.value(s[n, j])
                torch.testing.assert_close(out[2][n, j], r[n, j] + gates[8:] * bridge.value(s[n, j]))
            kept = told[there[n]]
            new = h[n] + (kept.mean(0) if len(kept) else 0)
            mask = torch.sigmoid(bridge.mask(new)).reshape(4, 2)
            heads = [bridge.tokens(z[n])[:, 3 * i : 3 * i + 3] * mask[:, [i]] for i in range(2)]
            o = torch.cat(heads, dim=1)
            torch.testing.assert_close(out[0][n], z[n] + o @ bridge.to_tokens.weight.T)
            torch.testing.assert_close(out[1][n], new + o.mean(0) @ bridge.to_window.weight.T)


def test_exemplars_are_the_nearest_windows_of_the_other_sections(trained, colour_section):
    sections = [colour_section(0), colour_section(1)]
    features = trained.encoder.encode_sections(sections, patch_px=64).mean(1).numpy()
    np.testing.assert_allclose(trained.bank_features.numpy(), features, atol=1e-6)
    owner = np.repeat([0, 1], 24)
    distance = np.sqrt(((features[:, None].astype(float) - features[None]) ** 2).sum(axis=2))
    distance[owner[:, None] == owner] = np.inf
    expected = np.argsort(distance, axis=1)[:, :4]
    for train in (True, False):  # validation and a prediction on training sections are held to the same rule
        np.testing.assert_array_equal(exemplars(trained, sections, train=train), expected)


def test_a_training_window_never_has_an_exemplar_of_its_own_section(trained, colour_section):
    from stpredict._section import take

    sections = [colour_section(1), colour_section(0)]  # in another order than in training
    owner = np.repeat([1, 0], 24)
    assert (exemplars(trained, sections) // 24 == 1 - owner[:, None]).all()
    part = replace(take(colour_section(1), np.arange(5, 11)), name="a block of it")
    assert (exemplars(trained, [part]) < 24).all()
    # the rule is what keeps a window from itself: as a window of another section it is its own nearest
    batch = batch_of(trained, [colour_section(0)])
    found = trained.nearest(
        trained.encoder(batch.image).mean(1), torch.full_like(batch.extra["section"], -1), batch.extra["corner"]
    )
    np.testing.assert_array_equal(found[:, 0].numpy(), np.arange(24))


def test_a_new_section_has_all_of_the_bank_and_enters_it_never(trained, colour_section):
    new = replace(colour_section(2), name=colour_section(0).name)  # names do not make a section
    found = exemplars(trained, [new], train=False)
    features = trained.encoder(batch_of(trained, [new]).image).mean(1).numpy().astype(float)
    bank = trained.bank_features.numpy()
    distance = ((features[:, None] - bank[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found, np.argsort(distance, axis=1)[:, :4])
    assert set(np.unique(found // 24)) == {0, 1}
    assert np.sqrt(distance.min()) > 1e-3  # no row of the bank is a window of the new section
    shifted = replace(new, expression=new.expression + 100)
    before = trained.bank_expression.clone()
    np.testing.assert_array_equal(predict(trained, shifted), predict(trained, new))
    torch.testing.assert_close(trained.bank_expression, before, atol=0, rtol=0)


def test_the_bank_is_the_training_windows_and_nothing_else(colour_section):
    train = [colour_section(0), colour_section(1)]
    measured = np.concatenate([section.expression for section in train])
    held = replace(colour_section(2), expression=colour_section(2).expression + 100)
    model = fresh()
    history = fit(model, train, [held])
    assert np.isfinite(history["val_loss"]).all()
    expected = (measured - measured.min(axis=0)) / np.ptp(measured, axis=0)
    np.testing.assert_allclose(model.bank_expression.numpy(), expected, atol=1e-6)
    assert len(model.bank_features) == len(model.bank_section) == len(model.bank_corner) == 48
    assert predict(model, held).max() < 10


def test_with_one_training_section_no_exemplar_overlaps(colour_section):
    section = colour_section(0)
    model = fresh(exemplars=8)
    model.prepare([section])
    found = exemplars(model, [section])
    centre = np.array([(shape.y, shape.x) for shape in section.geometry])
    apart = np.abs(centre[:, None] - centre[None]).max(axis=2)
    distance = np.sqrt(((model.bank_features[:, None] - model.bank_features) ** 2).sum(2).numpy())
    np.testing.assert_array_equal(found[:, 0], np.argmin(np.where(apart > 64, distance, np.inf), axis=1))
    assert apart[np.arange(24)[:, None], found].min() > 63
    assert np.any(apart[0][apart[0] > 0] < 64)  # else there would be nothing to leave out


def of_group(section, group):
    return replace(section, group=group)


def test_exemplars_are_of_other_patients_where_sections_carry_one(colour_section):
    """Four sections of three patients, against a search by hand."""
    sections = [of_group(colour_section(seed), group) for seed, group in enumerate("AABC")]
    model = fresh()
    model.prepare(sections)
    features = model.bank_features.numpy().astype(float)
    distance = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    patient = np.repeat([0, 0, 1, 2], 24)
    distance[patient[:, None] == patient] = np.inf
    expected = np.argsort(distance, axis=1)[:, :4]
    for train in (True, False):
        np.testing.assert_array_equal(exemplars(model, sections, train=train), expected)
    held = of_group(colour_section(4), "B")  # another section of a patient of the bank, as validation may have it
    assert set(patient[exemplars(model, [held], train=False)].ravel()) <= {0, 2}
    new = of_group(colour_section(4), "D")
    assert len(set(patient[exemplars(model, [new], train=False)].ravel())) == 3
    unknown = colour_section(4)  # of nobody knows whom: the rule of sections
    np.testing.assert_array_equal(exemplars(model, [unknown], train=False), exemplars(model, [new], train=False))


def test_a_bank_of_one_patient_keeps_sections_apart(colour_section, caplog):
    sections = [of_group(colour_section(seed), "C") for seed in (0, 1)]
    model, plain = fresh(), fresh()
    with caplog.at_level("INFO", logger="stpredict"):
        model.prepare(sections)
    assert "all sections are of C, so exemplars come from other sections" in caplog.text
    plain.prepare([colour_section(0), colour_section(1)])
    np.testing.assert_array_equal(exemplars(model, sections), exemplars(plain, [colour_section(0), colour_section(1)]))
    alone = fresh()
    alone.prepare(sections[:1])  # one section of one patient: nothing that overlaps
    single = fresh()
    single.prepare([colour_section(0)])
    np.testing.assert_array_equal(exemplars(alone, sections[:1]), exemplars(single, [colour_section(0)]))


def test_a_group_of_some_sections_only_is_refused(colour_section):
    sections = [of_group(colour_section(0), "A"), colour_section(1), colour_section(2)]
    with pytest.raises(
        ValueError, match=r"'colour0' is of 'A', but of \['colour1', 'colour2'\] none is known"
    ) as error:
        fresh().prepare(sections)
    assert 'sdata.attrs["patient"]' in str(error.value)
    fresh(exemplars_of="sections").prepare(sections)


def test_a_model_of_an_earlier_version_keeps_its_gates_and_its_rule(colour_section, tmp_path):
    """Without the new fields in its card, and without a bank of groups, it gives the same predictions."""
    import json

    from stpredict import models

    old = fresh(bridge_heads=3, gate_width=48, exemplars_of="sections")
    fit(old, [of_group(colour_section(0), "A"), of_group(colour_section(1), "B")])
    old.save(tmp_path / "egn")
    path = tmp_path / "egn" / "card.json"
    card = json.loads(path.read_text())
    for name in ("gate_width", "exemplars_of"):
        del card["config"][name]
    path.write_text(json.dumps(card))
    again = models.load(tmp_path / "egn")
    assert (again.config.gate_width, again.config.exemplars_of) == (48, "sections")
    section = of_group(colour_section(2), "A")
    np.testing.assert_array_equal(predict(again, section), predict(old, section))
    # a fresh one is another: its gates have a width of their own
    assert fresh(bridge_heads=3).config.gate_width == 256


def test_a_group_is_known_by_a_number_that_never_changes(colour_section):
    """Saved models hold it."""
    from stpredict.models.egn import group_of

    assert group_of(of_group(colour_section(0), "C"), 5) == 8697911026488277496
    assert group_of(colour_section(0), 5) == 5


def test_fewer_exemplars_than_wanted_are_fewer(colour_section):
    from stpredict._section import take

    some = [take(colour_section(0), np.arange(3)), take(colour_section(1), np.arange(5))]
    wanted = fresh(exemplars=6)
    wanted.prepare(some)
    found = exemplars(wanted, some)
    assert ((found >= 0).sum(axis=1) == [5, 5, 5, 3, 3, 3, 3, 3]).all()
    exact = fresh(exemplars=3)
    exact.prepare(some)
    np.testing.assert_allclose(predict(wanted, some[1]), predict(exact, some[1]), atol=1e-6)
    alone = fresh()
    alone.prepare([take(colour_section(0), np.arange(1))])  # a bank of one window, which may not be its own exemplar
    assert np.isfinite(predict(alone, colour_section(0))[0]).all()
    assert (exemplars(alone, [take(colour_section(0), np.arange(1))]) == -1).all()


def test_exemplars_and_their_expression_change_the_answer(trained, colour_section):
    import copy

    section = colour_section(2)
    other = copy.deepcopy(trained)
    other.bank_expression = other.bank_expression.flip(0)
    assert np.abs(predict(other, section) - predict(trained, section)).max() > 1e-5
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    shuffled = copy.deepcopy(trained)  # the same bank in another order
    for name in ("bank_features", "bank_expression", "bank_section", "bank_corner"):
        setattr(shuffled, name, getattr(trained, name)[order])
    np.testing.assert_allclose(predict(shuffled, section), predict(trained, section), atol=1e-5)


def test_an_answer_does_not_depend_on_the_company_or_the_order(trained, colour_section):
    from stpredict._section import take

    section = colour_section(2)
    whole = predict(trained, section)
    for j, gene in enumerate(GENES):
        np.testing.assert_allclose(predict(trained, section, [gene])[:, 0], whole[:, j], atol=1e-6)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(predict(trained, take(section, order)), whole[order], atol=1e-5)


def test_the_head_starts_at_the_mean_of_every_gene(colour_section):
    model = fresh()
    sections = [colour_section(0), colour_section(1)]
    model.prepare(sections)
    measured = np.concatenate([section.expression for section in sections])
    apart = np.abs(predict(model, colour_section(2)) - measured.mean(axis=0)) / measured.std(axis=0)
    assert apart.max() < 1


def test_it_learns_the_colours(colour_section):
    sections = [colour_section(seed) for seed in (0, 1, 2)]
    model = fresh(feature_dropout=0.0, dropout=0.0)
    fit(model, sections, max_epochs=10, lr=2e-3)
    pred = np.concatenate([predict(model, section) for section in sections])
    true = np.concatenate([section.expression for section in sections])
    assert min(np.corrcoef(pred[:, j], true[:, j])[0, 1] for j in range(3)) > 0.8


def test_tokens_from_pixels_see_every_place(colour_section, tmp_path):
    from stpredict import models

    model = fresh(tokens="pixels", token_px=16)
    assert model.position.shape == (16, 32)
    fit(model, [colour_section(0), colour_section(1)], max_epochs=1)
    model.eval()
    batch = batch_of(model, [colour_section(2)])
    image = batch.image[:1]
    changed = image.clone()
    changed[..., 48:, 16:32] = 255 - changed[..., 48:, 16:32]
    features = model.encoder(image)
    with torch.no_grad():
        apart = (model._tokens(image, features) - model._tokens(changed, features)).abs().amax(2)[0]
    assert (torch.nonzero(apart > 1e-6).flatten() == torch.tensor([13])).all()  # row 3, column 1
    model.save(tmp_path / "egn")
    again = models.load(tmp_path / "egn")
    np.testing.assert_array_equal(predict(again, colour_section(2)), predict(model, colour_section(2)))


def test_the_published_sizes_are_those_of_the_paper():
    from stpredict.models import EGN

    with torch.device("meta"):
        model = EGN([f"g{i}" for i in range(250)], config="published")
    d, f, g, tokens, inner = 1024, 2048, 250, (256 // 32) ** 2, 8 * 64
    linear = lambda a, b: a * b + b  # noqa: E731
    block = 2 * (2 * d) + d * 3 * d + linear(d, d) + linear(d, 4096) + linear(4096, d)
    gates = 2 * (2 * d) + linear(2 * d, 256) + linear(256, 2 * d)  # whatever the heads are
    bridge = linear(d, d) + gates + 2 * d + linear(d, 8 * tokens) + 2 * d + linear(d, inner) + 2 * inner * d
    refine = 2 * (2 * d + 2 * linear(d, d))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {
        "encoder": 23_508_032,
        "embed_tokens": linear(3 * 32 * 32, d),
        "projector": linear(f, d) + linear(f + g, d) + linear(g, d) + refine,
        "blocks": 8 * block,
        "bridges": 4 * bridge,
        "pool": linear(d, d),
        "norm": 2 * 2 * d,
        "genes_head": linear(2 * d, g),
    }
    assert block == 12_593_152
    assert model.position.shape == (64, 1024)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    c, recipe = model.config, model.recipe
    assert (c.patch_px, c.exemplars, c.pcc_weight, c.bridge_every) == (256, 9, 1.0, 2)
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.max_epochs) == (5e-4, 1e-4, 32, 50)


def test_a_section_is_known_by_its_pixels(colour_section):
    from stpredict._section import take
    from stpredict.models.egn import identity

    a, b = colour_section(0), colour_section(1)
    assert identity(a) == identity(replace(take(a, np.arange(4)), name="part"))
    assert identity(a) != identity(replace(b, name=a.name))
    assert 0 <= identity(a) < 2**63


def test_the_number_of_a_section_never_changes():
    """Saved models hold it, and a section that is not recognised would be shown its own measured values."""
    from stpredict._section import ImageView, Section
    from stpredict.models.egn import identity

    y, x = np.mgrid[:300, :200]
    pixels = np.stack([(3 * y + x) % 251, (y + 7 * x) % 241, (5 * y + 2 * x) % 239]).astype(np.uint8)
    nothing = np.zeros(0)
    section = Section("s", ImageView(pixels, (1.0, 1.0), 1.0), nothing.astype(object), nothing, nothing, nothing)
    assert identity(section) == 745688655123814909


def test_what_cannot_be_is_refused(colour_section, monkeypatch):
    from stpredict.models import EGN

    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        EGN(GENES, config="large")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations are checked in tests alone
    with pytest.raises(ValueError, match="tokens='words' must be one of 'encoder', 'pixels'"):
        fresh(tokens="words")
    with pytest.raises(ValueError, match="patch_px=80 must be a multiple of 32 px"):
        fresh(patch_px=80)
    with pytest.raises(ValueError, match="depth=1 leaves no place for a bridge after every 2 blocks"):
        fresh(depth=1)
    with pytest.raises(ValueError, match="no bank of training windows: call tl.train"):
        predict(fresh(), colour_section(0))
