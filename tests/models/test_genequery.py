"""GeneQuery: against the paper's formula spot by spot, and for what an answer must not depend on."""

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


def fresh(context, *, names=None, **changes):
    from stpredict.models import GeneQuery

    torch.manual_seed(0)
    config = GeneQuery(GENES, embeddings=embeddings(), names=names, context=context).config
    small = {"patch_px": 64, "mpp": 1.0, "width": 32, "heads": 2, "head_width": 16, "mlp_width": 48} | changes
    return GeneQuery(config=dataclasses.replace(config, **small), embeddings=embeddings(), names=names)


@pytest.fixture(scope="module")
def trained(colour_section):
    from stpredict._training import TrainOptions, fit

    def train(context):
        model = fresh(context)
        plan = TrainOptions(max_epochs=3, lr=1e-3, device="cpu", precision="32", progress=False)
        fit(model, [colour_section(0), colour_section(1)], [], plan, sections=("a", "b"))
        return model

    return {context: train(context) for context in ("spot", "gene")}


def predict(model, section, genes, **runtime):
    from stpredict._inference import RuntimeOptions
    from stpredict._inference import predict as infer

    return infer(
        model,
        section,
        list(genes),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False, **runtime).resolve(model.output),
    )[0]


def block_by_hand(block, x, seen):
    """One block on one sequence (n, d) with an explicit attention matrix; `seen` (n, n)."""
    n, heads = len(x), block.heads
    q, k, v = block.qkv(block.attention_norm(x)).reshape(n, 3, heads, -1).permute(1, 2, 0, 3)
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    x = x + block.out((torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(n, -1))
    return x + block.mlp(x)


def by_hand(model, latent, genes):
    """(spots, genes): the paper's formula, one gene (or one spot) after the other."""
    query = model.query(genes)
    rows, mean, spread = model.gene_projection(query[:, :8]), query[:, -3], query[:, -2]
    out = torch.zeros(len(latent), len(genes))
    if model.context == "section":
        for j, row in enumerate(rows):
            x = latent + row
            for block in model.blocks:
                x = block_by_hand(block, x, torch.ones(len(x), len(x), dtype=bool))
            out[:, j] = model.scalar(x)[:, 0]
        return mean + spread * out
    panel = model.gene_projection(model.query(model.genes)[:, :8])
    for i, spot in enumerate(latent):
        for j, gene in enumerate(genes):
            known = gene in model.genes
            x = torch.cat([spot + panel, (spot + rows[j])[None]])[: len(panel) + (not known)]
            seen = torch.ones(len(x), len(x), dtype=bool)
            if not known:
                seen[:-1, -1] = False
            for block in model.blocks:
                x = block_by_hand(block, x, seen)
            out[i, j] = model.scalar(x[model.genes.index(gene) if known else -1])[0]
    return mean + spread * out


@pytest.mark.parametrize("context", ["spot", "gene"])
def test_an_answer_is_the_formula_of_the_paper(trained, colour_section, context):
    from stpredict._inference import RuntimeOptions, embed

    model, genes = trained[context], ("cyan", *GENES, "mauve")
    latent, _ = embed(
        model,
        colour_section(2),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output),
    )
    with torch.no_grad():
        expected = by_hand(model, torch.from_numpy(latent), genes).numpy()
    np.testing.assert_allclose(predict(model, colour_section(2), genes), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-4


@pytest.mark.parametrize("context", ["spot", "gene"])
def test_an_answer_does_not_depend_on_what_else_is_asked(trained, colour_section, context, monkeypatch):
    from stpredict.models import genequery
    from stpredict.nn import transformer

    model, section = trained[context], colour_section(2)
    whole = predict(model, section, (*GENES, *UNSEEN))
    for j, gene in enumerate((*GENES, *UNSEEN)):
        np.testing.assert_allclose(predict(model, section, [gene])[:, 0], whole[:, j], atol=1e-5)
    order = [4, 1, 3, 0, 2]
    np.testing.assert_allclose(predict(model, section, np.array((*GENES, *UNSEEN))[order]), whole[:, order], atol=1e-5)
    monkeypatch.setattr(genequery, "TOKENS", 30)
    monkeypatch.setattr(transformer, "QUERY_ROWS", 10)
    monkeypatch.setattr(transformer, "ASKED_ROWS", 1)
    np.testing.assert_allclose(predict(model, section, (*GENES, *UNSEEN), batch_size=5), whole, atol=1e-5)


def test_spot_context_sees_the_other_spots_and_gene_context_does_not(trained, colour_section):
    from stpredict._section import take

    section = colour_section(2)
    half = take(section, np.arange(12))
    apart = {c: np.abs(predict(m, half, GENES) - predict(m, section, GENES)[:12]).max() for c, m in trained.items()}
    assert apart["gene"] < 1e-5 < 1e-4 < apart["spot"]


def test_padding_changes_neither_prediction_nor_loss(trained, colour_section):
    from stpredict._section import take

    model = trained["spot"].eval()
    short, long = take(colour_section(0), np.arange(7)), colour_section(1)
    samples = model.samples([short, long], train=True)
    both = samples.collate([samples[0], samples[1]])
    query = model.query(both.genes)
    with torch.no_grad():
        alone = [model.loss(samples.collate([samples[i]]), query) for i in range(2)]
        weights = torch.tensor([7.0, 24.0]) / 31
        torch.testing.assert_close(model.loss(both, query), (torch.stack(alone) * weights).sum(), atol=1e-6, rtol=1e-5)
        rows = model.latent(both)
        together = model._spot_aware([rows[:7], rows[7:]], query)
        torch.testing.assert_close(together[:7], model._spot_aware([rows[:7]], query), atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", ["spot", "gene"])
@pytest.mark.usefixtures("no_features")
def test_images_are_encoded_once_a_section_and_genes_projected_once(trained, colour_section, context, monkeypatch):
    model, section, projected = trained[context], colour_section({"spot": 5, "gene": 6}[context]), []
    cache, project = model.encoder._cache, model.gene_projection.forward
    before = cache.n_encoded

    def counted_project(rows):
        projected.append(len(rows))
        return project(rows)

    monkeypatch.setattr(model.gene_projection, "forward", counted_project)
    predict(model, section, (*GENES, *UNSEEN), batch_size=5)
    assert (cache.n_encoded - before, sum(projected)) == (section.n_shapes, len(GENES) + len(UNSEEN))
    predict(model, section, GENES, batch_size=7)
    assert cache.n_encoded - before == section.n_shapes  # remembered by content


@pytest.mark.usefixtures("no_features")
def test_features_survive_the_process_in_a_folder(colour_section, tmp_path, monkeypatch):
    from stpredict.nn import features

    model = fresh("spot")
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 255, (5, 3, 64, 64), dtype=np.uint8))
    first = features.FeatureCache(model.encoder.encoder.eval(), folder=tmp_path)
    expected = first(image)
    monkeypatch.setattr(features, "_held", type(features._held)())
    second = features.FeatureCache(model.encoder.encoder, folder=tmp_path)
    torch.testing.assert_close(second(image), expected, atol=0, rtol=0)
    assert (first.n_encoded, second.n_encoded) == (5, 0)
    with torch.no_grad():
        model.encoder.encoder.net.conv_stem.weight.mul_(1.1)
    third = features.FeatureCache(model.encoder.encoder, folder=tmp_path)
    assert (third(image) - expected).abs().max() > 1e-4


