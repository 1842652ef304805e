"""SGN: against its formula on dense matrices, and for what an answer must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

GENES = ("red", "green", "blue")
UNSEEN = ("cyan", "mauve")


def embeddings(genes=(*GENES, *UNSEEN), *, width=8, encoder="letters", **fields):
    from stpredict._embeddings import GeneEmbeddings

    vectors = np.stack([np.random.default_rng([ord(letter) for letter in gene]).normal(size=width) for gene in genes])
    return GeneEmbeddings(genes=tuple(genes), vectors=vectors.astype(np.float32), encoder=encoder, **fields)


def fresh(**changes):
    from stpredict.models import SGN

    torch.manual_seed(0)
    config = SGN(GENES, embeddings=embeddings()).config
    small = {"patch_px": 64, "mpp": 1.0, "width": 32, "out_width": 16} | changes
    return SGN(config=dataclasses.replace(config, **small), embeddings=embeddings())


def train(model, sections, *, val=(), epochs=3):
    from stpredict._training import TrainOptions, fit

    plan = TrainOptions(max_epochs=epochs, device="cpu", precision="32", progress=False)
    return fit(model, sections, list(val), plan, sections=("a", "b"))


@pytest.fixture(scope="module")
def trained(colour_section):
    model = fresh(train_genes=2)
    train(model, [colour_section(0), colour_section(1)])
    return model


def predict(model, section, genes, **runtime):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    run = RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output)
    return infer(model, section, list(genes), runtime=run)[0]


def adjacency(apart, n):
    """(n, n) rows of 1 / count at the `n` least finite entries of each row of `apart`; ties by column."""
    out = np.zeros_like(apart)
    for i, row in enumerate(apart):
        chosen = [j for j in np.argsort(row, kind="stable") if np.isfinite(row[j])][:n]
        out[i, chosen] = 1 / max(1, len(chosen))
    return out


def by_hand(model, latent, genes):
    """(spots, genes): the formula with dense matrices, in NumPy."""
    x, place = latent[:, :-2].astype(float), latent[:, -2:]
    order = np.lexsort((*latent.T[:8], place[:, 1], place[:, 0]))
    x, place = x[order], place[order]
    squares = np.square(place[:, None] - place).sum(-1).astype(float)
    near = adjacency(np.where((squares > 2) | np.eye(len(x), dtype=bool), np.inf, squares), 5)
    alike = adjacency(np.linalg.norm(x[:, None] - x, axis=-1) + np.diag(np.full(len(x), np.inf)), 5)
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    if model.config.pretransform:
        x = x @ state["pretransform.weight"].T
    for k in range(model.config.depth):
        parts = [
            x @ state[f"layers.{k}.own.{kind}.weight"].T
            + among @ x @ state[f"layers.{k}.others.{kind}.weight"].T
            + state[f"layers.{k}.others.{kind}.bias"]
            for kind, among in enumerate((near, alike))
        ]
        mean = (parts[0] + parts[1]) / 2
        x = np.where(mean > 0, mean, 0.2 * mean)
    z = x @ state["out.weight"].T + state["out.bias"]
    with torch.no_grad():
        made = model.text_network(model.texts.rows(genes)).double().numpy()
    weight = made[:, :-1] / np.linalg.norm(made[:, :-1], axis=1, keepdims=True)
    at = [GENES.index(gene) if gene in GENES else None for gene in genes]
    mean, spread = (
        np.array([state[key].mean() if i is None else state[key][i] for i in at]) for key in ("mean", "spread")
    )
    return (mean + spread * (z @ weight.T + made[:, -1]))[np.argsort(order)]


def test_an_answer_is_the_formula(trained, colour_section):
    from stpredict._inference import RuntimeOptions, embed
    from stpredict.models._patches import array_grid

    features, _ = embed(
        trained,
        colour_section(2),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False).resolve(trained.output),
    )
    assert features.shape == (24, trained.encoder.width)  # what it sees, without the places
    latent = np.concatenate([features, array_grid(colour_section(2))], axis=1)
    expected = by_hand(trained, latent, ("cyan", *GENES))
    np.testing.assert_allclose(predict(trained, colour_section(2), ("cyan", *GENES)), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-4


def test_an_answer_depends_on_neither_company_nor_order_nor_batch(trained, colour_section):
    from stpredict._section import take

    section, genes = colour_section(2), (*GENES, *UNSEEN)
    whole = predict(trained, section, genes)
    for j, gene in enumerate(genes):
        np.testing.assert_allclose(predict(trained, section, [gene])[:, 0], whole[:, j], atol=1e-6)
    order = [4, 1, 3, 0, 2]
    np.testing.assert_allclose(predict(trained, section, np.array(genes)[order]), whole[:, order], atol=1e-6)
    np.testing.assert_allclose(predict(trained, section, genes, batch_size=5), whole, atol=1e-6)
    spots = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(predict(trained, take(section, spots), genes), whole[spots], atol=1e-5)
    half = predict(trained, take(section, np.arange(12)), genes)
    assert np.abs(half - whole[:12]).max() > 1e-4  # the graph is of the section's shapes


def test_the_loss_compares_each_gene_with_its_own_column_in_min_max_units(trained, colour_section):
    model = trained.eval()
    both = [colour_section(0), colour_section(1)]
    measured = np.concatenate([s.expression for s in both])
    low, high = measured.min(axis=0), measured.max(axis=0)
    samples = model.samples(both, train=True)
    assert len(samples) == 2 * 2  # every gene expected once with every section, two of three a step
    batches = [samples.collate([samples[i]]) for i in range(12)]
    seen = {batch.genes for batch in batches}
    assert len(seen) > 1
    assert all(len(genes) == 2 for genes in seen)
    for batch in batches[:6]:
        at = [GENES.index(gene) for gene in batch.genes]
        section = both[batch.rows[0, 0]]
        with torch.no_grad():
            loss = float(model.loss(batch, model.query(batch.genes)))
        pred, true = ((v - low) / (high - low) for v in (predict(model, section, GENES), section.expression))
        pred, true = pred[:, at].astype(float), true[:, at].astype(float)
        r = [np.corrcoef(p, t)[0, 1] for p, t in zip(pred.T, true.T, strict=True)]
        assert loss == pytest.approx(np.mean((pred - true) ** 2) + 0.5 * (1 - np.mean(r)), rel=1e-4)
    with torch.no_grad():  # a batch of two sections: the mean of the two
        pair = samples.collate([samples[0], samples[1]])
        halves = (slice(0, 24), slice(24, 48))
        extra = [{name: value[rows] for name, value in pair.extra.items()} for rows in halves]
        alone = [
            model.loss(
                dataclasses.replace(pair, expression=pair.measured[rows], rows=pair.rows[rows], extra=each),
                model.query(pair.genes),
            )
            for rows, each in zip(halves, extra, strict=True)
        ]
        torch.testing.assert_close(model.loss(pair, model.query(pair.genes)), (alone[0] + alone[1]) / 2)


def test_the_scale_of_a_gene_comes_from_training_sections(trained, colour_section):
    measured = np.concatenate([colour_section(seed).expression for seed in (0, 1)])
    np.testing.assert_allclose(trained.mean.numpy(), measured.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(trained.spread.numpy(), measured.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(trained.span.numpy(), np.ptp(measured, axis=0), rtol=1e-6)
    unseen = trained.query(["cyan"])[0].detach()
    for column, values in zip((-3, -2, -1), (trained.mean, trained.spread, trained.span), strict=True):
        assert float(unseen[column]) == pytest.approx(float(values.mean()))
    rows = trained.query((*GENES, *UNSEEN))[:, :-4]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


def test_it_learns_what_it_is_trained_on(colour_section):
    model = fresh(feature_dropout=0.0)
    history = train(model, [colour_section(0)], epochs=40)
    pred = predict(model, colour_section(0), GENES)
    r = [np.corrcoef(p, t)[0, 1] for p, t in zip(pred.T, colour_section(0).expression.T, strict=True)]
    assert np.mean(r) > 0.8
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] / 2


def test_published_shapes_and_parameters():
    from stpredict.models import SGN

    model = SGN(GENES, embeddings=embeddings(width=12), config="published").eval()
    count = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_children()
        if sum(1 for _ in module.parameters())
    }
    norm, linear = 2 * 256, 256 * 256 + 256
    block = 2 * norm + 3 * 256 * 256 + linear + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 256  # LayerScale last
    assert count == {
        "encoder": 11_689_512 - 513_000,  # ResNet18 without its classifier
        "pretransform": 512 * 512,
        "layers": 4 * 2 * (2 * 512 * 512 + 512),
        "out": 512 * 256 + 256,
        "text_network": (12 * 256 + 256) + 2 * 256 + 2 * block + norm + (256 * 257 + 257),
    }
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.encoder.width == 512
    assert model.query(GENES).shape == (3, 256 + 4)
    scales = [p for name, p in model.named_parameters() if name.endswith("factor")]
    assert torch.equal(torch.stack(scales), torch.full((4, 256), 0.1))
    c, r = model.config, model.config.recipe
    assert (c.patch_px, c.depth, c.n_near, c.n_alike, c.train_genes, c.pcc_weight) == (224, 4, 5, 5, 64, 0.5)
    norms = [module.eps for module in model.text_network.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms == [1e-6] * 5
    assert (r.max_epochs, r.lr, r.weight_decay, r.batch_size) == (300, 5e-4, 1e-4, 1)


def test_the_pretransform_stands_before_the_graph_and_after_its_edges(colour_section):
    from stpredict._inference import RuntimeOptions, embed
    from stpredict.models._patches import array_grid

    model = fresh(pretransform=True)
    train(model, [colour_section(0), colour_section(1)], epochs=1)
    run = RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output)
    features, _ = embed(model, colour_section(2), runtime=run)
    latent = np.concatenate([features, array_grid(colour_section(2))], axis=1)
    expected = by_hand(model, latent, ("cyan", *GENES))
    np.testing.assert_allclose(predict(model, colour_section(2), ("cyan", *GENES)), expected, atol=1e-5)


def norm_by_hand(x, state, name, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def text_transformer_by_hand(network, row, *, heads, eps):
    """One text through class token, register and its own token, in NumPy."""
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    x = np.concatenate([state["first"], (row @ state["embed.weight"].T + state["embed.bias"])[None]])
    for k in range(len(network.blocks)):
        name = f"blocks.{k}"
        qkv = norm_by_hand(x, state, f"{name}.attention_norm", eps) @ state[f"{name}.qkv.weight"].T
        q, key, v = qkv.reshape(3, 3, heads, -1).transpose(1, 2, 0, 3)  # tokens, kinds, heads, width
        scores = np.exp(q @ key.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        attended = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(3, -1)
        out = attended @ state[f"{name}.out.0.weight"].T + state[f"{name}.out.0.bias"]
        x = x + state[f"{name}.out.1.factor"] * out
        hidden = norm_by_hand(x, state, f"{name}.mlp.0", eps) @ state[f"{name}.mlp.1.weight"].T
        out = gelu(hidden + state[f"{name}.mlp.1.bias"]) @ state[f"{name}.mlp.4.weight"].T + state[f"{name}.mlp.4.bias"]
        x = x + state[f"{name}.mlp.6.factor"] * out
    return norm_by_hand(x[0], state, "out.0", eps) @ state["out.1.weight"].T + state["out.1.bias"]


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_the_text_transformer_is_that_of_the_formula_down_to_its_eps(eps):
    from stpredict.models.sgn import TextTransformer

    torch.manual_seed(3)
    network = TextTransformer(5, 8, depth=2, heads=2, dropout=0.0, eps=eps).eval()
    with torch.no_grad():
        network.first.mul_(0.02)  # so small that eps decides
        rows = torch.randn(4, 5) * 1e-2
        found = network(rows).numpy()
    for row, values in zip(rows.double().numpy(), found, strict=True):
        np.testing.assert_allclose(values, text_transformer_by_hand(network, row, heads=2, eps=eps), atol=1e-5)
        other = text_transformer_by_hand(network, row, heads=2, eps=11e-6 - eps)
        assert np.abs(values - other).max() > 1e-3


def test_a_card_of_an_earlier_version_keeps_its_eps_and_has_no_pretransform():
    from dataclasses import asdict

    from stpredict.models._folder import config_from
    from stpredict.models.sgn import SGNConfig

    model = fresh(text_network="transformer", norm_eps=1e-6, pretransform=True)
    content = {key: value for key, value in asdict(model.config).items() if key not in ("norm_eps", "pretransform")}
    config = config_from(content, SGNConfig)
    assert (config.norm_eps, config.pretransform) == (1e-5, False)


def test_the_text_transformer_reads_one_text_at_a_time():
    model = fresh(text_network="transformer").eval()
    model.texts.fit(GENES)
    with torch.no_grad():
        rows = model.query((*GENES, *UNSEEN))
        for j, gene in enumerate((*GENES, *UNSEEN)):
            torch.testing.assert_close(model.query([gene])[0], rows[j])
        assert (rows[0] - rows[1]).abs().max() > 1e-5
        for block in model.text_network.blocks:
            block.out[1].factor.zero_()
        deaf = model.query((*GENES, *UNSEEN))[:, :-3]
        torch.testing.assert_close(deaf[1:], deaf[:1].expand(4, -1))  # the text reaches the class token by attention


def test_a_text_transformer_trains_whole(colour_section):
    model = fresh(text_network="transformer")
    before = {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}
    train(model, [colour_section(0)], epochs=2)
    assert [key for key, value in model.named_parameters() if key in before and torch.equal(value, before[key])] == []


def test_an_unseen_gene_is_answered_after_loading(trained, colour_section, tmp_path):
    from stpredict import models

    trained.save(tmp_path / "model")
    again = models.load(tmp_path / "model")
    expected = predict(trained, colour_section(2), UNSEEN)
    np.testing.assert_array_equal(predict(again, colour_section(2), UNSEEN), expected)
    assert np.isfinite(expected).all()
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-4
    assert again.vocabulary == (*GENES, *UNSEEN)
    assert again.text_vectors(["red"]).shape == (1, 8)
    assert again.is_text_queried


def test_further_genes_can_be_told_and_foreign_embeddings_are_refused():
    model = fresh().eval()
    with pytest.raises(ValueError, match="1 of 2 genes have neither text nor embedding in this model: .'teal'."):
        model.query(["red", "teal"])
    model.add_embeddings(embeddings(("teal", "red")))
    assert model.query(["teal"]).shape == (1, 20)
    assert "teal" in model.vocabulary
    with pytest.raises(ValueError, match="width 9 in place of 8"):
        model.add_embeddings(embeddings(("plum",), width=9))


def test_validation_sees_whole_sections(colour_section):
    model = fresh()
    history = train(model, [colour_section(0)], val=[colour_section(1), colour_section(2)], epochs=2)
    assert np.isfinite(history["val_loss"]).all()
    expected = [
        np.corrcoef(predict(model, colour_section(s), ["red"])[:, 0], colour_section(s).expression[:, 0])[0, 1]
        for s in (1, 2)
    ]
    assert model.card.val_pcc["red"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_batches_carry_the_places_of_their_rows(colour_section):
    from stpredict.models._patches import array_grid

    section = dataclasses.replace(colour_section(0), grid=np.stack([np.arange(24) + 3, 40 - np.arange(24)], axis=1))
    samples = fresh().samples([section, colour_section(1)], train=False)
    batch = samples.collate([samples[i] for i in (7, 2, 29)])
    expected = [[7, 16], [2, 21], array_grid(colour_section(1))[5].tolist()]
    assert batch.extra["place"].tolist() == expected


def test_training_reads_the_features_of_a_frozen_encoder_once(trained, colour_section):
    from stpredict.models import Recipe

    sections = [colour_section(0), colour_section(1)]
    known = trained.eval().samples(sections, train=True)
    images = trained.samples(sections, train=False)
    for index in (0, 1):
        batch, rows = known.collate([known[index]]), known.shapes[index % 2]
        assert batch.image.shape == (24, 3, 0, 0)
        torch.testing.assert_close(trained.latent(batch), trained.latent(images.collate([images[j] for j in rows])))
    model = fresh(frozen=False, recipe=Recipe(max_epochs=1, batch_size=1, lr=1e-3, encoder_lr=1e-3))
    samples = model.samples(sections, train=True)
    assert samples.collate([samples[0]]).image.shape == (24, 3, 64, 64)
    before = model.encoder.encoder.net.conv_stem.weight.detach().clone()
    train(model, sections[:1], epochs=1)
    assert not torch.equal(before, model.encoder.encoder.net.conv_stem.weight)


def test_what_it_cannot_be_built_from():
    from stpredict.models import SGN

    with pytest.raises(ValueError, match="pass embeddings=stp.tl.embed_genes"):
        SGN(GENES)
    with pytest.raises(ValueError, match="teal"):
        SGN((*GENES, "teal"), embeddings=embeddings())
    with pytest.raises(ValueError, match="config='large' is unknown. Choose one of .'published', 'small'."):
        SGN(GENES, embeddings=embeddings(), config="large")
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh(frozen=False)
    assert SGN(GENES, embeddings=embeddings(), mpp=0.7).mpp == 0.7