def test_the_scale_of_a_gene_comes_from_training_sections(trained, colour_section):
    model = trained["spot"]
    measured = np.concatenate([colour_section(seed).expression for seed in (0, 1)])
    np.testing.assert_array_equal(model.low.numpy(), measured.min(axis=0))
    np.testing.assert_allclose(model.span.numpy(), np.ptp(measured, axis=0), rtol=1e-6)
    np.testing.assert_allclose(model.mean.numpy(), measured.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.spread.numpy(), measured.std(axis=0), rtol=1e-4)
    unseen = model.query(["cyan"])[0]
    for column, values in zip((-3, -2, -1), (model.mean, model.spread, model.span), strict=True):
        assert float(unseen[column]) == pytest.approx(float(values.mean()))


def test_the_loss_is_the_squared_error_in_min_max_units(trained, colour_section):
    model = trained["gene"].eval()
    samples = model.samples([colour_section(0)], train=True)
    batch = samples.collate([samples[i] for i in range(9)])
    with torch.no_grad():
        loss = float(model.loss(batch, model.query(batch.genes)))
    pred = predict(model, colour_section(0), GENES)[batch.rows[:, 1]]
    scaled = [(v - model.low.numpy()) / model.span.numpy() for v in (pred, batch.measured.numpy())]
    assert loss == pytest.approx(float(((scaled[0] - scaled[1]) ** 2).mean()), rel=1e-4)


def test_an_unseen_gene_is_answered_after_loading(trained, colour_section, tmp_path):
    from stpredict import models

    for context, model in trained.items():
        model.save(tmp_path / context)
        again = models.load(tmp_path / context)
        np.testing.assert_array_equal(
            predict(again, colour_section(2), UNSEEN), predict(model, colour_section(2), UNSEEN)
        )
        assert again.context == model.context
        assert again.vocabulary == (*GENES, *UNSEEN)


def test_further_genes_can_be_told_and_foreign_embeddings_are_refused(colour_section):
    model = fresh("spot").eval()
    with pytest.raises(ValueError, match="1 of 2 genes have neither text nor embedding in this model: .'teal'."):
        model.query(["red", "teal"])
    model.add_embeddings(embeddings(("teal", "red")))
    assert model.query(["teal"]).shape == (1, 12)
    assert "teal" in model.vocabulary
    with pytest.raises(ValueError, match="width 9 in place of 8"):
        model.add_embeddings(embeddings(("plum",), width=9))
    with pytest.raises(ValueError, match="encoder 'other' in place of 'letters'"):
        model.add_embeddings(embeddings(("plum",), encoder="other"))
    other = dataclasses.replace(embeddings(("red",)), vectors=np.ones((1, 8), np.float32))
    with pytest.raises(ValueError, match="'red' is known to the model with another embedding"):
        model.add_embeddings(other)


def test_names_beside_definitions(colour_section):
    from stpredict._training import TrainOptions, fit

    model = fresh("spot", names=embeddings(encoder="names", width=5))
    before = model.name_projection.weight.detach().clone()
    plan = TrainOptions(max_epochs=2, device="cpu", precision="32", progress=False)
    fit(model, [colour_section(0)], [], plan, sections=("a",))
    assert not torch.equal(before, model.name_projection.weight)
    assert predict(model, colour_section(2), UNSEEN).shape == (24, 2)


def test_training_end_to_end_moves_the_encoder(colour_section):
    from stpredict._training import TrainOptions, fit
    from stpredict.models import Recipe

    model = fresh("gene", frozen=False, recipe=Recipe(max_epochs=1, batch_size=8, lr=1e-3, encoder_lr=1e-3))
    before = model.encoder.encoder.net.conv_stem.weight.detach().clone()
    fit(model, [colour_section(0)], [], TrainOptions(device="cpu", precision="32", progress=False), sections=("a",))
    assert not torch.equal(before, model.encoder.encoder.net.conv_stem.weight)


def test_validation_sees_whole_sections(colour_section):
    from stpredict._training import TrainOptions, fit

    model = fresh("spot")
    plan = TrainOptions(max_epochs=2, device="cpu", precision="32", progress=False)
    history = fit(model, [colour_section(0)], [colour_section(1), colour_section(2)], plan, sections=("a",))
    assert np.isfinite(history["val_loss"]).all()
    expected = [
        np.corrcoef(predict(model, colour_section(s), ["red"])[:, 0], colour_section(s).expression[:, 0])[0, 1]
        for s in (1, 2)
    ]
    assert model.card.val_pcc["red"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_section_too_large_for_memory_says_the_limit_and_the_way_out(trained, colour_section, monkeypatch):
    from stpredict.models import genequery

    monkeypatch.setattr(genequery, "TOKEN_BYTES", 10**12)
    with pytest.raises(ValueError, match="a section of 24 shapes needs .* at most 0 shapes fit.* context='gene'"):
        predict(trained["spot"], colour_section(2), GENES)
    assert predict(trained["gene"], colour_section(2), GENES).shape == (24, 3)


def test_what_it_cannot_be_built_from(colour_section):
    from stpredict.models import GeneQuery

    with pytest.raises(ValueError, match="pass embeddings=stp.tl.embed_genes"):
        GeneQuery(GENES)
    with pytest.raises(ValueError, match="teal"):
        GeneQuery((*GENES, "teal"), embeddings=embeddings())


def test_features_are_of_the_encoder_as_it_is_built(colour_section):
    from stpredict.nn.encoders import Encoder, EncoderSpec
    from stpredict.nn.features import FeatureCache

    torch.manual_seed(0)
    same = Encoder(EncoderSpec("mobilenetv2_050", (0, 1), {"pad_type": "same"}), weights=None).eval()
    plain = Encoder(EncoderSpec("mobilenetv2_050", (0, 1)), weights=None).eval()
    plain.load_state_dict(same.state_dict())
    image = torch.from_numpy(np.random.default_rng(4).integers(0, 255, (2, 3, 64, 64), dtype=np.uint8))
    one, other = FeatureCache(same)(image), FeatureCache(plain)(image)
    assert (one - other).abs().max() > 1e-3  # equal weights, another padding


def test_two_draws_of_a_section_are_two_sequences(trained, colour_section):
    model = trained["spot"]
    samples = model.samples([colour_section(0)], train=True)
    batch = samples.collate([samples[0], samples[1]])
    from stpredict.models._samples import sections_of

    assert sections_of(batch) == [slice(0, 24), slice(24, 48)]
    with torch.no_grad():
        pred = model.eval()._spot_aware([model.latent(batch)[rows] for rows in sections_of(batch)], model.query(GENES))
    torch.testing.assert_close(pred[:24], pred[24:], atol=1e-5, rtol=0)


def test_an_encoder_that_would_not_move_is_refused():
    with pytest.raises(ValueError, match="frozen=False trains the encoder, but the recipe's encoder_lr is 0"):
        fresh("gene", frozen=False)


def test_embeddings_are_taken_in_whole_or_not_at_all():
    model = fresh("spot")
    other = embeddings(("plum", "red"))
    wrong = dataclasses.replace(other, vectors=np.stack([other.vectors[0], np.ones(8, np.float32)]))
    with pytest.raises(ValueError, match="'red' is known to the model with another embedding"):
        model.add_embeddings(wrong)
    assert "plum" not in model.vocabulary


def norm_by_hand(x, state, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear_by_hand(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def sequence_by_hand(x, state, *, depth, heads):
    """The transformer and the scalar on one sequence (n, d), in NumPy."""
    n = len(x)
    for k in range(depth):
        qkv = linear_by_hand(norm_by_hand(x, state, f"blocks.{k}.attention_norm"), state, f"blocks.{k}.qkv")
        q, key, v = qkv.reshape(n, 3, heads, -1).transpose(1, 2, 0, 3)
        scores = np.exp(q @ key.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        attended = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
        x = x + linear_by_hand(attended, state, f"blocks.{k}.out")
        hidden = linear_by_hand(norm_by_hand(x, state, f"blocks.{k}.mlp.0"), state, f"blocks.{k}.mlp.1")
        x = x + linear_by_hand(gelu(hidden), state, f"blocks.{k}.mlp.4")
    return linear_by_hand(x, state, "scalar.0")[:, 0]


@pytest.mark.parametrize("context", ["spot", "gene"])
def test_the_published_form_is_that_of_the_code(colour_section, context):
    """Projection head, fusion, transformer and scalar against NumPy, with weights drawn here."""
    from stpredict.models import genequery

    own = ("image_projection", "scalar_norm", "fused_activation", "fused_dropout", "token_dropout")
    published = {name: genequery.PUBLISHED[context].get(name, 0.0) for name in own}
    assert published == {
        "image_projection": "head", "scalar_norm": False, "token_dropout": 0.1,
        "fused_activation": "relu" if context == "spot" else "gelu", "fused_dropout": 0.0 if context == "spot" else 0.1,
    }  # fmt: skip
    model = fresh(context, **published).eval()
    section = colour_section(2)
    model.prepare([section])
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    features = model.encoder.encode_sections([section], patch_px=64).double().numpy()
    projected = linear_by_hand(features, state, "image_projection.projection")
    second = linear_by_hand(gelu(projected), state, "image_projection.second")
    images = norm_by_hand(projected + second, state, "image_projection.norm")
    rows = model.query(GENES).double().detach().numpy()
    genes = linear_by_hand(rows[:, :8], state, "gene_projection")
    sizes = {"depth": 2, "heads": 2}
    if context == "spot":
        found = [sequence_by_hand(np.maximum(images + gene, 0), state, **sizes) for gene in genes]
        wanted = np.stack(found, axis=1)
    else:
        wanted = np.stack([sequence_by_hand(gelu(image + genes), state, **sizes) for image in images])
    wanted = rows[:, -3] + rows[:, -2] * wanted
    np.testing.assert_allclose(predict(model, section, GENES), wanted, atol=1e-5)
    assert wanted.std(axis=0).min() > 1e-4


def test_tokens_are_dropped_out_in_training_alone():
    model = fresh("gene", fused_dropout=0.5, token_dropout=0.5)
    one = torch.ones(2, 1, 32)
    kept = model.train()._fused(one, one)
    assert set(kept.unique().tolist()) == {0.0, 8.0}  # 2 / .5 / .5
    assert bool((model.eval()._fused(one, one) == 2).all())
    assert bool((fresh("spot").train()._fused(one, one) == 2).all())


@pytest.mark.parametrize(
    ("context", "frozen", "recipe"), [("spot", True, (100, 1, 0.0)), ("gene", False, (100, 100, 1e-4))]
)
def test_the_published_sizes_are_those_of_the_paper(context, frozen, recipe):
    from stpredict.models import GeneQuery

    model = GeneQuery(GENES, embeddings=embeddings(width=768), context=context, config="published")
    c = model.config
    assert (c.encoder, c.patch_px, c.frozen, c.width, c.depth, c.heads, c.head_width) == (
        "resnet50",
        224,
        frozen,
        256,
        2,
        4,
        64,
    )
    assert (c.recipe.max_epochs, c.recipe.batch_size, c.recipe.encoder_lr) == recipe
    assert (c.recipe.lr, c.recipe.weight_decay) == (1e-4, 1e-3)
    # a block: two norms; queries, keys and values without a bias; the way out; an MLP of 512
    block = 2 * 2 * 256 + 3 * 256 * 256 + (256 * 256 + 256) + (256 * 512 + 512) + (512 * 256 + 256)
    head = (2048 * 256 + 256) + (256 * 256 + 256) + 2 * 256  # two layers and a norm
    projections = head + (768 * 256 + 256)
    scalar = 256 + 1
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder."))
    assert own == projections + 2 * block + scalar
    assert sum(p.numel() for p in model.encoder.parameters()) == 23_508_032  # ResNet50 without its classifier
    assert model.encoder(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 2048)


def test_a_configuration_is_named_given_or_refused():
    from stpredict.models import GeneQuery

    assert GeneQuery(GENES, embeddings=embeddings(), context="gene").config.train_genes == 256
    assert GeneQuery(GENES, embeddings=embeddings(), mpp=0.5).mpp == 0.5
    own = GeneQuery(GENES, embeddings=embeddings(), context="gene").config
    assert GeneQuery(config=own, embeddings=embeddings()).context == "shape"
    with pytest.raises(ValueError, match="context='spot' contradicts the config, whose context is 'gene'"):
        GeneQuery(config=own, embeddings=embeddings(), context="spot")
    with pytest.raises(ValueError, match=r"config='large' is unknown. Choose one of \['published', 'small'\]"):
        GeneQuery(GENES, embeddings=embeddings(), config="large")
